"""The published layouts, read from small files in the form of their authors; and what can be wrong with such files."""

import shutil

import pytest
from helpers import data_folder
from helpers.benchmark_files import change, declared, draw, fails, lr_files, made, prompts, write

from rs_rlhf.evaluation.layouts import lettered
from rs_rlhf.evaluation.reader import read_benchmark


@pytest.fixture
def lr(tmp_path):
    return lr_files(tmp_path)


# RSVQA


def test_rsvqa_official_files(lr):
    rows = read_benchmark(declared("rsvqa-lr"), lr)
    found = [(row.id, row.reference, row.columns["types"], row.image_names) for row in rows]
    assert found == [
        ("1", "rural", ["rural_urban"], ["1.tif"]),
        ("2", "17", ["count"], ["1.tif"]),
        ("3", "yes", ["presence"], ["3.tif"]),
        ("4", "no", ["comp"], ["3.tif"]),
    ]
    assert prompts(rows)[1] == "How many buildings are there? Answer with a single word or number."
    assert rows[0].group.images == [str(lr / "Images_LR" / "1.tif")] and "question 1" in rows[0].group.where
    core = read_benchmark(declared("rsvqa-lr"), lr, core_only=True)
    assert [row.id for row in core] == ["1", "3", "4"]


def test_rsvqa_hr_has_areas_and_its_second_test_set(lr):
    for part in ("questions", "answers", "images"):
        (lr / f"LR_split_test_{part}.json").rename(lr / f"USGS_split_test_phili_{part}.json")
    (lr / "Images_LR").rename(lr / "Data")
    file = lr / "USGS_split_test_phili_questions.json"
    change(file, "questions", 1, type="area")
    rows = read_benchmark(declared("rsvqa-hr-test2"), lr)
    assert [row.columns["types"] for row in rows] == [["area"], ["count"], ["presence"], ["comp"]]
    assert [row.id for row in read_benchmark(declared("rsvqa-hr-test2"), lr, core_only=True)] == ["3", "4"]
    fails(declared("rsvqa-hr-test1"), lr, "0 files *_split_test_questions.json")


def test_rsvqa_real_tiles_are_found_and_read(lr):
    from rs_rlhf.imagery.raster import read_image

    shutil.copy(data_folder("rsvqa_tif") / "lr_55.tif", lr / "Images_LR" / "3.tif")
    rows = read_benchmark(declared("rsvqa-lr"), lr)
    assert read_image(rows[2].group.images[0]).size == (256, 256)


