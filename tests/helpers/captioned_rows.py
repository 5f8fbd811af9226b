"""Captioned rows of four classes, without images."""

import io
import json

from rs_rlhf.data.captioned_images import class_name

CLASSES = {"Airport": "planes", "StorageTanks": "tanks", "Forest": "green trees", "Beach": "white waves"}


def rows(count=40):
    return [
        {
            "image": f"{i}.png",
            "id": f"{i}.png",
            "label": label,
            "captions": [
                f"many {things} are in a {class_name(label)} with {2 + i % 5} white buildings .",
                f"a {class_name(label)} near a long green river .",
            ],
        }
        for i in range(count)
        for label, things in [list(CLASSES.items())[i % 4]]
    ]


def write_jsonl(path, *rows):
    """Writes rows as JSON lines; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path, scenes):
    """Writes scenes as `datasets` does, with a `ClassLabel`."""
    import datasets

    names = sorted({scene.label for scene in scenes})
    texts = datasets.List(datasets.Value("string"))
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names), captions=texts)
    images = []
    for i, scene in enumerate(scenes):
        buffer = io.BytesIO()
        scene.image.save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": f"{i}.png"})
    columns = {"image": images, "label": [s.label for s in scenes], "captions": [s.captions for s in scenes]}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(path))
