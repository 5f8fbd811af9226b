"""The same four rows in every form that other projects write: captions, turns, labels, preferences and prompts.

A writer takes a folder and a seed, draws its pictures by the seed, and returns the arguments that read its file: the
path, then flags. The forms of one dictionary say the same about the same pictures, so they train and score alike.
"""

import io
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from helpers import picture
from helpers.image_text_layouts import add

COUNT = 4
CAPTIONS = ("a river beside a road .", "two white storage tanks .", "a dense residential area .", "bare farmland .")
WORSE = (*CAPTIONS[1:], CAPTIONS[0])
CLASSES = ("fields", "houses", "industry", "water")
QUESTION = "Describe the image."
ROOT = "tiles"


def encoded(number, seed):
    """The PNG of a row's picture."""
    buffer = io.BytesIO()
    picture(100 * seed + number, 56, 56).save(buffer, "PNG")
    return buffer.getvalue()


def draw(folder, seed, names="tile_{}.png"):
    """Writes the pictures; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(COUNT):
        (folder / names.format(i)).write_bytes(encoded(i, seed))
    return [names.format(i) for i in range(COUNT)]


def lines(folder, rows, name="rows.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(folder / name)]


def listed(folder, rows, name="rows.json"):
    (folder / name).write_text(json.dumps(list(rows), indent=1))
    return [str(folder / name)]


def parquet(folder, rows, name="rows.parquet"):
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / name)
    return [str(folder / name)]


def text(folder, header, rows, name="rows.csv", encoding="utf-8", end="\n"):
    (folder / name).write_bytes(end.join([header, *rows, ""]).encode(encoding))
    return [str(folder / name)]


def embedded(image, **columns):
    """A writer of Parquet whose images are bytes; `columns` are made of a row's number."""

    def writer(folder, seed):
        made = [{key: value(i) for key, value in columns.items()} for i in range(COUNT)]
        images = [{image: {"bytes": encoded(i, seed), "path": None}} for i in range(COUNT)]
        return parquet(folder, [{**one, **other} for one, other in zip(images, made, strict=True)])

    return writer


def rows_of(make, write=lines, names="tile_{}.png", flags=()):
    """A writer of the rows that `make` makes of a number and an image's name."""

    def writer(folder, seed):
        return [*write(folder, [make(i, name) for i, name in enumerate(draw(folder, seed, names))]), *flags]

    return writer


def image_folder(folder, seed):
    """HF ImageFolder: pictures beside a `metadata.csv`."""
    names = draw(folder, seed)
    text(
        folder,
        "file_name,text",
        [f"{name},{caption}" for name, caption in zip(names, CAPTIONS, strict=True)],
        "metadata.csv",
    )
    return [str(folder)]


def rooted(folder, seed):
    """Names without a suffix, of files in another folder."""
    names = draw(folder / ROOT, seed, "P{:04d}")
    rows = [{"tile": name, "caption": caption} for name, caption in zip(names, CAPTIONS, strict=True)]
    return [*lines(folder, rows), "--image_root", str(folder / ROOT)]


def webdataset(folder, seed):
    import tarfile

    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "rows.tar", "w") as tar:
        for i, caption in enumerate(CAPTIONS):
            add(tar, f"tile_{i}.34_56.1.png", encoded(i, seed))
            add(tar, f"tile_{i}.34_56.1.txt", caption.encode())
    return [str(folder / "rows.tar")]


def saved(folder, seed):
    """What `Dataset.save_to_disk` writes."""
    columns = {"picture": [{"bytes": encoded(i, seed), "path": None} for i in range(COUNT)], "text": CAPTIONS}
    features = datasets.Features(picture=datasets.Image(), text=datasets.Value("string"))
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(folder / "saved")
    return [str(folder / "saved")]


def csv(header, line, flags=(), **options):
    """A writer of delimited text: a line made of an image's name, a caption, a number, a class and a worse caption."""

    def writer(folder, seed):
        made = zip(draw(folder, seed), CAPTIONS, range(COUNT), CLASSES, WORSE, strict=True)
        return [*text(folder, header, [line.format(*values) for values in made], **options), *flags]

    return writer


CAPTIONED = {
    "captions": rows_of(lambda i, name: {"image": name, "captions": [CAPTIONS[i]]}),
    "filename": csv("filename,caption", "{0},{1}"),
    "title": csv("title\tfilename", "{1}\t{0}", name="rows.tsv"),
    "semicolons": csv("image;caption", "{0};{1}", encoding="utf-8-sig", end="\r\n", name="ROWS.CSV"),
    "index": csv(",image,caption", "{2},{0},{1}"),
    "unknown name": rows_of(lambda i, name: {"Tile No.": name, "scene": "a", "caption": CAPTIONS[i]}, listed),
    "named": rows_of(
        lambda i, name: {"before": "tile_0.png", "after": name, "remark": CAPTIONS[i]},
        flags=["--columns", "image=after", "caption=remark"],
    ),
    "rooted": rooted,
    "ImageFolder": image_folder,
    "bytes beside a path": embedded("image", image_path=lambda i: f"P{i}.jpg", caption=CAPTIONS.__getitem__),
    "bytes of an unknown name": embedded("Scene", text=CAPTIONS.__getitem__),
    "WebDataset": webdataset,
    "saved": saved,
}


