"""The page to look through scored data: its numbers over real HTTP, its images, bad requests, and a real browser."""

import io
import json
import re
import shlex
import signal
import sys
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import picture
from helpers.pages import Served
from PIL import Image
from scipy.stats import spearmanr

from rs_rlhf.cli import main as cli
from rs_rlhf.curation import cut as cuts
from rs_rlhf.curation.browser import app as browse
from rs_rlhf.curation.browser.images import Pictures
from rs_rlhf.curation.browser.marks import Marks
from rs_rlhf.curation.browser.view import DRAWN, Ranked
from rs_rlhf.curation.options import CurateOptions, SampleOptions
from rs_rlhf.curation.samples import read_scored
from rs_rlhf.curation.shards import read_scores
from rs_rlhf.errors import RequestError
from rs_rlhf.options import parse

HOSTILE = "<img src=x onerror='window.hacked = 1'> & </script><script>window.hacked = 1</script>"
ROWS = 60


class Browsing(Served):
    """`rs-rlhf browse` on a free port."""

    def __init__(self, *arguments) -> None:
        super().__init__("browse", *arguments)

    def get(self, path, **parameters):
        reply = self.client.get(f"/api/{path}", params=parameters)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def pages(self, **parameters):
        """All rows of a view, page by page."""
        rows, page = [], 0
        while got := self.get("rows", page=page, size=7, **parameters)["rows"]:
            rows, page = rows + got, page + 1
        return rows


def score(data, folder, scorer="length", *flags):
    command = ["--input", str(data), "--output", str(folder), "--scorer", scorer, "--rows_per_shard", "16"]
    assert cli.run("score", [*command, "--max_error_fraction", "1", *flags]) == 0
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Captions, single texts and conversations of several sources; two images are not as they should be."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "im").mkdir()
    for i in range(ROWS):
        picture(i, 600, 300).save(folder / "im" / f"{i}.png")
    (folder / "im" / "1.png").write_bytes((folder / "im" / "1.png").read_bytes()[:200])
    words = np.random.default_rng(0).integers(1, 30, (ROWS, 3))
    texts = [[" ".join(["word"] * count) + f" of {i}" for count in own] for i, own in enumerate(words)]
    texts[4][0] = HOSTILE
    texts[6][0] = "A harbour, seen from ABOVE"
    rows = []
    for i, own in enumerate(texts):
        row = {"image": f"im/{i}.png", "label": ["port", "forest", None][i % 3]}
        if i < 30:
            rows.append(row | {"captions": own, "source": "one"})
        elif i < 45:
            rows.append(row | {"text": own[0], "source": "two"})
        else:
            turns = [
                {"from": "human", "value": f"<image>\nWhat is {i}?"},
                {"from": "gpt", "value": own[0]},
                {"from": "human", "value": "And more?"},
                {"from": "gpt", "value": own[1]},
            ]
            rows.append(row | {"conversations": turns, "source": "talk"})
    rows[31]["image"] = "im/nowhere.png"
    rows[32]["image"] = None
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def scores(data, tmp_path_factory):
    return score(data, tmp_path_factory.mktemp("scores") / "length")


@pytest.fixture(scope="module")
def others(data, tmp_path_factory):
    return score(data, tmp_path_factory.mktemp("scores") / "random", "random", "--seed", "3")


@pytest.fixture(scope="module")
def page(scores, others):
    with Browsing(scores, "--compare", others) as page:
        yield page


def by_hand(folder, aggregate=np.mean):
    """Samples of a score folder, worked out one by one: `id`, `texts`, `score`, `source`, `label`."""
    samples, last = [], None
    for line in read_scores(folder).to_pylist():
        if line["whole"] and line["row_id"] == last:
            samples[-1]["lines"].append(line)
        else:
            samples.append({"id": line["row_id"], "lines": [line], "source": line["source"], "label": line["label"]})
        last = line["row_id"]
    for sample in samples:
        found = [line["score"] for line in sample["lines"]]
        sample["score"] = None if None in found else float(np.float32(aggregate(found)))
        sample["texts"] = [line["text"] for line in sample["lines"]]
    ranked = sorted((s for s in samples if s["score"] is not None), key=lambda s: -s["score"])  # stable
    return samples, ranked


def told(row):
    return row["id"], [text["text"] for text in row["texts"]]


def same(rows, samples):
    assert [told(row) for row in rows] == [(sample["id"], sample["texts"]) for sample in samples]


# What the numbers are