def test_rsvqa_refuses_what_is_not_whole(lr):
    questions, answers, images = (lr / f"LR_split_test_{one}.json" for one in ("questions", "answers", "images"))
    whole, benchmark = questions.read_text(), declared("rsvqa-lr")
    write(questions, whole[: len(whole) // 2])
    fails(benchmark, lr, str(questions), "not JSON at line 1", "cut off")
    write(questions, [])
    fails(benchmark, lr, "no questions left", "test")
    write(questions, {"answers": []})
    fails(benchmark, lr, '{"questions": [objects]}')
    write(questions, whole)
    change(questions, "questions", 1, question=" ")
    fails(benchmark, lr, "question 1", "`question` is ' '")
    write(questions, whole)
    change(answers, "answers", 2, active=False)
    fails(benchmark, lr, "question 2", "its answers [2] are not all in LR_split_test_answers.json")
    change(answers, "answers", 2, active=True)
    change(images, "images", 3, active=False)
    fails(benchmark, lr, "question 3", "its image 3 is not in LR_split_test_images.json")
    change(images, "images", 3, active=True)
    (lr / "Images_LR" / "3.tif").unlink()
    fails(benchmark, lr, "question 3", "3.tif", "no such file")
    shutil.rmtree(lr / "Images_LR")
    fails(benchmark, lr, "no folder Images_LR of images")
    answers.unlink()
    fails(benchmark, lr, str(answers), "no such file")


def test_types_that_no_question_has_are_refused(lr):
    fails(declared("rsvqa-lr", types=["presence", "colour"]), lr, "`types` asks for 'colour'", "comp, count, presence")
    fails(declared("rsvqa-lr", core_types=["area"]), lr, "`core_types` asks for 'area'", core_only=True)


# The ScoreRS authors' files


def conversation(image, question, answer, **more):
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"image": image, "conversations": turns, **more}


def test_authors_classification(tmp_path):
    rows = [conversation("a.png", "Airport or bare land?", "BareLand"), conversation("b.png", "Which?", "Airport")]
    write(tmp_path / "cls_AID.json", rows)
    draw(tmp_path / "cls_AID" / "a.png")
    fails(declared("aid-authors"), tmp_path, "cls_AID.json, row 1", "b.png", "no such file")
    draw(tmp_path / "cls_AID" / "b.png", 1)
    rows = read_benchmark(declared("aid-authors"), tmp_path)
    assert [(row.id, row.reference) for row in rows] == [("cls_AID-0", "bare land"), ("cls_AID-1", "airport")]
    assert prompts(rows)[0] == "Airport or bare land?" and rows[0].choices == ["airport", "bare land"]
    assert read_benchmark(declared("aid-authors"), tmp_path / "cls_AID.json")[1].id == "cls_AID-1"


def test_authors_rsvqa_types_come_from_the_names_of_the_files(tmp_path):
    for name, answer in (("comp", "no"), ("presence", "yes")):
        file = write(tmp_path / f"RSVQA_HR-{name}_RSVQA.json", [conversation("1.png", "Is it?", answer)])
        draw(file.with_suffix("") / "1.png")
    rows = read_benchmark(declared("rsvqa-hr-authors"), tmp_path)
    assert [(row.columns["types"], row.reference) for row in rows] == [(["comp"], "no"), (["presence"], "yes")]


def test_authors_choice_has_abilities_and_may_name_its_folder(tmp_path):
    question = "What is it?\nA. a port\nB. a farm."
    write(
        tmp_path / "LHRS-Bench.json", [conversation("1.png", question, "B", type=["1", "11"], image_path="pictures")]
    )
    draw(tmp_path / "pictures" / "1.png")
    (row,) = read_benchmark(declared("lhrs-bench-authors"), tmp_path)
    assert row.columns["types"] == ["identity", "reasoning"] and row.choices == ["a port", "a farm"]
    write(tmp_path / "LHRS-Bench.json", [conversation("1.png", question, "B", image_path="../elsewhere")])
    fails(declared("lhrs-bench-authors"), tmp_path, "LHRS-Bench.json, row 0", "leaves image_root")


def test_authors_grounding_boxes_are_pixels_of_the_image(tmp_path):
    file = tmp_path / "VG_DOIR_RSVG_test.json"
    write(
        file,
        [
            conversation("1.png", "The ship", "[1, 2, 30, 40]"),
            conversation("1.png", "Two", [[1, 2, 3, 4], [5, 6, 7, 8]]),
        ],
    )
    draw(file.with_suffix("") / "1.png")
    rows = read_benchmark(declared("dior-rsvg-authors"), tmp_path)
    assert rows[0].columns == {"boxes": [[1, 2, 30, 40]], "size": [84, 56], "types": []} and rows[0].reference == ""
    assert rows[1].columns["boxes"] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    write(file, [conversation("1.png", "The ship", "left")])
    fails(declared("dior-rsvg-authors"), tmp_path, "row 0", "holds no box")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("[{", "not JSON at line 1, column 3"),
        ('[\n{"image": "1.png"},\n{"image', "not JSON at line 3"),
        ({"a": 1}, "expected a list of objects"),
        ([{"image": "1.png"}], "no `conversations` (it has image)"),
        ([{"image": "1.png", "conversations": [{"value": "Is it?"}]}], "expected a question and its answer"),
        ([conversation("1.png", "Is it?", " ")], "the answer is ' '"),
        ([conversation("", "Is it?", "yes")], "`image` is ''"),
    ],
)
def test_authors_files_that_cannot_be_used(tmp_path, rows, said):
    fails(made(task="vqa", layout="authors"), tmp_path, "no file *.json")
    write(tmp_path / "asked.json", rows)
    draw(tmp_path / "asked" / "1.png")
    fails(made(task="vqa", layout="authors"), tmp_path, "asked.json", said)


# LHRS-Bench, DIOR-RSVG, VRSBench, captions


def test_lhrs_bench(tmp_path):
    pair = {
        "question": "What is it?",
        "choices": "A. a port; B. 1.5 km; C. a farm, or two.",
        "answer": "C.",
        "type": ["2", "1"],
    }
    held = {"qtype": {"1 identity": 4, "2 color": 1}, "data": [{"filename": "x.png", "qa_pairs": [pair, pair]}]}
    file = write(tmp_path / "qa.json", held)
    draw(tmp_path / "images" / "x.png")
    rows = read_benchmark(declared("lhrs-bench"), tmp_path)
    assert [row.id for row in rows] == ["0-0", "0-1"] and rows[0].choices == ["a port", "1.5 km", "a farm, or two"]
    assert rows[0].reference == "C" and rows[0].columns["types"] == ["color", "identity"]
    assert prompts(rows)[0].startswith("What is it?\nA. a port\nB. 1.5 km\nC. a farm, or two\nAnswer")
    pair["answer"] = "D"
    write(file, held)
    fails(declared("lhrs-bench"), tmp_path, "row 0, question 0", "the answer 'D'", "is no letter of the choices")
    pair |= {"answer": "A", "type": ["7"]}
    write(file, held)
    fails(declared("lhrs-bench"), tmp_path, "`type` 7 is not in the file's `qtype` (1, 2)")
    assert lettered("no choices here") == [] and lettered("B. one A. two") == []


