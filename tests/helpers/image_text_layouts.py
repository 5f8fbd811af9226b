"""The same image-text rows in every format, for the tests of reading and of writing them."""

import csv
import io
import json
import tarfile

import datasets

from helpers import picture

LABELS = ["Port", "River"]
COUNT = 23


def png(seed):
    buffer = io.BytesIO()
    picture(seed, 16, 16).save(buffer, "PNG")
    return buffer.getvalue()


def rows(start=0, count=COUNT):
    """Rows with one to three captions, in which characters take one to four bytes."""
    return [
        {
            "image": f"{i}.png",
            "captions": [f"caption {k} of {i} é€\U0001f600" for k in range(1 + i % 3)],
            "label": LABELS[i % 2],
        }
        for i in range(start, start + count)
    ]


def write_images(folder, count=COUNT):
    for i in range(count):
        (folder / f"{i}.png").write_bytes(png(i))


def write_parquet(path, made, per_group=5):
    texts = datasets.List(datasets.Value("string"))
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=LABELS), captions=texts)
    images = [{"bytes": png(int(row["image"][:-4])), "path": row["image"]} for row in made]
    columns = {"image": images, "label": [r["label"] for r in made], "captions": [r["captions"] for r in made]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(path), batch_size=per_group)


def write_csv(path, made):
    """One text a row; the texts have line breaks, quotes and delimiters."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["filepath", "title", "label"])
        for row in made:
            writer.writerow([row["image"], row["captions"][0] + '\nsaid, "so"', row["label"]])


def add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(content), 1
    tar.addfile(info, io.BytesIO(content))


def write_tar(path, made):
    with tarfile.open(path, "w") as tar:
        for row in made:
            key = f"{'long/' * 30}{row['image'][:-4]}"
            add(tar, f"{key}.png", png(int(row["image"][:-4])))
            add(tar, f"{key}.json", json.dumps({"captions": row["captions"], "label": row["label"]}).encode())


def write_all(folder):
    """Writes the rows in every format; returns what to open, by format."""
    folder.mkdir(parents=True, exist_ok=True)
    made = rows()
    for name in ("jsonl", "json", "csv"):
        (folder / name).mkdir()
        write_images(folder / name)
    (folder / "parquet").mkdir()
    write_parquet(folder / "parquet" / "train-00000-of-00002.parquet", made[:13])
    write_parquet(folder / "parquet" / "train-00001-of-00002.parquet", made[13:])
    lines = [json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(made)]
    (folder / "jsonl" / "a.jsonl").write_text("\n".join(lines[:9]) + "\n\n", "utf-8")
    (folder / "jsonl" / "b.jsonl").write_text("\n\n".join(lines[9:]), "utf-8")
    (folder / "json" / "rows.json").write_text(json.dumps(made, indent=1, ensure_ascii=False), "utf-8")
    (folder / "json" / "dataset_info.json").write_text("{}")
    write_csv(folder / "csv" / "rows.csv", made)
    (folder / "webdataset").mkdir()
    write_tar(folder / "webdataset" / "000.tar", made[:11])
    write_tar(folder / "webdataset" / "001.tar", made[11:])
    datasets.Dataset.from_parquet(str(folder / "parquet" / "train-0000*")).save_to_disk(str(folder / "dataset"))
    return {name: folder / name for name in ("parquet", "jsonl", "json", "csv", "webdataset", "dataset")}
