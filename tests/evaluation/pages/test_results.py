"""The page of an evaluation: its figures, its confusion matrix, and in a real browser its wrong answers."""

import json

import pytest
from helpers import picture
from helpers.evaluation_runs import records, write_run

from rs_rlhf.evaluation.pages.cards import ANOTHER, LABELS, UNPARSEABLE, confusion_chart, type_chart
from rs_rlhf.evaluation.pages.results import SHOWN, write_results_page
from rs_rlhf.runs.page import BLANK

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> & \u2028"


def answers(pairs):
    """Records of closed answers: (right answer, parsed answer or `None`, what was written)."""
    made = records([given == right for right, given, _ in pairs])
    return [
        {**record, "references": [right], "answer": given, "output": written}
        for record, (right, given, written) in zip(made, pairs, strict=True)
    ]


def cells(chart):
    import re

    found = re.findall(r'aria-label="([^",]*), answered ([^"]*): (\d+) of (\d+)"', chart["svg"])
    return {(right, given): (int(n), int(total)) for right, given, n, total in found}


def test_the_confusion_matrix_counts_every_answer():
    pairs = [("Port", "port", "A port.")] * 3 + [("Port", "river", "river"), ("Port", "marina", "marina")]
    pairs += [
        ("River", None, "who knows"),
        ("River", None, "  "),
        ("River", "river", "river"),
        ("River", "port", "port"),
    ]
    pairs = [(right, given, written) for right, given, written in pairs]
    made = answers(pairs)
    for record in made:
        record["strict"] = (record["answer"] or "") == record["references"][0].lower()
    assert cells(confusion_chart("aid", made)) == {
        ("Port", "Port"): (3, 5),
        ("Port", "River"): (1, 5),
        ("Port", ANOTHER): (1, 5),
        ("River", "River"): (1, 4),
        ("River", "Port"): (1, 4),
        ("River", UNPARSEABLE): (1, 4),
        ("River", BLANK): (1, 4),
    }


def test_many_classes_are_gathered_and_open_answers_have_no_matrix():
    many = answers([(f"class {i:02}", f"class {i:02}", "x") for i in range(LABELS + 3) for _ in range(2)])
    found = cells(confusion_chart("aid", many))
    assert len(found) == LABELS + 1 and found["(other classes)", "(other classes)"] == (6, 6)
    assert sum(n for n, _ in found.values()) == len(many)
    assert confusion_chart("one", answers([("yes", "no", "no")] * 4)) is None
    assert confusion_chart("captions", [{"id": "1", "answer": "a port", "references": ["a port"]}]) is None
    boxes = [{"id": "1", "strict": True, "references": ["[1, 2]"], "boxes": []}] * 2
    assert confusion_chart("grounding", boxes) is None


def test_accuracy_by_type_of_several_models():
    part = {"n": 20, "accuracy": 0.5, "interval": [0.3, 0.7]}
    figures = {"n": 40, "accuracy": 0.6, "interval": [0.4, 0.75], "types": {"count": part, "": part}}
    svg = type_chart("vqa", {"A": figures, "B": {"n": 40, "accuracy": 0.25, "interval": None}})["svg"]
    assert 'aria-label="all (n = 40) A: 60.0% (40.0% to 75.0%)"' in svg and 'B: 25.0%"' in svg
    assert 'aria-label="count (n = 20) A: 50.0% (30.0% to 70.0%)"' in svg and "count (n = 20) B" not in svg
    assert type_chart("captions", {"A": {"n": 4, "metrics": {"CIDEr": 1.0}}}) is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    for i in range(3):
        picture(i).save(folder / f"{i}.png")
    names = [str(folder / f"{i}.png") for i in range(3)]
    own = records([0] * (SHOWN + 4) + [1] * 20, images=names)
    own[0]["output"], own[1]["output"] = HOSTILE, " "
    own[2]["image"] = None
    captions = [{"id": str(i), "output": "a port", "answer": "a port", "references": ["x"]} for i in range(2)]
    types = {"count": {"n": 42, "accuracy": 0.2, "interval": [0.1, 0.3]}}
    write_run(
        folder / "run", {"aid": own}, "org/<b>", types=types, interval=[0.2, 0.3], title="AID", upstream_compat=None
    )
    results = json.loads((folder / "run" / "results.json").read_text())
    results["tasks"]["aid"]["model"] = "org/<b>"
    results["tasks"]["rsicd"] = {"n": 2, "model": "org/<b>", "metrics": {"CIDEr": 0.5}, "published": []}
    (folder / "run" / "results.json").write_text(json.dumps(results))
    (folder / "run" / "samples_rsicd.jsonl").write_text("".join(json.dumps(one) + "\n" for one in captions))
    write_results_page(folder / "run", {"aid": {"q2": {"bytes": (folder / "2.png").read_bytes()}}})
    return folder / "run"


def test_the_page_shows_figures_and_wrong_answers(browser, folder):
    size = {"width": 400, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get((folder / "results.html").as_uri())
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert urls and all(url.startswith(("file:", "data:")) for url in urls), urls
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.execute_script("return window.hacked === undefined && !document.querySelector('img[src=x]')")
    cards = browser.execute_script("return [...document.querySelectorAll('article')].map(a => a.textContent)")
    assert len(cards) == SHOWN and HOSTILE in cards[0] and BLANK in cards[1] and "class 0" in cards[0]
    assert browser.execute_script("return document.querySelectorAll('article img').length") == SHOWN
    text = browser.execute_script("return document.body.innerText")
    assert f"{SHOWN} shown of {SHOWN + 4} (the page holds {SHOWN}" in text and "CIDEr 0.5" in text
    assert "Answers are not right or wrong here." in text and "23.8%" in text
    labels = browser.execute_script("return [...document.querySelectorAll('figure svg')].map(s => s.ariaLabel)")
    assert labels == ["aid: accuracy, 95% intervals", "aid: right answers and given ones"]
    browser.find_element("xpath", "//button[starts-with(., 'count')]").click()
    shown = "return [...document.querySelectorAll('article')].filter(a => a.offsetParent).length"
    assert browser.execute_script(shown) == SHOWN // 2


def test_answers_that_are_gone_are_told_and_the_others_shown(tmp_path):
    write_run(tmp_path, {"aid": records([0, 1]), "old": records([1])}, upstream_compat=None)
    results = json.loads((tmp_path / "results.json").read_text())
    for figures in results["tasks"].values():
        figures["model"] = "m"
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "samples_old.jsonl").unlink()
    page = write_results_page(tmp_path).read_text()
    assert "The answers of old are not shown" in page and "Question 0?" in page
