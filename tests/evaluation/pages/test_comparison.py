"""The page of a comparison in a real browser, and the files beside it."""

import json

import numpy as np
import pytest
from helpers import picture
from helpers.evaluation_runs import records, write_run
from PIL import Image

from rs_rlhf.cli import main as cli
from rs_rlhf.evaluation.benchmark import load_benchmark
from rs_rlhf.evaluation.compare import compare
from rs_rlhf.evaluation.pages.comparison import SHOWN, write
from rs_rlhf.evaluation.reader import dataset_hash, read_benchmark

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> & \u2028 @@DATA@@"
# 40 questions: 10 right in both, 2 in A only, 12 in B only, 16 in neither.
A_RIGHT = [1] * 10 + [1] * 2 + [0] * 12 + [0] * 16
B_RIGHT = [1] * 10 + [0] * 2 + [1] * 12 + [0] * 16


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    (folder / "data").mkdir()
    for i in range(3):
        picture(i).save(folder / "data" / f"{i}.png")
    names = [str(folder / "data" / f"{i}.png") for i in range(3)]
    a = write_run(folder / "a", {"aid": records(A_RIGHT, images=names)}, "org/a")
    answers = records(B_RIGHT, images=names)
    answers[10]["output"] = HOSTILE
    b = write_run(folder / "b", {"aid": answers}, "org/<b>")
    assert cli.main(["eval", "compare", str(a), str(b), "--task", "aid", "--out", str(folder / "out")]) == 0
    return folder / "out"


def embedded(path):
    return json.loads(path.read_text(encoding="utf-8").split('id="data">')[1].split("</script>")[0])


def test_the_files_of_a_comparison(page, capsys):
    flips = [json.loads(line) for line in (page / "flips_aid.jsonl").read_text().rstrip("\n").split("\n")]
    ways = [flip["direction"] for flip in flips]
    assert ways == ["right_to_wrong"] * 2 + ["wrong_to_right"] * 12
    assert flips[0]["id"] == "q10" and flips[0]["b"]["output"] == HOSTILE and flips[0]["a"]["output"] == "an answer 10"
    told = json.loads((page / "compare.json").read_text())
    assert told["flips"] == {"aid": {"right_to_wrong": 2, "wrong_to_right": 12}} and told["rows"][0]["only_b"] == 12
    table = (page / "compare.md").read_text()
    assert "| aid | accuracy | 40 | 0.3000 | 0.5500 | +0.2500 |" in table and "- aid, accuracy: B is better" in table
    text = (page / "compare.html").read_text()
    assert "<script>window" not in text and "&lt;b&gt;" in text.split("</title>")[0]
    data = embedded(page / "compare.html")
    (task,) = data["tasks"]
    assert len(data["images"]) == 3 and task["total"] == 14
    assert task["cards"][0]["parts"][:2] == [["A: org/a", "an answer 10", "right"], ["B: org/<b>", HOSTILE, "wrong"]]
    assert all(flip["image"] is not None for flip in task["cards"]) and all(
        uri.startswith("data:image/jpeg;base64,") for uri in data["images"]
    )


def test_pictures_that_cannot_be_shown_have_a_reason_and_cards_a_cap(tmp_path):
    count = SHOWN + 50
    paths = [str(tmp_path / "gone.png"), str(tmp_path / "a" / "results.json"), None]
    a = write_run(tmp_path / "a", {"aid": records([0] * count, images=paths)})
    b = write_run(tmp_path / "b", {"aid": records([1] * count, images=paths)})
    write(compare(a, b), tmp_path / "out")
    (task,) = embedded(tmp_path / "out" / "compare.html")["tasks"]
    assert task["total"] == count and len(task["cards"]) == SHOWN
    why = {int(flip["id"][1:]) % 3: flip["why"] for flip in task["cards"]}
    assert "no such file" in why[0] and "known format" in why[1] and "inside the data's file" in why[2]
    assert all(flip["image"] is None for flip in task["cards"])
    assert len((tmp_path / "out" / "flips_aid.jsonl").read_text().splitlines()) == count


def test_pictures_are_read_as_the_run_read_them(tmp_path):
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(tmp_path / "wide.png")
    settings = {"reading": {"stretch": "fixed", "stretch_range": [0.0, 4095.0], "image_root": "elsewhere"}}
    shown = {}
    for name, own in (("as_run", settings), ("bare", {"reading": {}})):
        runs = [
            write_run(
                tmp_path / name / side, {"aid": records([i] * 2, images=[str(tmp_path / "wide.png")])}, settings=own
            )
            for i, side in enumerate("ab")
        ]
        write(compare(*runs), tmp_path / name / "out")
        shown[name] = embedded(tmp_path / name / "out" / "compare.html")
    assert len(shown["as_run"]["images"]) == 1 and shown["as_run"]["tasks"][0]["cards"][0]["why"] == ""
    assert shown["bare"]["images"] == [] and "stretch" in shown["bare"]["tasks"][0]["cards"][0]["why"]


