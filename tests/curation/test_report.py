"""The report of a curation: figures counted by hand, the same in Markdown and HTML, and texts that stay texts."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import picture
from scipy.stats import spearmanr

from rs_rlhf.cli import main as cli
from rs_rlhf.curation.cut import COPY, DROPPED, ERROR, KEPT, Samples, cut
from rs_rlhf.curation.figures import BINS, figures_of, spearman
from rs_rlhf.curation.gallery import pick
from rs_rlhf.curation.report import LINES, LISTED, markdown, page, tables_of
from rs_rlhf.curation.shards import read_scores

HOSTILE = "</td></section><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> | `a` [x](y) &lt;"
HOSTILE += " @@BODY@@ @@TITLE@@"
VOID = {"meta", "link", "img", "rect", "line", "br"}


class Page(HTMLParser):
    """Reads a page as a browser would: the tags that are open, the tables, the images, the text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.tables, self.images, self.text, self.cell = [], [], {}, [], "", None
        self.section = ""
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attributes))
        if tag == "h2":
            self.section = ""
        if tag == "tr":
            self.tables.setdefault(self.section, []).append([])
        if tag in ("td", "th"):
            self.tables[self.section][-1].append("")

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, text):
        self.text += text
        if self.open and self.open[-1] == "h2":
            self.section += text
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[self.section][-1][-1] += text


def tables_in(text):
    """The tables of a Markdown file by title, cells without their escapes."""
    found, title = {}, ""
    for line in text.splitlines():
        if line.startswith("## "):
            title = re.sub(r"\\(.)", r"\1", line[3:])
        elif line.startswith("|") and not line.startswith(("|---", "|:--")):
            cells = re.split(r"(?<!\\) ?\| ?", line)[1:-1]
            found.setdefault(title, []).append([re.sub(r"\\(.)", r"\1", cell) for cell in cells])
    return found


def samples_of(score, status, **columns):
    score = np.array(score, np.float32)
    number = np.arange(len(score))
    made = {
        "first": number,
        "row": number,
        "texts": np.ones(len(score), np.int64),
        "tokens": number + 1,
        "source": np.zeros(len(score), int),
        "label": np.zeros(len(score), int),
        "sources": ["s"],
        "labels": [""],
        "status": np.array(status, np.int8),
        "other": None,
    }
    return Samples(score=score, **(made | columns))


# --- figures ------------------------------------------------------------------------------------------------------


def test_figures_counted_by_hand():
    score = [5, 4, 3, 2, 1, np.nan, 9]
    status = [KEPT, KEPT, DROPPED, DROPPED, DROPPED, ERROR, COPY]
    samples = samples_of(
        score,
        status,
        texts=np.array([1, 2, 1, 1, 1, 3, 1]),
        row=np.array([0, 0, 0, 1, 2, 3, 3]),
        source=np.array([0, 1, 0, 1, 1, 0, 0]),
        sources=["a", "b"],
        label=np.array([0, 1, 1, 1, 1, 0, 0]),
        labels=["", "Port"],
    )
    _, cuts = cut(np.array([5, 4, 3, 2, 1, np.nan, np.nan], np.float32), np.zeros(7, int), keep=0.4)
    found = figures_of(samples, cuts, "none")
    assert found["samples"] == {
        "all": 7,
        "error": 1,
        "excluded": 0,
        "copy": 1,
        "near_duplicate": 0,
        "dropped": 3,
        "kept": 2,
    }
    assert found["texts"] == {
        "all": 10,
        "error": 3,
        "excluded": 0,
        "copy": 1,
        "near_duplicate": 0,
        "dropped": 3,
        "kept": 3,
    }
    assert found["rows"] == {
        "all": 4,
        "error": 1,
        "excluded": 0,
        "copy": 1,
        "near_duplicate": 0,
        "dropped": 3,
        "kept": 1,
    }
    assert found["strata"] == [
        {"name": "all", "stratum": 0, "candidates": 5, "kept": 2, "score": 4.0, "equal_kept": 1, "equal_dropped": 0}
    ]
    a, b = found["sources"]
    assert a == {"name": "a", "samples": 4, "candidates": 2, "kept": 1, "share": 0.5, "mean": 4.0, "mean_kept": 5.0}
    assert (b["name"], b["candidates"], b["kept"], b["share"]) == ("b", 3, 1, pytest.approx(1 / 3))
    assert b["mean"] == pytest.approx(7 / 3) and [one["name"] for one in found["labels"]] == ["Port", ""]
    assert found["scores"]["kept"] == {
        "n": 2,
        "mean": 4.5,
        "min": 4,
        "p10": pytest.approx(4.1),
        "median": 4.5,
        "p90": pytest.approx(4.9),
        "max": 5,
    }
    assert found["lengths"]["dropped"]["mean"] == 4.0 and found["length_spearman"] == pytest.approx(-1.0)
    whole, first, second = found["histograms"]
    assert [sum(whole[key]) for key in ("kept", "dropped")] == [2, 3] and len(whole["kept"]) == BINS
    assert (whole["low"], whole["high"], whole["cut"]) == (1.0, 5.0, 4.0) and whole["kept"][-1] == 1
    assert (first["name"], sum(first["kept"]), sum(second["dropped"])) == ("b", 1, 1)
    json.dumps(found, allow_nan=False)