@pytest.mark.parametrize("cut", [{"top": 0.3}, {"top": 1}, {"threshold": 12}, {"threshold": 8.5}, {"threshold": 99}])
def test_what_a_cut_keeps(page, scores, cut):
    samples, ranked = by_hand(scores)
    kept = (
        ranked[: cuts.count_of(cut["top"], len(ranked))]
        if "top" in cut
        else [sample for sample in ranked if sample["score"] >= cut["threshold"]]
    )
    summary = page.get("summary", **cut)
    assert summary["kept"]["samples"] == [len(kept), len(ranked)]
    assert summary["kept"]["texts"] == sum(len(sample["texts"]) for sample in kept)
    assert summary["kept"]["rows"] == [len({sample["id"] for sample in kept}), ROWS]
    assert summary["cut"]["top"] == (cut["top"] if "top" in cut else len(kept) / len(ranked))
    if "top" in cut:
        assert summary["cut"]["threshold"] == kept[-1]["score"] == float(summary["cut"]["threshold_text"])
        ties = [sample for sample in ranked[len(kept) :] if sample["score"] == kept[-1]["score"]]
        assert summary["cut"]["equal_dropped"] == len(ties)
    for key in ("source", "label"):
        groups = {group["name"]: group for group in summary[f"{key}s"]["groups"]}
        assert set(groups) == {sample[key] for sample in samples} and summary[f"{key}s"]["left_out"] == 0
        for name, group in groups.items():
            own = [sample for sample in ranked if sample[key] == name]
            own_kept = [sample for sample in kept if sample[key] == name]
            assert (group["samples"], group["kept"]) == (len(own), len(own_kept))
            assert group["rows"] == len({sample["id"] for sample in samples if sample[key] == name})
            assert group["rows_kept"] == len({sample["id"] for sample in own_kept})
            assert group["mean"] == pytest.approx(np.mean([sample["score"] for sample in own]), rel=1e-5)


def test_the_histogram_is_numpys(page, scores):
    ranked = by_hand(scores)[1]
    values = np.array([sample["score"] for sample in ranked])
    found = page.get("summary")["histogram"]
    assert (found["low"], found["high"], found["all"]) == (values.min(), values.max(), None)
    assert sum(found["counts"]) == len(ranked)
    edges = np.linspace(found["low"], found["high"], len(found["counts"]) + 1)
    assert found["counts"] == np.histogram(values, edges)[0].tolist()
    chosen = page.get("summary", source="talk", low=5, high=20)
    own = [s["score"] for s in ranked if s["source"] == "talk" and 5 <= s["score"] <= 20]
    everywhere = [s["score"] for s in ranked if 5 <= s["score"] <= 20]
    assert sum(chosen["histogram"]["counts"]) == len(own) and sum(chosen["histogram"]["all"]) == len(everywhere)
    assert chosen["selected"]["samples"] == len(own) and chosen["histogram"]["low"] == 5