XML = """<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<annotation><filename>{name}.jpg</filename><size><width>84</width><height>56</height><depth>3</depth></size>{objects}</annotation>"""
OBJECT = """<object><name>ship</name><pose>Unspecified</pose><bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax>
<ymax>{3}</ymax></bndbox><description>{4}</description></object>"""


def test_dior_rsvg(tmp_path):
    boxes = {"00001": [(1, 2, 30, 40, "A ship")], "00002": [(5, 6, 7, 8, "A big ship"), (9, 10, 20, 30, "A port")]}
    for name, own in boxes.items():
        text = XML.format(name=name, objects="".join(OBJECT.format(*one) for one in own))
        write(tmp_path / "Annotations" / f"{name}.xml", text)
        draw(tmp_path / "JPEGImages" / f"{name}.jpg", int(name))
    write(tmp_path / "test.txt", "0\n2\n")
    rows = read_benchmark(declared("dior-rsvg"), tmp_path)
    assert [(row.id, row.image_names, row.columns["boxes"]) for row in rows] == [
        ("0", ["00001.jpg"], [[1, 2, 30, 40]]),
        ("2", ["00002.jpg"], [[9, 10, 20, 30]]),
    ]
    assert "Where is A port?" in prompts(rows)[1] and rows[1].columns["size"] == [84, 56] and rows[1].reference == ""
    write(tmp_path / "test.txt", "0\n3\n")
    fails(declared("dior-rsvg"), tmp_path, "test.txt", "place 3 is listed", "3 objects")
    write(tmp_path / "test.txt", "0\nfour\n")
    fails(declared("dior-rsvg"), tmp_path, "test.txt, line 2", "'four'")
    write(tmp_path / "test.txt", "\n")
    fails(declared("dior-rsvg"), tmp_path, "no questions left")
    write(tmp_path / "test.txt", "0\n")
    write(
        tmp_path / "Annotations" / "00001.xml", XML.format(name="00001", objects=OBJECT.format("", 2, 3, 4, "A ship"))
    )
    fails(declared("dior-rsvg"), tmp_path, "00001.xml, object 0", "four numbers")
    write(tmp_path / "Annotations" / "00001.xml", "<annotation><object>")
    fails(declared("dior-rsvg"), tmp_path, "00001.xml", "not XML")
    (tmp_path / "test.txt").unlink()
    fails(declared("dior-rsvg"), tmp_path, "Annotations/*.xml and test.txt")


def test_vrsbench_boxes_become_pixels(tmp_path):
    row = {
        "image_id": "P1.png",
        "question": "The ship.",
        "ground_truth": "{<25><50><50><100>}",
        "question_id": 7,
        "type": "ref",
        "unique": False,
    }
    flat = {
        **row,
        "question_id": 8,
        "ground_truth": "{<0><10><50><10>}",
        "unique": True,
    }  # the real file has such boxes
    file = write(tmp_path / "VRSBench_EVAL_referring.json", [row, flat])
    draw(tmp_path / "Images_val" / "P1.png", width=80, height=40)
    rows = read_benchmark(declared("vrsbench-ref"), tmp_path)
    assert [row.columns["boxes"] for row in rows] == [[[20, 20, 40, 40]], [[0, 4, 40, 4]]]
    assert [(row.id, row.columns["types"]) for row in rows] == [("7", ["non_unique"]), ("8", ["unique"])]
    write(file, [{**row, "ground_truth": "{<25><50><50>}"}])
    fails(declared("vrsbench-ref"), tmp_path, "row 0", "{<x1><y1><x2><y2>} in 0-100")
    write(file, [row, row])
    fails(declared("vrsbench-ref"), tmp_path, "row 1", "the id '7'", "unique")


def test_rsicd_captions_and_retrieval(tmp_path):
    said = [{"raw": "a port .", "tokens": ["a", "port"]}, {"raw": "many ships .", "tokens": []}]
    images = [
        {"filename": f"{i}.png", "imgid": i, "split": one, "sentences": said}
        for i, one in enumerate(("train", "test"))
    ]
    file = write(tmp_path / "dataset_rsicd.json", {"images": images, "dataset": "rsicd"})
    draw(tmp_path / "RSICD_images" / "1.png")
    for name in ("rsicd-captions", "rsicd-retrieval"):
        (row,) = read_benchmark(declared(name), tmp_path)
        assert (row.id, row.captions, row.reference) == ("1.png", ["a port .", "many ships ."], "")
    fails(declared("rsicd-captions", split="val"), tmp_path, "no questions left", "'val'")
    images[1]["sentences"] = []
    write(file, {"images": images})
    fails(declared("rsicd-captions"), tmp_path, "image 1", "expected [{raw}]")