def test_figures_of_nothing_and_of_one_value():
    samples = samples_of([np.nan, np.nan], [ERROR, ERROR])
    _, cuts = cut(samples.score, np.zeros(2, int), keep=0.5)
    found = figures_of(samples, cuts, "none")
    assert found["histograms"] == [] and found["scores"]["kept"]["mean"] is None and found["length_spearman"] is None
    assert found["sources"][0]["share"] is None
    flat = samples_of([2, 2, 2], [KEPT, DROPPED, DROPPED])
    _, cuts = cut(flat.score, np.zeros(3, int), keep=0.3)
    [made] = figures_of(flat, cuts, "none")["histograms"]
    assert (made["low"], made["high"], sum(made["kept"]) + sum(made["dropped"])) == (1.5, 2.5, 3)
    assert spearman(flat.score, flat.tokens) is None and spearman(flat.score[:2], flat.tokens[:2]) is None
    json.dumps(found, allow_nan=False)


def test_an_odd_score_does_not_squeeze_the_histogram():
    score = np.append(np.linspace(0, 1, 5000), 1e6)
    samples = samples_of(score, [DROPPED] * 5000 + [KEPT])
    _, cuts = cut(samples.score, np.zeros(5001, int), keep=0.0002)
    [made] = figures_of(samples, cuts, "none")["histograms"]
    assert made["high"] <= 1 and sum(made["dropped"]) == 5000 and made["kept"][-1] == 1
    assert page(report_of(samples, cuts), []).count("<rect") <= 2 * BINS


def test_agreement_counted_by_hand():
    samples = samples_of([4, 3, 2, 1], [KEPT, KEPT, DROPPED, DROPPED], other=np.array([1, 9, 8, np.nan], np.float32))
    _, cuts = cut(samples.score, np.zeros(4, int), keep=0.5)
    found = figures_of(samples, cuts, "none")["agreement"]
    # Of the three that both have scored ours keeps 0 and 1, the other would keep 1 and 2.
    assert found == {"n": 3, "spearman": -0.5, "kept": 2, "both": 1, "overlap": 0.5, "chance": pytest.approx(2 / 3)}
    two = samples_of(
        [4, 3, 2, 1],
        [KEPT, DROPPED, KEPT, DROPPED],
        other=np.array([9, 1, 1, 5], np.float32),
        label=np.array([0, 0, 1, 1]),
        labels=["x", "y"],
    )
    _, cuts = cut(two.score, two.label, keep=0.5)
    assert figures_of(two, cuts, "label")["agreement"]["both"] == 1  # one of each class: 0 and 3