SHAREGPT = ("from", "human", "gpt", "value")
CHATML = ("role", "user", "assistant", "content")


def spoken(i, *, of=SHAREGPT, start="<image>\n"):
    key, user, model, value = of
    return [{key: user, value: start + QUESTION}, {key: model, value: CAPTIONS[i]}]


def parts(i, image):
    return [
        {"role": "user", "content": [image, {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": [{"type": "text", "text": CAPTIONS[i]}]},
    ]


TURNS = {
    "prompt": rows_of(lambda i, name: {"image": name, "prompt": QUESTION, "completion": CAPTIONS[i]}),
    "question": rows_of(lambda i, name: {"img_path": name, "question": QUESTION, "answer": CAPTIONS[i]}),
    "Alpaca": rows_of(
        lambda i, name: {"images": [name], "instruction": QUESTION, "input": "", "output": CAPTIONS[i]}, listed
    ),
    "query": rows_of(lambda i, name: {"images": [name], "query": f"<image>{QUESTION}", "response": CAPTIONS[i]}),
    "LLaVA": rows_of(lambda i, name: {"id": str(i), "image": name, "conversations": spoken(i)}, listed),
    "ShareGPT": rows_of(lambda i, name: {"images": [name], "conversations": spoken(i, start="<image>")}, listed),
    "messages": rows_of(lambda i, name: {"images": [name], "messages": spoken(i, of=CHATML, start="<image>")}),
    "parts": rows_of(lambda i, name: {"file": name, "messages": parts(i, {"type": "image"})}),
    "inline": rows_of(lambda i, name: {"messages": parts(i, {"type": "image", "image": name})}),
    "turns and turns": rows_of(
        lambda i, name: {"images": [name], "prompt": parts(i, {"type": "image"})[:1], "completion": parts(i, {})[1:]}
    ),
    "bytes": embedded("image", path=lambda i: f"P{i}.jpg", question=lambda i: QUESTION, answer=CAPTIONS.__getitem__),
}


def classes(folder, seed):
    """A folder of images by class."""
    for i, name in enumerate(CLASSES):
        (folder / "classes" / name).mkdir(parents=True)
        (folder / "classes" / name / f"tile_{i}.png").write_bytes(encoded(i, seed))
    return [str(folder / "classes")]


def class_labels(folder, seed):
    """Parquet as `datasets` writes it, whose classes are numbers with names."""
    folder.mkdir(parents=True, exist_ok=True)
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(CLASSES)))
    images = [{"bytes": encoded(i, seed), "path": None} for i in range(COUNT)]
    data = datasets.Dataset.from_dict({"image": images, "label": range(COUNT)}, features=features)
    data.to_parquet(folder / "rows.parquet")
    return [str(folder / "rows.parquet")]


LABELLED = {
    "label": rows_of(lambda i, name: {"image": name, "label": CLASSES[i]}),
    "semicolons": csv("image;label", "{0};{3}", encoding="utf-8-sig"),
    "filename": csv(",filename,class name", "{2},{0},{3}", flags=["--columns", "label=class name"]),
    "bytes": embedded("tile", name=lambda i: f"P{i}.jpg", label=CLASSES.__getitem__),
    "ClassLabel": class_labels,
    "folder": classes,
}


def pair(i, **more):
    return {"chosen": CAPTIONS[i], "rejected": WORSE[i], **more}


def said(content, of=CHATML):
    return {of[0]: of[2], of[3]: content}


def outputs(i, first, second, key, values):
    """Two outputs, the better of which is the first in rows of even number."""
    texts = (CAPTIONS[i], WORSE[i]) if i % 2 == 0 else (WORSE[i], CAPTIONS[i])
    return {first: texts[0], second: texts[1], key: values[i % 2]}


def rsrm(folder, seed):
    """RSRM: JSON beside a folder named like it, of images by name, a list of rejected texts."""
    names = draw(folder / "train", seed)
    made = [{"image_name": name, "question": QUESTION, **pair(i, rejected=[WORSE[i]])} for i, name in enumerate(names)]
    return listed(folder, made, "train.json")


def ranking(i):
    return {"response": [WORSE[i], CAPTIONS[i]], "human_ranking": [2, 1]}


PREFERENCES = {
    "TRL": rows_of(lambda i, name: {"image": name, "prompt": QUESTION, **pair(i)}),
    "filename": rows_of(lambda i, name: {"filename": name, "prompt": QUESTION, **pair(i)}),
    "csv": csv("file;prompt;chosen;rejected", f"{{0}};{QUESTION};{{1}};{{4}}", encoding="utf-8-sig", end="\r\n"),
    "turns": rows_of(
        lambda i, name: {
            "images": [name],
            "prompt": parts(i, {"type": "image"})[:1],
            "chosen": [said(CAPTIONS[i])],
            "rejected": [said(WORSE[i])],
        }
    ),
    "conversations": rows_of(
        lambda i, name: {
            "images": [name],
            "chosen": [*parts(i, {"type": "image"})[:1], said(CAPTIONS[i])],
            "rejected": [*parts(i, {"type": "image"})[:1], said(WORSE[i])],
        }
    ),
    "RSRM": rsrm,
    "RSRM bytes": embedded("image", text=lambda i: json.dumps({"question": QUESTION, **pair(i, rejected=[WORSE[i]])})),
    "LLaMA-Factory": rows_of(
        lambda i, name: {
            "conversations": spoken(i, start="<image>")[:1],
            "chosen": said(CAPTIONS[i], SHAREGPT),
            "rejected": said(WORSE[i], SHAREGPT),
            "images": [name],
        },
        listed,
    ),
    "LLaMA-Factory, Alpaca": rows_of(
        lambda i, name: {"instruction": QUESTION, "input": "", **pair(i), "images": [name]}, listed
    ),
    "LLaMA-Factory, older": rows_of(
        lambda i, name: {"instruction": f"<image>{QUESTION}", "output": [CAPTIONS[i], WORSE[i]], "images": [name]},
        listed,
    ),
    "ms-swift": rows_of(
        lambda i, name: {"messages": spoken(i, of=CHATML), "rejected_response": WORSE[i], "images": [name]}
    ),
    "ms-swift, messages": rows_of(
        lambda i, name: {
            "messages": spoken(i, of=CHATML),
            "rejected_messages": [*spoken(i, of=CHATML)[:1], said(WORSE[i])],
            "images": [name],
        }
    ),
    "ranking": rows_of(lambda i, name: {"path": name, "query": QUESTION, **ranking(i)}),
    "ranking of bytes": embedded(
        "image",
        query=lambda i: QUESTION,
        response=lambda i: ranking(i)["response"],
        human_ranking=lambda i: ranking(i)["human_ranking"],
    ),
    "two outputs": rows_of(
        lambda i, name: {
            "image": name,
            "question": QUESTION,
            **outputs(i, "output_1", "output_2", "human_preference", (1, 2)),
        }
    ),
    "A and B": rows_of(
        lambda i, name: {"tile": name, "prompt": QUESTION, **outputs(i, "response_A", "response_B", "winner", "AB")}
    ),
    "bytes beside a path": embedded(
        "image",
        image_path=lambda i: f"P{i}.jpg",
        question=lambda i: QUESTION,
        chosen=CAPTIONS.__getitem__,
        rejected=WORSE.__getitem__,
    ),
    "named": rows_of(
        lambda i, name: {
            "before": "tile_0.png",
            "after": name,
            "question": QUESTION,
            "better": CAPTIONS[i],
            "worse": WORSE[i],
        },
        listed,
        flags=["--columns", "image=after", "chosen=better", "rejected=worse"],
    ),
}

PROMPTS = {
    "prompt": rows_of(lambda i, name: {"image": name, "prompt": QUESTION, "solution": CAPTIONS[i]}),
    "filename": rows_of(lambda i, name: {"filename": name, "prompt": f"<image>{QUESTION}", "solution": CAPTIONS[i]}),
    "question": rows_of(lambda i, name: {"img": name, "question": QUESTION, "answer": CAPTIONS[i]}),
    "query": rows_of(lambda i, name: {"images": [name], "query": QUESTION, "response": CAPTIONS[i]}),
    "text": rows_of(lambda i, name: {"file": name, "text": QUESTION, "ground_truth": CAPTIONS[i]}),
    "named": rows_of(
        lambda i, name: {"tile": name, "thumb": "tile_0.png", "ask": QUESTION, "gt": CAPTIONS[i]},
        flags=["--columns", "image=tile", "prompt=ask", "solution=gt"],
    ),
    "bytes": embedded("image", path=lambda i: f"P{i}.jpg", prompt=lambda i: QUESTION, answer=CAPTIONS.__getitem__),
    **{name: TURNS[name] for name in ("LLaVA", "ShareGPT", "messages", "parts", "Alpaca", "inline")},
}
