"""The published layouts, read from small files in the form of their authors; and what can be wrong with such files."""

import json
import shutil

import pytest
from helpers import data_folder
from helpers.benchmark_files import change, declared, draw, fails, lr_files, made, prompts, write

from rs_rlhf.evaluation.reader import read_benchmark, read_task, references_of


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


def test_lhrs_bench_in_the_folders_and_cases_that_people_have(tmp_path, capsys):
    pair = {"question": "Where?", "choices": "A. N. America B. S. America C. Asia", "answer": "b", "type": ["1"]}
    data = [{"filename": f"{i}.png", "qa_pairs": [pair]} for i in range(3)]
    held = {"qtype": {"1 identity": 3}, "data": data}
    write(tmp_path / "qa.json", held)
    fails(declared("lhrs-bench"), tmp_path, "no folder images of images")
    for i in range(3):
        draw(tmp_path / "imgs_jpg" / f"{i}.jpg", i)
    rows = read_benchmark(declared("lhrs-bench"), tmp_path)
    assert [row.image_names for row in rows] == [["0.jpg"], ["1.jpg"], ["2.jpg"]] and capsys.readouterr().out == ""
    assert rows[0].reference == "B" and rows[0].choices == ["N. America", "S. America", "Asia"]
    draw(tmp_path / "imgs_png" / "0.png")  # not unpacked whole
    assert read_benchmark(declared("lhrs-bench"), tmp_path)[0].image_names == ["0.jpg"]
    assert "imgs_jpg" in capsys.readouterr().out
    for i in (1, 2):
        draw(tmp_path / "imgs_png" / f"{i}.png", i)
    assert read_benchmark(declared("lhrs-bench"), tmp_path)[0].image_names == ["0.png"]
    assert "imgs_png" in capsys.readouterr().out
    assert read_benchmark(declared("lhrs-bench", images="imgs_jpg"), tmp_path)[0].image_names == ["0.jpg"]
    held["data"][1]["filename"] = "../qa.json"
    write(tmp_path / "qa.json", held)
    fails(declared("lhrs-bench"), tmp_path, "row 1", "leaves image_root")


def test_meter_ml_official_files(tmp_path):
    types = [
        "CAFOs",
        "WWTreatment",
        "Negative",
        "CAFOs-Landfills",
        "RefineriesAndTerminals-WWTreatment-Landfills",
        "R&Ts",
    ]
    features = [
        {"type": "Feature", "geometry": None, "properties": {"Image_Folder": f"test_images/{i}_4.5", "Type": kind}}
        for i, kind in enumerate(types)
    ]
    for i in range(len(types)):
        draw(tmp_path / "test_images" / f"{i}_4.5" / "naip.png", i)
        write(tmp_path / "test_images" / f"{i}_4.5" / "sentinel-1.npy", "")
    write(tmp_path / "train_dataset.geojson", {"features": []})
    for name in ("test.geojson", "test_dataset.geojson"):
        write(tmp_path / name, {"type": "FeatureCollection", "features": features})
        rows = read_benchmark(declared("meter-ml"), tmp_path)
        assert [row.reference for row in rows[:3]] == [
            "concentrated animal feeding operation",
            "wastewater treatment plant",
            "other",
        ]
        assert references_of(rows[3]) == ["concentrated animal feeding operation", "landfill"]
        assert references_of(rows[4])[0] == references_of(rows[5])[0] == "refinery or petroleum terminal"
        assert rows[0].id == "test_images/0_4.5" and rows[0].image_names == ["test_images/0_4.5/naip.png"]
        assert len(rows[0].choices) == 7 and "landfill" in prompts(rows)[0]
        if name == "test.geojson":
            (tmp_path / name).unlink()
    write(tmp_path / "test.geojson", {"features": features})
    fails(declared("meter-ml"), tmp_path, "2 files test*.geojson, expected one")
    (tmp_path / "test.geojson").unlink()
    features[1]["properties"]["Type"] = "Volcano"
    write(tmp_path / "test_dataset.geojson", {"features": features})
    fails(
        declared("meter-ml"), tmp_path, "test_dataset.geojson, feature 1", "'volcano' is none of the declared choices"
    )
    features[1]["properties"] = {"Type": "CAFOs"}
    write(tmp_path / "test_dataset.geojson", {"features": features})
    fails(declared("meter-ml"), tmp_path, "feature 1", "no `Image_Folder`")


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


def test_single_boxes_outside_of_their_image_are_left_out_and_counted(tmp_path, capsys):
    inside = {"image_id": "P1.png", "question": "The ship.", "ground_truth": "{<25><50><50><100>}", "unique": True}
    wrong = ["{<25><50><150><100>}", "{<0><0><50><50>}{<0><0><50><999>}"]
    made_of = [inside, *({**inside, "ground_truth": boxes} for boxes in wrong), inside]
    file = write(tmp_path / "VRSBench_EVAL_referring.json", made_of)
    draw(tmp_path / "Images_val" / "P1.png", width=80, height=40)
    assert [row.id for row in read_benchmark(declared("vrsbench-ref"), tmp_path)] == ["0", "3"]
    printed = capsys.readouterr().out
    assert "2 of 4 questions left out" in printed and f"{file}, row 1" in printed and "80x40" in printed
    benchmark = declared("vrsbench-ref")
    task = read_task(benchmark, paths={benchmark.name: tmp_path})
    assert task.error_rows == 2 and len(task.rows) == 2
    write(file, made_of[1:3])
    fails(benchmark, tmp_path, "row 0", "does not lie in the image of 80x40 pixels")
    rows = [{"image": "a.png", "prompt": "The ship", "boxes": [box]} for box in ([0, 0, 81, 41], [-50, 0, 10, 10])]
    write(tmp_path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    draw(tmp_path / "a.png", width=80, height=40)
    asked = made(task="grounding", layout="rows", annotations="rows.jsonl")
    assert [row.columns["boxes"] for row in read_benchmark(asked, tmp_path)] == [[[0, 0, 81, 41]]]  # rounded up


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