def test_pictures_inside_parquet_are_shown_where_the_data_are_given(tmp_path, capsys):
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageColumn

    picture(0).save(tmp_path / "0.png")
    content = (tmp_path / "0.png").read_bytes()
    rows = {"image": [{"bytes": content, "path": f"{i}.png"} for i in range(2)], "label": ["Port", "River"]}
    features = Features({"image": ImageColumn(), "label": Value("string")})
    (tmp_path / "aid_rsicd").mkdir()
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "aid_rsicd" / "validation-0.parquet")
    read = read_benchmark(load_benchmark("aid-rsicd"), tmp_path / "aid_rsicd")
    folders = []
    for i, side in enumerate("ab"):
        own = [{**one, "id": row.id} for one, row in zip(records([i] * 2), read, strict=True)]
        folders.append(str(write_run(tmp_path / side, {"aid-rsicd": own}, dataset_hash=dataset_hash(read))))
    command = ["eval", "compare", *folders, "--out", str(tmp_path / "out")]
    for more, count in (
        ([], 0),
        (["--data_root", str(tmp_path)], 1),
        (["--data", f"aid-rsicd={tmp_path}/aid_rsicd"], 1),
    ):
        assert cli.main([*command, *more]) == 0
        data = embedded(tmp_path / "out" / "compare.html")
        assert len(data["images"]) == count and {flip["why"] == "" for flip in data["tasks"][0]["cards"]} == {
            count == 1
        }
    rows["label"][0] = "Farm"
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "aid_rsicd" / "validation-0.parquet")
    capsys.readouterr()
    assert cli.main([*command, "--data_root", str(tmp_path)]) == 1
    assert "not the data that the questions are of" in capsys.readouterr().err
    assert cli.main([*command, "--data", "aid-rscid=x"]) == 1
    assert "--data aid-rscid=x: expected TASK=PATH with TASK one of aid-rsicd" in capsys.readouterr().err


def test_the_page_filters_stays_inert_and_asks_no_network(browser, page):
    browser.get((page / "compare.html").as_uri())
    check_page(browser)


def check_page(browser):
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 10).until(
        lambda it: it.execute_script(
            "return document.images.length === 14 && [...document.images].every(i => i.complete && i.naturalWidth > 0)"
        )
    )
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert urls and all(url.startswith(("file:", "data:")) for url in urls), urls
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.hacked === undefined && !document.querySelector('img[src=x]')")
    assert HOSTILE in browser.execute_script("return document.querySelector('article').textContent")

    def press(text):
        browser.find_element("xpath", f"//button[starts-with(., '{text}')]").click()
        shown = "return [...document.querySelectorAll('article')].filter(a => a.offsetParent).map(a => a.className)"
        return browser.execute_script(shown)

    assert press("right → wrong (2)") == ["right_to_wrong"] * 2
    assert press("count (7)") == ["right_to_wrong"]  # q10; q11 asks for presence
    assert "1 shown of 14" in browser.find_element("css selector", "[role=status]").text
    assert press("wrong → right (12)") == ["wrong_to_right"] * 6
    assert len(press("presence")) == 6
    assert "B is better at n = 40" in browser.find_element("css selector", "header").text
    charts = browser.execute_script("return [...document.querySelectorAll('figure svg')].map(s => s.ariaLabel)")
    assert charts == ["B - A, points, 95% intervals", "aid: accuracy, 95% intervals"]
    above = "document.querySelector('table').compareDocumentPosition(document.querySelector('article')) & 4"
    assert browser.execute_script(f"return {above}")


def test_a_comparison_in_which_nothing_changed_is_no_empty_page(browser, tmp_path):
    a, b = (write_run(tmp_path / side, {"aid": records([1, 0, 1])}, model=f"org/{side}") for side in "ab")
    write(compare(a, b), tmp_path / "out")
    browser.get((tmp_path / "out" / "compare.html").as_uri())
    text = browser.execute_script("return document.body.innerText")
    assert "no difference can be told at n = 3" in text and "No question's answer became right or wrong" in text
    assert "+0.0000" in text and browser.execute_script("return document.querySelectorAll('figure svg').length") == 2
    assert browser.get_log("browser") == []