def test_what_is_shown_is_never_shown_twice():
    random = np.random.default_rng(0)
    score = random.random(50).astype(np.float32)
    strata = random.integers(0, 2, 50)
    kept, cuts = cut(score, strata, keep=0.4)
    samples = samples_of(score, np.where(kept, KEPT, DROPPED))
    chosen = pick(samples, strata, cuts, 8)
    every = [number for own in chosen.values() for number in own]
    assert len(set(every)) == len(every) == 32
    order = np.argsort(-score)
    assert (
        chosen["best"] == [i for i in order if kept[i]][:8]
        and chosen["worst"] == [i for i in order if not kept[i]][:-9:-1]
    )
    at = {one.stratum: one.score for one in cuts}
    margin = {i: score[i] - at[strata[i]] for i in range(50)}
    rest = [i for i in range(50) if not kept[i] and i not in chosen["worst"]]
    assert set(chosen["below"]) == set(sorted(rest, key=lambda i: -margin[i])[:8])
    few = pick(samples_of([1, 2], [KEPT, DROPPED]), np.zeros(2, int), cut(score[:2], np.zeros(2, int), keep=0.5)[1], 8)
    assert few == {"best": [0], "worst": [1], "above": [], "below": []}
    none = pick(samples_of([1, 2], [KEPT, KEPT]), np.zeros(2, int), cuts[:1], 0)
    assert none == {"best": [], "worst": [], "above": [], "below": []}


# --- pages --------------------------------------------------------------------------------------------------------


def report_of(samples, cuts, by="none", **more):
    figures = figures_of(samples, cuts, by)
    told = {"title": "a title", "facts": [["Data", "d"]], "notes": [], "sample": "one text", "by": by}
    return told | {"compared": "clip", "figures": figures, "lists": [], **more}


def test_long_tables_are_cut_and_say_so():
    count = LINES + 20
    code = np.repeat(np.arange(count), 2)
    samples = samples_of(
        np.arange(2.0 * count), [KEPT, DROPPED] * count, source=code, sources=[f"source {i}" for i in range(count)]
    )
    _, cuts = cut(samples.score, code, keep=0.5)
    rows = [[f"row {i}", "an evaluation image", "same picture"] for i in range(LISTED + 5)]
    lists = [{"title": "Excluded", "columns": ["row", "image", "how"], "rows": rows, "count": 12345}]
    report = report_of(samples, cuts, "source", lists=lists)
    by_title = {table.title: table for table in tables_of(report)}
    assert len(by_title["By source"].rows) == len(by_title["The cut"].rows) == LINES
    assert f"The {LINES} largest of {count} are shown; curation.json has all." in by_title["By source"].text
    assert by_title["Excluded"].text == f"12,345 in all, of which the first {LISTED} are shown."
    assert len(figures_of(samples, cuts, "source")["sources"]) == count
    read = Page(page(report, []))
    assert read.tables == {
        title: own for title, own in tables_in(markdown(report)).items() if "Histogram" not in title
    }
    assert read.tags.count("svg") == 13