def test_what_the_views_show(page, scores):
    samples, ranked = by_hand(scores)
    k = cuts.count_of(0.3, len(ranked))
    same(page.pages(view="best"), ranked)
    same(page.pages(view="worst"), ranked[::-1])
    same(page.pages(view="above", top=0.3), ranked[:k][::-1])
    same(page.pages(view="below", top=0.3), ranked[k:])
    rows = page.pages(view="best", top=0.3)
    assert [row["kept"] for row in rows] == [i < k for i in range(len(ranked))]
    assert [row["rank"] for row in rows] == list(range(len(ranked)))
    assert [row["score"] for row in rows] == [sample["score"] for sample in ranked]
    assert [row["texts"][0]["tokens"] for row in rows] == [len(sample["texts"][0].split()) for sample in ranked]
    failed = page.pages(view="errors")
    assert [row["id"] for row in failed] == ["pool.jsonl:31"] and failed[0]["score"] is None
    assert "nowhere.png" in failed[0]["texts"][0]["error"] and failed[0]["texts"][0]["text"] is None
    drawn = [page.pages(view="random", seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == len(ranked) <= DRAWN
    assert sorted(row["row"] for row in drawn[0]) == sorted(row["row"] for row in rows)


def test_filters(page, scores):
    ranked = by_hand(scores)[1]
    for given, fits in (
        ({"source": "two"}, lambda s: s["source"] == "two"),
        ({"label": ""}, lambda s: s["label"] == ""),
        ({"label": "port", "source": "one"}, lambda s: s["label"] == "port" and s["source"] == "one"),
        ({"low": 8, "high": 12}, lambda s: 8 <= s["score"] <= 12),
        ({"search": "SEEN FROM above"}, lambda s: "seen from" in s["texts"][0]),
        ({"search": "of 5"}, lambda s: any("of 5" in text for text in s["texts"])),
        ({"search": "pool.jsonl:7"}, lambda s: s["id"] == "pool.jsonl:7"),
        ({"search": "(.*"}, lambda s: False),
    ):
        expected = [sample for sample in ranked if fits(sample)]
        same(page.pages(view="best", **given), expected)
        summary = page.get("summary", threshold=10, **given)
        kept = [sample for sample in expected if sample["score"] >= 10]
        failed = int(given == {"source": "two"})
        assert summary["selected"] == {"samples": len(expected), "kept": len(kept), "errors": failed}
        same(page.pages(view="below", threshold=10, **given), [s for s in expected if s["score"] < 10])
    assert page.get("rows", view="errors", source="two", label="forest")["total"] == 1
    assert page.get("rows", view="errors", source="one")["total"] == 0


def test_comparing_two_scorers(page, scores, others):
    ranked, other = by_hand(scores)[1], by_hand(others)[1]
    keys = [[(sample["id"], sample["lines"][0]["text_index"]) for sample in own] for own in (ranked, other)]
    ranks = np.array([keys[1].index(key) for key in keys[0]])
    k = cuts.count_of(0.3, len(ranked))
    compared = page.get("summary", top=0.3)["compared"]
    assert compared["name"] == "random" and compared["common"] == len(ranked) == len(other)
    assert compared["both"] == int((ranks[:k] < k).sum())
    values = [[s["score"] for s in ranked], [other[i]["score"] for i in ranks]]
    assert compared["correlation"] == pytest.approx(spearmanr(*values).statistic, abs=1e-6)
    here = [i for i in range(k) if ranks[i] >= k]
    same(page.pages(view="only_here", top=0.3), [ranked[i] for i in sorted(here, key=lambda i: i - ranks[i])])
    there = [i for i in range(k, len(ranked)) if ranks[i] < k]
    rows = page.pages(view="only_there", top=0.3)
    same(rows, [ranked[i] for i in sorted(there, key=lambda i: ranks[i] - i)])
    assert [row["compared"] for row in rows] == [other[ranks[row["rank"]]]["score"] for row in rows]


def test_conversations_by_their_worst_turn_and_rows_as_a_whole(scores):
    flags = ["--per", "row", "--aggregate", "min"]
    for aggregate, function in (("min", np.min), ("mean", np.mean)):
        ranked = Ranked(read_scored(scores, SampleOptions(aggregate=aggregate)))
        assert ranked.scores.tolist() == [sample["score"] for sample in by_hand(scores, function)[1]]
    with Browsing(scores, *flags) as page:
        lines = [line for line in read_scores(scores).to_pylist() if line["score"] is not None]
        rows = {line["row_id"]: [] for line in lines}
        for line in lines:
            rows[line["row_id"]].append(line["score"])
        got = page.pages(view="best")
        assert {row["id"]: row["score"] for row in got} == {row_id: min(own) for row_id, own in rows.items()}
        assert shlex.split(page.get("summary")["cut"]["command"])[4:-2] == flags


def test_the_command_keeps_what_the_page_says(page, scores, tmp_path):
    for i, cut in enumerate(({"top": 0.3}, {"threshold": 11.5})):
        summary = page.get("summary", **cut)
        command = shlex.split(summary["cut"]["command"])
        assert command[:2] == ["rs-rlhf", "curate"] and command[-2:] == ["--output", f"{scores}-kept"]
        assert cli.main([*command[1:-1], str(tmp_path / str(i))]) == 0
        kept = pq.read_table(tmp_path / str(i) / "kept_ids.parquet").to_pylist()
        assert len(kept) == summary["kept"]["texts"]
        shown = page.pages(view="above", **cut)
        ids = {(row["id"], text["index"]) for row in shown for text in row["texts"]}
        assert {(line["row_id"], line["text_index"]) for line in kept} == ids


def test_a_threshold_is_written_so_that_it_means_the_same(scores):
    ranked = Ranked(read_scored(scores))
    for value in (-1e-5, 0.1, 1 / 3, -2.5, 12.0):
        command = shlex.split(browse.command(ranked, {"threshold": str(value)}, ranked.cut(threshold=value)))
        assert np.float32(parse(CurateOptions, command[2:], "rs-rlhf curate").threshold[0]) == np.float32(value)


# Images


def row_of(page, row_id, text=0):
    rows = page.pages(view="best", search=row_id)
    return next(row["row"] for row in rows if row["id"] == row_id and row["texts"][0]["index"] == text)


def test_images_and_questions(page):
    number = row_of(page, "pool.jsonl:5", 2)
    assert page.get(f"row/{number}") == {"images": 1, "prompts": [""], "error": None}
    reply = page.client.get(f"/api/image/{number}/0")
    assert reply.headers["content-type"] == "image/jpeg" and reply.status_code == 200
    shown = Image.open(io.BytesIO(reply.content))
    assert shown.format == "JPEG" and shown.size == (256, 128)
    expected = np.asarray(picture(5, 600, 300).resize((256, 128)), np.float64)
    assert np.abs(np.asarray(shown, np.float64) - expected).mean() < 6
    talk = page.get(f"row/{row_of(page, 'pool.jsonl:50')}")
    assert talk["images"] == 1 and talk["prompts"] == ["What is 50?", "And more?"]
    assert page.get(f"row/{row_of(page, 'pool.jsonl:32')}")["images"] == 0


def test_images_that_are_broken_or_not_there(page):
    for path, status, sentence in (
        (
            f"image/{row_of(page, 'pool.jsonl:1')}/0",
            422,
            r"pool.jsonl:1: image '.*1.png': cannot be decoded, the file",
        ),
        (f"image/{row_of(page, 'pool.jsonl:5')}/1", 404, "pool.jsonl:5 has 1 images; there is no image 1"),
        (f"image/{row_of(page, 'pool.jsonl:32')}/0", 404, "has 0 images"),
        (f"image/{page.pages(view='errors')[0]['row']}/0", 404, "pool.jsonl:31 has 0 images"),
    ):
        reply = page.client.get(f"/api/{path}")
        assert reply.status_code == status and re.search(sentence, reply.json()["error"]), reply.text
    about = page.get(f"row/{page.pages(view='errors')[0]['row']}")
    assert about["images"] == 0 and "nowhere.png" in about["error"]


@pytest.mark.parametrize("format", ["parquet", "tar"])
def test_images_inside_the_data(format, tmp_path):
    import datasets

    contents = []
    for i in range(40):
        stream = io.BytesIO()
        picture(i).save(stream, "PNG")
        contents.append(stream.getvalue())
    (tmp_path / "in").mkdir()
    texts = [" ".join(["word"] * (i + 1)) for i in range(40)]
    if format == "parquet":
        features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
        rows = {"image": [{"bytes": content, "path": None} for content in contents], "caption": texts}
        datasets.Dataset.from_dict(rows, features).to_parquet(str(tmp_path / "in" / "a.parquet"))
    else:
        with tarfile.open(tmp_path / "in" / "a.tar", "w") as tar:
            for i, content in enumerate(contents):
                for name, part in (("png", content), ("txt", texts[i].encode())):
                    info = tarfile.TarInfo(f"{i:04d}.{name}")
                    info.size = len(part)
                    tar.addfile(info, io.BytesIO(part))
    score(tmp_path / "in", tmp_path / "scores")
    pictures = Pictures(Ranked(read_scored(tmp_path / "scores")))
    pictures.expect(range(20))
    for number in [*range(39, -1, -1), *range(40)]:
        shown = np.asarray(Image.open(io.BytesIO(pictures.thumbnail(number, 0))), np.float64)
        assert np.abs(shown - np.asarray(picture(number), np.float64)).mean() < 12
    assert len(pictures.held) == 40 and pictures.size == sum(map(len, contents))


def test_image_options_of_a_command_that_scored_without_them(tmp_path):
    (tmp_path / "in").mkdir()
    wide = Image.fromarray((np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64))
    wide.save(tmp_path / "in" / "w.tif")
    (tmp_path / "in" / "a.jsonl").write_text(json.dumps({"image": "w.tif", "text": "a field"}) + "\n")
    score(tmp_path / "in", tmp_path / "scores")
    ranked = Ranked(read_scored(tmp_path / "scores"))
    with pytest.raises(RequestError, match="stretch: percentile"):
        Pictures(ranked).thumbnail(0, 0)
    shown = np.asarray(Image.open(io.BytesIO(Pictures(ranked, {"stretch": "percentile"}).thumbnail(0, 0))))
    assert shown.shape == (64, 64, 3) and shown.max() > 240 and shown.min() < 15
    sensors = [{"name": "w", "path": "w.*", "stretch": "percentile"}]
    again = Image.open(io.BytesIO(Pictures(ranked, {"sensors": sensors}).thumbnail(0, 0)))
    assert np.array_equal(again, shown)


# What is refused


@pytest.mark.parametrize(
    "path, status, sentence",
    [
        ("summary?top=0", 400, "top is 0.0, expected a share"),
        ("summary?top=1.01", 400, "at most 1"),
        ("summary?top=x", 400, "top is 'x', expected a number"),
        ("summary?top=nan", 400, "top is 'nan', expected a number"),
        ("summary?threshold=inf", 400, "threshold is 'inf'"),
        ("summary?threshold=1e39", 400, "threshold is '1e39'"),
        ("summary?top=0.3&threshold=1", 400, "send one of them"),
        ("summary?tpo=0.3", 400, "no parameter 'tpo'; did you mean 'top'"),
        ("summary?view=best", 400, "no parameter 'view'"),
        ("summary?source=tow", 400, "no sample has the source 'tow'; did you mean 'two'"),
        ("rows?label=%00", 400, "no sample has the label"),
        ("rows?low=3&high=2", 400, "the wrong way round"),
        ("rows?search=" + "x" * 201, 400, "201 characters, at most 200"),
        ("rows?view=bets", 400, "no view 'bets'; did you mean 'best'"),
        ("rows?size=0", 400, "size is 0, expected 1 to 100"),
        ("rows?size=101", 400, "size is 101"),
        ("rows?page=-1", 400, "page is '-1', expected a whole number"),
        ("rows?page=" + "9" * 5000, 400, "expected a whole number"),
        ("rows?seed=1.5", 400, "seed is '1.5'"),
        ("rows?view=sorted&sort=tokns", 400, "sort is 'tokns'; did you mean 'tokens'"),
        ("rows?view=sorted&order=upp", 400, "order is 'upp'; did you mean 'up'"),
        ("row/999999", 404, "there is no sample 999999, only 0 to"),
        ("row/-1", 400, "whole number"),
        ("image/0/x", 400, "the image's number is 'x'"),
        ("image/0", 404, "Not Found"),
        ("nothing", 404, "Not Found"),
        ("row/..%2f..%2fetc", 404, "Not Found"),
    ],
)
def test_bad_requests_get_a_sentence(page, path, status, sentence):
    reply = page.client.get(f"/api/{path}")
    assert reply.status_code == status and sentence in reply.json()["error"], reply.text
    assert page.client.get("/api/rows?page=999999999").json()["rows"] == []


def test_only_reading_and_only_under_its_own_name(page):
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert page.client.request(method, "/api/summary").status_code == 405
    reply = page.client.get("/api/summary", headers={"Host": "attacker.example:80"})
    assert reply.status_code == 403 and "not as 'attacker.example'" in reply.json()["error"]
    for host in ("localhost:8322", "[::1]:8322", "LOCALHOST"):
        assert page.client.get("/api/summary", headers={"Host": host}).status_code == 200
    html = page.client.get("/")
    policy = html.headers["content-security-policy"]
    assert (
        "default-src 'none'" in policy and "script-src 'self';" in policy and "access-control" not in str(html.headers)
    )
    text = html.text + page.client.get("/browse.js").text
    assert not re.search(r"https?://(?!www\.w3\.org/)", text) and "innerHTML" not in text


def test_samples_are_sorted_by_any_score(page, scores, others):
    samples, _ = by_hand(scores)
    tokens = {sample["id"] + str(sample["lines"][0]["text_index"]): sample for sample in samples}
    for sort, order in (("tokens", "down"), ("tokens", "up"), ("score", "up"), ("other", "down")):
        rows = page.pages(view="sorted", sort=sort, order=order)
        assert len(rows) == page.get("summary")["kept"]["samples"][1]
        values = {
            "tokens": [
                sum(one["tokens"] for one in tokens[f"{r['id']}{r['texts'][0]['index']}"]["lines"]) for r in rows
            ],
            "score": [row["score"] for row in rows],
            "other": [row["compared"] for row in rows],
        }[sort]
        assert values == sorted(values, reverse=order == "down")
    assert page.get("summary")["sortable"] == ["score", "tokens", "other"]


def sent(page, path, body, **headers):
    reply = page.client.post(
        f"/api/{path}", content=json.dumps(body), headers={"Content-Type": "application/json", **headers}
    )
    return reply.status_code, reply.json()


def test_marks_survive_a_kill_and_become_kept_ids(scores, data, tmp_path):
    killed = Browsing(scores, "--by_hand", tmp_path / "hand")
    assert killed.get("summary")["marks"] == {"kept": 0, "rejected": 0} and not (tmp_path / "hand").exists()
    best, worst = (killed.get("rows", view=view, size=3)["rows"] for view in ("best", "worst"))
    for row, keep in ((best[0], False), (best[1], False), (worst[0], True), (best[1], None)):
        status, counts = sent(killed, "mark", {"row": row["row"], "keep": keep})
        assert status == 200
    assert counts == {"kept": 1, "rejected": 1}
    killed.child.kill(signal.SIGKILL)
    killed.child.wait(10)
    with Browsing(scores, "--by_hand", tmp_path / "hand") as page:
        assert page.get("summary")["marks"] == {"kept": 1, "rejected": 1}
        marked = page.get("rows", view="marked")["rows"]
        assert [(row["row"], row["mark"]) for row in marked] == [(worst[0]["row"], True), (best[0]["row"], False)]
        status, written = sent(page, "kept_ids", {"top": 0.3})
        k = page.get("summary", top=0.3)["kept"]["samples"][0]
        assert status == 200 and written["samples"] == k  # one more and one less than the cut keeps
        command = shlex.split(page.get("summary")["cut"]["command"])
        assert command[:3] == ["rs-rlhf", "curate", "--ids"] and command[3] == written["path"]
        above = {row["id"] for row in page.pages(view="above", top=0.3)}
    assert cli.main([*command[1:-1], str(tmp_path / "kept")]) == 0
    kept = set(pq.read_table(tmp_path / "kept" / "kept_ids.parquet")["row_id"].to_pylist())
    once = {best[0]["id"]} - {row["id"] for row in best[1:]}
    assert worst[0]["id"] in kept and kept - {worst[0]["id"]} <= above and (best[0]["id"] not in kept or not once)


@pytest.mark.parametrize(
    "path, body, status, sentence",
    [
        ("mark", {"row": 999999, "keep": True}, 400, "row is 999999, expected the number of a sample"),
        ("mark", {"row": True, "keep": True}, 400, "row is True"),
        ("mark", {"row": 0, "keep": 1}, 400, "keep is 1, expected true, false, or null"),
        ("mark", {"row": 0, "keep": "yes"}, 400, "keep is 'yes'"),
        ("mark", {"rwo": 0}, 400, "expected an object of row, keep"),
        ("mark", [0], 400, "expected an object"),
        ("kept_ids", {"top": 2}, 400, "top is 2.0"),
    ],
)
def test_marks_that_are_none_get_a_sentence(page, scores, path, body, status, sentence):
    told = sent(page, path, body)
    assert told[0] == status and sentence in told[1]["error"]
    failed = page.get("rows", view="errors", size=1)["rows"][0]["row"]
    assert sent(page, "mark", {"row": failed, "keep": True})[0] == 400
    form = sent(page, path, body, **{"Content-Type": "text/plain"})
    assert form[0] == 415 and sent(page, path, body, Host="attacker.example")[0] == 403
    assert not scores.with_name("length-by-hand").exists()


def test_folders_that_cannot_be_browsed(scores, others, data, tmp_path, capsys):
    import shutil

    def refused(*arguments):
        assert cli.main(["browse", *map(str, arguments), "--port", "0"]) == 1
        return capsys.readouterr().err

    assert "no manifest.json" in refused(tmp_path)
    shutil.copytree(scores, tmp_path / "part")
    sorted((tmp_path / "part").glob("*.parquet"))[1].unlink()
    assert "1 of 4 shards are missing" in refused(tmp_path / "part")
    (tmp_path / "other.jsonl").write_text('{"text": "a"}\n')
    score(tmp_path / "other.jsonl", tmp_path / "other", "length", "--text_only")
    assert "another input" in refused(scores, "--compare", tmp_path / "other")
    with Browsing(tmp_path / "part", "--allow-partial") as page:
        summary = page.get("summary")
        assert ["Unfinished", "1 of 4 shards are missing"] in summary["facts"]
        assert "--allow_partial" in summary["cut"]["command"]
        left = read_scores(tmp_path / "part", partial=True)
        seen = {(row["id"], text["text"]) for row in page.pages(view="best") for text in row["texts"]}
        assert seen == {(line["row_id"], line["text"]) for line in left.to_pylist() if line["score"] is not None}
        assert page.get(f"row/{row_of(page, 'pool.jsonl:50')}")["prompts"] == ["What is 50?", "And more?"]


def test_what_is_missing_to_serve_it_is_told(page, scores, monkeypatch, capsys):
    assert cli.main(["browse", str(scores), "--port", page.url.rpartition(":")[2]]) == 1
    assert "cannot listen on 127.0.0.1, port" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert cli.main(["browse", str(scores), "--port", "0"]) == 1
    assert "fastapi not installed; install them with `pip install rs-rlhf[server]`." in capsys.readouterr().err


def test_nothing_has_a_score(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": ""}\n{"text": " "}\n')
    score(tmp_path / "in.jsonl", tmp_path / "scores", "length", "--text_only")
    ranked = Ranked(read_scored(tmp_path / "scores"))
    marks = Marks(tmp_path / "hand", read_scored(tmp_path / "scores"))
    summary = browse.summary(ranked, {}, marks)
    assert summary["kept"]["samples"] == [0, 0] and sum(summary["histogram"]["counts"]) == 0
    for view, total in (("best", 0), ("random", 0), ("above", 0), ("errors", 2)):
        assert browse.rows(ranked, Pictures(ranked), {"view": view}, marks)["total"] == total


# In a browser


def wait(browser, script):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 10).until(lambda it: it.execute_script(f"return {script}"))


CARDS = "[...document.querySelectorAll('#rows article')]"
DRAWN_ALL = f"{CARDS}.length > 0 && !document.querySelector('#rows.busy')"
BELOW = "[...document.querySelectorAll('#below article')].map(card => card.dataset.id + card.textContent)"


def opened(browser, page, address=""):
    size = {"width": 1200, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get("about:blank")  # another fragment alone would not load the page anew
    browser.get(f"{page.url}/{address}")
    wait(browser, f"{DRAWN_ALL} && document.querySelector('.big')")


def text_of(browser, selector):
    return browser.execute_script(f"return document.querySelector({selector!r}).textContent")


def clicked(browser, button):
    browser.execute_script("arguments[0].scrollIntoView({ block: 'center' })", button)
    button.click()


def typed(browser, name, text):
    from selenium.webdriver import Keys

    field = browser.find_element("id", name)
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(text)


def test_the_page_loads_from_this_server_alone(browser, page, scores):
    opened(browser, page)
    wait(browser, "document.images.length > 0 && [...document.images].every(i => i.complete)")
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert all(url.startswith((page.url, f"blob:{page.url}", "data:", "about:")) for url in urls), urls
    assert [entry for entry in browser.get_log("browser") if "/api/image/" not in entry["message"]] == []
    assert browser.execute_script("return [...document.images].every(i => i.naturalWidth > 0 && i.alt)")
    k, count = page.get("summary")["kept"]["samples"]
    assert text_of(browser, ".big") == str(k) and f"of {count} samples kept" in text_of(browser, "#figures")
    assert text_of(browser, "#command") == page.get("summary", top=0.3)["cut"]["command"]
    assert browser.execute_script("return document.querySelectorAll('#histogram .kept rect').length") == 90


def test_moving_the_cut_moves_counts_and_samples(browser, page):
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.support.ui import WebDriverWait

    opened(browser, page)
    before = browser.execute_script(f"return {BELOW}")
    assert len(before) == 12
    typed(browser, "top", "60")
    wait(browser, f"{DRAWN_ALL} && {BELOW}.join() !== {json.dumps(before)}.join()")
    expected = page.get("summary", top=0.6)
    wait(browser, f"document.querySelector('.big').textContent === '{expected['kept']['samples'][0]}'")
    assert browser.find_element("id", "threshold").get_property("value") == expected["cut"]["threshold_text"]
    shown = browser.execute_script("return [...document.querySelectorAll('#below article')].map(c => c.dataset.row)")
    assert shown == [str(row["row"]) for row in page.get("rows", view="below", top=0.6, size=12)["rows"]]

    typed(browser, "threshold", "20")
    expected = page.get("summary", threshold=20)
    wait(browser, f"document.querySelector('.big').textContent === '{expected['kept']['samples'][0]}'")
    assert text_of(browser, "#command") == expected["cut"]["command"] and "--threshold=20.0" in text_of(
        browser, "#command"
    )
    tops = "Number(document.getElementById('top').value)"
    assert browser.execute_script(f"return {tops}") == pytest.approx(100 * expected["cut"]["top"], rel=1e-4)

    line = browser.find_element("css selector", ".cut circle")
    ActionChains(browser).drag_and_drop_by_offset(line, -200, 100).perform()
    wait(browser, f"Number(document.querySelector('.big').textContent) > {expected['kept']['samples'][0]}")
    WebDriverWait(browser, 10).until(
        lambda it: (
            (value := it.find_element("id", "threshold").get_property("value"))
            and text_of(it, ".big") == str(page.get("summary", threshold=value)["kept"]["samples"][0])
        )
    )

    browser.execute_script("document.querySelector('.cut').focus()")
    ActionChains(browser).send_keys(Keys.HOME).perform()
    everything = page.get("summary")["kept"]["samples"][1]
    wait(browser, f"document.querySelector('.big').textContent === '{everything}'")
    typed(browser, "top", "0")
    assert browser.find_element("id", "top").get_attribute("aria-invalid") == "true"


def test_filtering_and_paging(browser, page):
    from selenium.webdriver import ActionChains, Keys

    opened(browser, page)
    buttons = browser.find_elements("css selector", "#sources tbody button")
    clicked(browser, next(button for button in buttons if button.text == "two"))
    metas = f"{CARDS}.map(card => card.querySelector('.meta').textContent)"
    wait(browser, f"{DRAWN_ALL} && {metas}.every(text => text.includes(' two'))")
    expected = page.get("summary", top=0.3, source="two")["selected"]
    assert f"of {expected['samples']} samples kept among those chosen" in text_of(browser, "#figures")
    assert browser.find_element("id", "source").get_property("value") == "=two"
    clicked(browser, browser.find_element("id", "reset"))
    clicked(browser, browser.find_element("css selector", "[data-view=best]"))
    total = page.get("rows")["total"]
    wait(browser, f"document.getElementById('where').textContent === '1 to 24 of {total}'")
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT).perform()
    wait(browser, f"document.getElementById('where').textContent === '25 to 48 of {total}' && {DRAWN_ALL}")
    first = page.get("rows", page=1)["rows"][0]["row"]
    assert browser.execute_script(f"return {CARDS}[0].dataset.row") == str(first)
    address = browser.execute_script("return location.hash")
    assert "view=best" in address and "page=1" in address
    opened(browser, page, address)
    assert browser.execute_script(f"return {CARDS}[0].dataset.row") == str(first)
    clicked(browser, browser.find_element("id", "errors"))
    wait(browser, f"{DRAWN_ALL} && {CARDS}.length === 1 && {CARDS}[0].textContent.includes('nowhere.png')")
    ActionChains(browser).send_keys("j").perform()
    assert browser.execute_script(f"return document.activeElement === {CARDS}[0]")


def test_text_of_the_data_is_inert_and_a_broken_image_says_why(browser, page):
    opened(browser, page, "#view=best&search=window.hacked")
    assert browser.execute_script("return document.querySelector('#rows .words:not(.asked)').textContent") == HOSTILE
    assert browser.execute_script("return window.hacked === undefined && !document.querySelector('img[src=x]')")
    opened(browser, page, "#view=best&search=pool.jsonl%3A1")
    reason = wait(
        browser,
        "document.querySelector('#rows .none.broken') && document.querySelector('#rows .none.broken').textContent",
    )
    assert "cannot be decoded, the file is truncated or corrupt" in reason
    opened(browser, page, "#view=best&source=talk")
    wait(browser, f"{CARDS}[0].textContent.includes('And more?')")


def test_a_wrong_address_is_told(browser, page):
    browser.get("about:blank")
    browser.get(f"{page.url}/#source=nowhere")
    told = wait(
        browser, "!document.getElementById('problem').hidden && document.getElementById('problem').textContent"
    )
    assert "no sample has the source 'nowhere'" in told


def test_keeping_by_hand_and_enlarging_in_the_page(browser, scores, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains

    with Browsing(scores, "--by_hand", tmp_path / "hand") as page:
        opened(browser, page, "#view=best")
        pressed = f"{CARDS}.map(card => card.querySelector('[aria-pressed=true]')?.textContent ?? '').slice(0, 3)"
        clicked(browser, browser.find_element("css selector", "article [data-keep=true]"))
        wait(browser, f"{pressed}[0] === 'Keep' && document.querySelector('#command').textContent.includes('--ids')")
        ActionChains(browser).send_keys("j").send_keys("j").send_keys("d").perform()
        wait(browser, f"{pressed}.includes('Reject')")
        before = browser.execute_script(f"return {pressed}")
        opened(browser, page, "#view=best")
        assert browser.execute_script(f"return {pressed}") == before
        clicked(browser, browser.find_element("id", "write"))
        assert "kept_ids.parquet" in wait(browser, "document.querySelector('#written').textContent")
        assert (tmp_path / "hand" / "kept_ids.parquet").is_file()
        wait(browser, "document.querySelector('#rows img')")
        browser.execute_script("document.querySelector('#rows img').click()")
        wide = "document.querySelector('dialog[open] img')?.naturalWidth"
        assert wait(browser, wide) == 600  # as it is stored, not the card's 256