def test_every_text_of_the_data_is_only_text():
    samples = samples_of([2, 1], [KEPT, DROPPED], sources=[HOSTILE], labels=[HOSTILE])
    _, cuts = cut(samples.score, np.zeros(2, int), keep=0.5)
    card = {
        "parts": [{"asked": HOSTILE, "text": HOSTILE, "score": HOSTILE}],
        "more": 3,
        "score": HOSTILE,
        "about": HOSTILE,
        "fate": HOSTILE,
        "image": None,
        "why": HOSTILE,
    }
    shown = {**card, "image": "data:image/png;base64,AAAA\"'><script>"}
    lists = [{"title": HOSTILE, "columns": [HOSTILE], "rows": [[HOSTILE]], "count": 1}]
    report = report_of(
        samples,
        cuts,
        title=HOSTILE,
        facts=[[HOSTILE, HOSTILE]],
        notes=[HOSTILE],
        sample=HOSTILE,
        compared=HOSTILE,
        lists=lists,
    )
    text = page(report, [{"title": HOSTILE, "text": HOSTILE, "cards": [card, shown], "pairs": True}])
    read = Page(text)
    assert read.tags.count("script") == 1 and read.tags.count("img") == 1 and "<script>window" not in text
    assert read.images[0]["src"].endswith("\"'><script>") and set(read.images[0]) == {"src", "alt", "tabindex"}
    assert read.text.count(HOSTILE) >= 10
    lines = markdown(report).splitlines()
    assert not [line for line in lines if re.search(r"(?<!\\)[<`]", line)]
    assert tables_in("\n".join(lines))[HOSTILE] == [[HOSTILE], [HOSTILE]]
    assert "default-src 'none'" in text and not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    """A curation of captions, questions and conversations, some of them hostile or without an image that opens."""
    folder = tmp_path_factory.mktemp("curated")
    data = folder / "data"
    data.mkdir()
    rows = []
    for i in range(40):
        picture(i, 64, 48).save(data / f"{i}.png")
        row = {"image": f"{i}.png", "source": "rsicd" if i % 3 else "nwpu | <b>", "label": f"class {i % 4}"}
        if i % 10 == 7:
            said = ["<image>\nWhat is there?", f"a thing {i}", "And beside it?", "another thing"]
            row["conversations"] = [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(said)]
        else:
            row["captions"] = [f"{'word ' * (i % 9 + k)}{'of ' * (i % 2)}caption {i}" for k in range(2)]
        rows.append(row)
    rows.append({"image": "0.png", "caption": f"{HOSTILE} {'very ' * 20}long", "source": "rsicd", "label": "class 0"})
    rows.append({"image": "broken.png", "caption": "x", "source": "rsicd", "label": "class 0"})
    rows.append({"image": "gone.png", "caption": "a missing one", "source": "rsicd", "label": "class 0"})
    rows.append({"caption": "no picture here but far more words than any of the others " * 3, "label": "class 1"})
    rows.append({"caption": "of no class"})
    (data / "broken.png").write_bytes(b"not an image")
    (data / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for kind in ("length", "random"):
        options = ["--input", str(data), "--output", str(folder / kind), "--scorer", kind]
        assert cli.run("score", [*options, "--max_error_fraction", "0.5"]) == 0
    out = folder / "out"
    options = ["--keep", "0.3", "--by", "label", "--dedup", "exact", "--compare", str(folder / "random")]
    assert cli.main(["curate", str(folder / "length"), "--output", str(out), *options]) == 0
    return folder, out, rows


def test_the_numbers_of_the_report_are_those_of_the_scores(curated):
    folder, out, _ = curated
    lines = read_scores(folder / "length").to_pylist()
    samples = {}  # of a conversation the row, of others the text
    for line in lines:
        samples.setdefault((line["row_id"], 0 if line["whole"] else line["text_index"]), []).append(line)
    scores = {key: np.mean([line["score"] for line in own]) for key, own in samples.items() if own[0]["error"] is None}
    kept = {key for key in scores if key in kept_samples(folder, out)}
    found = tables_in((out / "report.md").read_text())
    fates = {row[0]: row[1:] for row in found["What became of the data"]}
    assert fates["all"][:3] == [str(len(samples)), str(len(lines)), "45"]
    assert fates["no score"][:2] == ["1", "1"] and fates["kept"][0] == str(len(kept))
    assert fates["kept"][3] == f"{len(kept) / len(samples):.1%}"
    assert int(fates["below the cut"][0]) == len(scores) - len(kept)
    for name, column in (("By source", "source"), ("By class", "label")):
        for row in found[name][1:]:
            own = [key for key in samples if (samples[key][0][column] or "(none)") == row[0]]
            could = [key for key in own if key in scores]
            keep = [key for key in could if key in kept]
            assert row[1:4] == [str(len(own)), str(len(could)), str(len(keep))], row
            assert row[4] == f"{len(keep) / len(could):.1%}"
            assert row[5] == f"{np.mean([scores[key] for key in could]):.4g}"
            assert row[6] == (f"{np.mean([scores[key] for key in keep]):.4g}" if keep else "–")
    tokens = {key: sum(line["tokens"] for line in samples[key]) for key in scores}
    row = next(row for row in found["Length"] if row[0] == "kept")
    assert row[1:3] == [str(len(kept)), f"{np.mean([tokens[key] for key in kept]):.4g}"]
    rho = spearmanr([scores[key] for key in scores], [tokens[key] for key in scores]).statistic
    text = (out / "report.md").read_text()
    assert f"Spearman's correlation of score and length is {rho:.3f}." in text
    assert "**Note:** The score goes with the length of the text" in text
    assert "**Note:** Nothing is kept of 1 of 5 strata: (none)." in text
    bins = found["Histogram: all"][1:]
    assert sum(int(row[1]) for row in bins) == len(kept) and len(bins) == BINS


def kept_samples(folder, out):
    whole = {line["row_id"] for line in read_scores(folder / "length").to_pylist() if line["whole"]}
    ids = pq.read_table(out / "kept_ids.parquet").to_pylist()
    return {(one["row_id"], 0 if one["row_id"] in whole else one["text_index"]) for one in ids}


def test_the_page_has_the_same_tables_and_the_samples(curated):
    folder, out, rows = curated
    read = Page((out / "report.html").read_text())
    markdown_tables = tables_in((out / "report.md").read_text())
    assert read.tables == {title: own for title, own in markdown_tables.items() if not title.startswith("Histogram")}
    assert read.tags.count("script") == 1 and HOSTILE in read.text
    assert read.tags.count("svg") == 1 + 3  # all; rsicd, nwpu, and the row without a source
    assert 20 < len(read.images) <= 60 and all(one["src"].startswith("data:image/jpeg;base64,") for one in read.images)
    assert "This image cannot be shown" in read.text and "no image" in read.text
    assert "And beside it?" in read.text and "another thing" in read.text
    for title in ("The best", "Just above the cut", "Just below the cut", "The worst"):
        assert title in read.text
    assert "Texts without a score" in read.tables and "gone.png" in read.text


def test_a_page_with_no_images_asked_for(curated, tmp_path):
    folder, *_ = curated
    options = ["--output", str(tmp_path / "out"), "--max_images_in_report", "0"]
    assert cli.main(["curate", str(folder / "length"), *options]) == 0
    read = Page((tmp_path / "out" / "report.html").read_text())
    assert read.images == [] and "The best" not in read.text and "By source" in read.text


# --- in a browser -------------------------------------------------------------------------------------------------


def opened(browser, path, width):
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri())
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


@pytest.mark.parametrize("width", [1200, 400])
def test_a_browser_shows_it_without_the_network(browser, curated, width):
    path = curated[1] / "report.html"
    urls = opened(browser, path, width)
    assert path.as_uri() in urls and all(url == path.as_uri() or url.startswith("data:") for url in urls), urls
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert browser.execute_script("return window.hacked === undefined && !document.querySelector('img[src=x]')")
    bars = "[...document.querySelectorAll('svg .mark-rect.role-mark path')].map(bar => bar.ariaLabel)"
    told = browser.execute_script(f"return {bars}")
    assert len(told) > 10 and all(re.fullmatch(r"\S+ to \S+: [\d,]+ (kept|dropped)", text) for text in told)
    widths = "[...document.querySelectorAll('td:first-child')].map(td => td.clientWidth)"
    assert min(browser.execute_script(f"return {widths}")) > 80  # or words break letter by letter
    browser.find_element("css selector", "article img").click()
    assert browser.execute_script("return document.querySelector('dialog img').clientWidth") >= min(480, 0.9 * width)
    links = browser.execute_script("return [...document.querySelectorAll('nav a')].map(a => a.hash)")
    assert len(links) > 8 and browser.execute_script(
        "return arguments[0].every(h => document.querySelector(h + ' h2'))", links
    )
