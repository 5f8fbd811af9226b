"""`rs-rlhf curate` from files of scores that `rs-rlhf score` has written to data that can be read again."""

import io
import json
import os
import shutil
import subprocess
import sys
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import ROOT
from helpers.image_text_layouts import COUNT, write_all, write_images
from PIL import Image
from scipy.stats import spearmanr

from rs_rlhf.cli import main as cli
from rs_rlhf.curation.shards import read_manifest, read_scores, shard_path
from rs_rlhf.data.image_text_dataset import open_image_texts

pytest.importorskip("imagehash", reason='imagehash is not installed (pip install "rs-rlhf[curation]")')
FORMATS = ("parquet", "jsonl", "json", "csv", "webdataset", "dataset")


def score(data, out, kind="random", *options):
    assert cli.run("score", ["--input", str(data), "--output", str(out), "--scorer", kind, *map(str, options)]) == 0
    return out


def curate(*options):
    return cli.main(["curate", *map(str, options)])


def refused(capsys, *options):
    """Runs the command, which must refuse in one sentence; returns that."""
    capsys.readouterr()
    assert curate(*options) == 1
    told = capsys.readouterr().err.strip()
    assert told.startswith("rs-rlhf curate: ") and "\n" not in told, told
    return told


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def kept_of(folder):
    table = pq.read_table(folder / "kept_ids.parquet")
    return list(zip(table["row_id"].to_pylist(), table["text_index"].to_pylist(), strict=True))


def about(folder):
    return json.loads((folder / "curation.json").read_text())


def best(scores, fraction, groups=None):
    """The ids of the best texts, by sorting lists by hand."""
    lines = scores.to_pylist()
    expected = []
    for group in sorted({line[groups] for line in lines}) if groups else [None]:
        own = [line for line in lines if line["error"] is None and (groups is None or line[groups] == group)]
        count = int(fraction * len(own) + 0.5 + 1e-9)
        expected += sorted(own, key=lambda line: -line["score"])[:count]
    return {(line["row_id"], line["text_index"]) for line in expected}


def same_but_for(folder):
    return {name.relative_to(folder).as_posix(): name.read_bytes() for name in folder.rglob("*") if name.is_file()}


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("layouts") / "all")


@pytest.fixture(scope="module")
def scored(layouts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores")
    return {name: score(layouts[name], folder / name, "random", "--rows_per_shard", 5) for name in FORMATS}


# --- every format ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_the_best_part_is_kept_in_its_format_and_reads_again(layouts, scored, tmp_path, capsys, format):
    out = tmp_path / "out"
    assert curate(scored[format], "--output", out, "--keep", 0.4) == 0
    expected = best(read_scores(scored[format]), 0.4)
    assert set(kept_of(out)) == expected
    data = open_image_texts(layouts[format])
    texts = [
        (row.label, row.images, [t for i, t in enumerate(row.texts) if (row.row_id, i) in expected]) for row in data
    ]
    again = [(row.label, row.images, row.texts) for row in open_image_texts(out)]  # the image root is in curation.json
    assert again == [row for row in texts if row[2]]
    found = about(out)
    assert found["version"] == 1 and found["format"] == format and found["input"] == str(layouts[format])
    assert found["image_root"] == str(data.root) and found["settings"]["keep"] == 0.4
    assert found["figures"]["samples"]["kept"] == found["figures"]["texts"]["kept"] == len(expected)
    assert found["figures"]["rows"]["kept"] == len({row_id for row_id, _ in expected}) == found["written"]["kept_rows"]
    assert f"{len(expected)} of " in capsys.readouterr().out
    assert set(os.listdir(out)) >= {"kept_ids.parquet", "curation.json", "report.html", "report.md"}
    assert [name for name in os.listdir(tmp_path)] == ["out"]


@pytest.mark.parametrize("format", FORMATS)
def test_a_published_list_gives_the_same_files(layouts, scored, tmp_path, format):
    assert curate(scored[format], "--output", tmp_path / "out") == 0  # by default 0.3
    listed = pq.read_table(tmp_path / "out" / "kept_ids.parquet")
    order = np.random.default_rng(0).permutation(len(listed))
    pq.write_table(listed.take(pa.array(order)), tmp_path / "list.parquet")
    options = ["--ids", tmp_path / "list.parquet", "--input", layouts[format]]
    assert curate(*options, "--output", tmp_path / "again") == 0
    one, other = same_but_for(tmp_path / "out"), same_but_for(tmp_path / "again")
    told = ("curation.json", "README.md")  # how the rows were chosen
    data = [name for name in other if name not in told and not name.endswith(("state.json", "_info.json"))]
    assert len(data) >= 2 and all(one[name] == other[name] for name in data)
    assert about(tmp_path / "again")["image_root"] == about(tmp_path / "out")["image_root"]
    assert about(tmp_path / "again")["figures"]["texts"] == {"kept": len(listed)}


# --- what is kept ---------------------------------------------------------------------------------------------------


def test_several_cuts_at_once_and_each_class_by_itself(scored, tmp_path):
    scores = read_scores(scored["jsonl"])
    assert curate(scored["jsonl"], "--output", tmp_path / "cuts", "--keep", 0.3, 0.5, "--by", "label") == 0
    assert sorted(os.listdir(tmp_path / "cuts")) == ["keep-0.3", "keep-0.5"]
    for fraction in (0.3, 0.5):
        out = tmp_path / "cuts" / f"keep-{fraction}"
        assert set(kept_of(out)) == best(scores, fraction, "label")
        strata = {one["name"]: one for one in about(out)["figures"]["strata"]}
        for name in ("Port", "River"):
            own = [line for line in scores.to_pylist() if line["label"] == name]
            kept = [line["score"] for line in own if (line["row_id"], line["text_index"]) in set(kept_of(out))]
            assert (strata[name]["candidates"], strata[name]["kept"]) == (len(own), len(kept))
            assert strata[name]["score"] == min(kept)


def test_each_source_keeps_its_own_part(scored, tmp_path):
    assert curate(scored["jsonl"], "--output", tmp_path / "out", "--keep", 0.5, "--by", "source") == 0
    assert set(kept_of(tmp_path / "out")) == best(read_scores(scored["jsonl"]), 0.5, "source")
    assert [one["name"] for one in about(tmp_path / "out")["figures"]["strata"]] == ["a", "b"]


def test_scores_from_a_threshold_on(scored, tmp_path):
    scores = read_scores(scored["csv"]).to_pylist()
    at = sorted(line["score"] for line in scores)[10]
    assert curate(scored["csv"], "--output", tmp_path / "out", "--threshold", at, 0.8) == 0
    assert sorted(os.listdir(tmp_path / "out")) == sorted([f"threshold-{at:g}", "threshold-0.8"])
    for value in (at, 0.8):
        expected = {(line["row_id"], 0) for line in scores if line["score"] >= np.float32(value)}
        assert set(kept_of(tmp_path / "out" / f"threshold-{value:g}")) == expected


CONVERSATIONS = [
    {
        "image": "0.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": "a long answer of six words"},
            {"from": "human", "value": "And?"},
            {"from": "gpt", "value": "no"},
        ],
    },
    {
        "image": "1.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": "four words are here"},
        ],
    },
    {
        "image": "2.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": "one two three"},
            {"from": "human", "value": "And?"},
            {"from": "gpt", "value": "one two three four"},
        ],
    },
]


def test_conversations_are_kept_as_a_whole(tmp_path):
    write_jsonl(tmp_path / "data" / "talk.jsonl", CONVERSATIONS)
    write_images(tmp_path / "data", 3)
    scores = score(tmp_path / "data", tmp_path / "scores", "length")
    for how, row in (("mean", 1), ("min", 1)):  # means 3.5, 4, 3.5; minima 1, 4, 3
        assert curate(scores, "--output", tmp_path / how, "--keep", 0.3, "--aggregate", how) == 0
        assert kept_of(tmp_path / how) == [(f"talk.jsonl:{row}", 0)]
    assert curate(scores, "--output", tmp_path / "two", "--keep", 0.6) == 0  # equal means: the first in the data
    assert kept_of(tmp_path / "two") == [("talk.jsonl:0", 0), ("talk.jsonl:0", 1), ("talk.jsonl:1", 0)]
    assert (tmp_path / "two" / "talk.jsonl").read_bytes() == b"".join(
        (tmp_path / "data" / "talk.jsonl").read_bytes().splitlines(keepends=True)[:2]
    )
    [one] = about(tmp_path / "two")["figures"]["strata"]
    assert (one["score"], one["equal_kept"], one["equal_dropped"]) == (3.5, 1, 1)
    assert curate(scores, "--output", tmp_path / "min", "--keep", 0.6, "--aggregate", "min", "--overwrite") == 0
    assert {row for row, _ in kept_of(tmp_path / "min")} == {"talk.jsonl:1", "talk.jsonl:2"}


def test_captions_of_an_image_as_one(tmp_path):
    rows = [
        {"captions": ["one", "one two three four five six"]},
        {"captions": ["one two three"]},
        {"captions": ["one two", "one two"]},
    ]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    scores = score(data, tmp_path / "scores", "length", "--text_only")
    assert curate(scores, "--output", tmp_path / "row", "--keep", 0.34, "--per", "row") == 0  # means 3.5, 3, 2
    assert kept_of(tmp_path / "row") == [("rows.jsonl:0", 0), ("rows.jsonl:0", 1)]
    assert curate(scores, "--output", tmp_path / "text", "--keep", 0.4) == 0  # two of five texts
    assert kept_of(tmp_path / "text") == [("rows.jsonl:0", 1), ("rows.jsonl:1", 0)]
    assert [row.texts for row in open_image_texts(tmp_path / "text")] == [
        ["one two three four five six"],
        ["one two three"],
    ]


def test_no_image_is_lost_before_its_last_text(tmp_path):
    for i in range(2):
        scene(i).save(tmp_path / f"{i}.png")
    texts = [("0.png", "a b c d e f"), ("0.png", "a b c d e"), ("1.png", "a b"), ("1.png", "a")]
    texts += [("", "x"), ("", "x y")]
    rows = [{"caption": text} | ({"image": image} if image else {}) for image, text in texts]
    scores = score(write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "scores", "length")
    every = ["--best_of_every_image"]
    assert curate(scores, "--output", tmp_path / "score", "--keep", 0.5) == 0
    assert numbers(tmp_path / "score") == [0, 1, 2]
    assert curate(scores, "--output", tmp_path / "image", "--keep", 0.5, *every) == 0  # rows without are their own
    assert numbers(tmp_path / "image") == [0, 2, 5] and about(tmp_path / "image")["settings"]["best_of_every_image"]
    assert curate(scores, "--output", tmp_path / "more", "--keep", 0.8, *every) == 0
    assert numbers(tmp_path / "more") == [0, 1, 2, 4, 5]
    assert "the best 50%, the best of every image first" in (tmp_path / "image" / "report.md").read_text()


def test_texts_without_a_score_are_counted_and_never_kept(tmp_path, capsys):
    rows = [{"image": "0.png", "caption": f"{'word ' * i}end"} for i in range(9)]
    rows += [{"image": "gone.png", "caption": "no such image " * 9}, {"image": "0.png", "caption": ""}]
    data = write_jsonl(tmp_path / "data" / "rows.jsonl", rows)
    write_images(tmp_path / "data", 1)
    scores = score(data, tmp_path / "scores", "length", "--max_error_fraction", 0.5)
    assert curate(scores, "--output", tmp_path / "out", "--keep", 1) == 0
    assert kept_of(tmp_path / "out") == [(f"rows.jsonl:{i}", 0) for i in range(9)]
    samples = about(tmp_path / "out")["figures"]["samples"]
    assert (samples["all"], samples["error"], samples["kept"], samples["dropped"]) == (11, 2, 9, 0)
    assert "2 no score" in capsys.readouterr().out
    [errors] = about(tmp_path / "out")["left_out"]
    assert {row[1] for row in errors["rows"]} == {"rows.jsonl:9", "rows.jsonl:10"} and errors["count"] == 2
    assert "no such file" in (tmp_path / "out" / "report.md").read_text()


# --- duplicates and evaluation sets ---------------------------------------------------------------------------------


def scene(seed, size=200):
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)


@pytest.fixture
def doubled(tmp_path):
    """Rows with copies and look-alikes, and their scores (numbers of words)."""
    folder = tmp_path / "data"
    folder.mkdir()
    scene(0).save(folder / "a.png")
    shutil.copy(folder / "a.png", folder / "a_copy.png")
    scene(0).resize((180, 180)).save(folder / "a_like.jpg", quality=80)
    scene(1).save(folder / "b.png")
    rows = [
        {"image": "a.png", "caption": "one two three"},  # 0
        {"image": "a_copy.png", "caption": "one two three"},  # 1: a copy of 0, as long
        {"image": "a.png", "caption": "other words"},  # 2: the same image, other text
        {"image": "a_like.jpg", "caption": "one two three"},  # 3: other bytes
        {"image": "b.png", "caption": "one two three"},  # 4: another image
        {"image": "b.png", "question": "Is it?", "answer": "yes"},  # 5
        {"image": "b.png", "question": "Is it not?", "answer": "yes"},  # 6: another question
        {"image": "b.png", "question": "Is it?", "answer": "yes"},  # 7: a copy of 5
        {"image": "a_like.jpg", "caption": "one two three four five six"},  # 8
    ]
    write_jsonl(folder / "rows.jsonl", rows)
    return folder, score(folder, tmp_path / "scores", "length", "--rows_per_shard", 2)


def numbers(folder):
    return [int(row_id.rpartition(":")[2]) for row_id, _ in kept_of(folder)]


def test_copies_are_kept_once_and_other_texts_stay(doubled, tmp_path):
    folder, scores = doubled
    assert curate(scores, "--output", tmp_path / "none", "--keep", 1) == 0
    assert numbers(tmp_path / "none") == list(range(9))
    assert curate(scores, "--output", tmp_path / "exact", "--keep", 1, "--dedup", "exact") == 0
    assert numbers(tmp_path / "exact") == [0, 2, 3, 4, 5, 6, 8]
    assert about(tmp_path / "exact")["figures"]["samples"]["copy"] == 2
    # A fraction is of what is left: 7 * 0.3 = 2.1, the long one and the first of those with three words.
    assert curate(scores, "--output", tmp_path / "cut", "--keep", 0.3, "--dedup", "exact") == 0
    assert numbers(tmp_path / "cut") == [0, 8]


def test_conversations_with_other_questions_are_no_copies(tmp_path):
    def talk(question):
        return {
            "conversations": [
                {"from": "human", "value": question},
                {"from": "gpt", "value": "yes"},
                {"from": "human", "value": "Sure?"},
                {"from": "gpt", "value": "yes"},
            ]
        }

    data = write_jsonl(tmp_path / "rows.jsonl", [talk("A?"), talk("B?"), talk("A?")])
    scores = score(data, tmp_path / "scores", "length", "--text_only")
    assert curate(scores, "--output", tmp_path / "out", "--keep", 1, "--dedup", "exact") == 0
    assert {row_id for row_id, _ in kept_of(tmp_path / "out")} == {"rows.jsonl:0", "rows.jsonl:1"}


def test_of_images_that_look_alike_the_best_stays(doubled, tmp_path):
    folder, scores = doubled
    assert curate(scores, "--output", tmp_path / "near", "--keep", 1, "--dedup", "near") == 0
    # a.png (and its copy, the same bytes) has a mean of 2.5 words without the copied text, a_like.jpg of 4.5.
    assert numbers(tmp_path / "near") == [3, 4, 5, 6, 8]
    found = about(tmp_path / "near")
    assert (found["figures"]["samples"]["copy"], found["figures"]["samples"]["near_duplicate"]) == (2, 2)
    assert found["left_out"] == [
        {
            "title": "Near-duplicate images, row by row",
            "columns": ["left out", "stays"],
            "rows": [["rows.jsonl:0", "rows.jsonl:3"]],
            "count": 1,
        }
    ]
    page = (tmp_path / "near" / "report.html").read_text()
    assert "Each that was left out, and beside it the one that stays" in page
    # The pictures are not decoded again for the next cut.
    (folder / "a_like.jpg").write_bytes(bytes(os.path.getsize(folder / "a_like.jpg")))
    assert curate(scores, "--output", tmp_path / "again", "--keep", 0.5, "--dedup", "near") == 0
    assert numbers(tmp_path / "again") == [3, 4, 8]  # 5 / 2 is 2.5 and rounds up
    assert "This image cannot be shown" in (tmp_path / "again" / "report.html").read_text()


def test_rows_with_evaluation_images_are_dropped_and_listed(doubled, tmp_path, capsys):
    folder, scores = doubled
    held = tmp_path / "held" / "test" / "scene"
    held.mkdir(parents=True)
    Image.open(folder / "a.png").save(held / "renamed.bmp")
    options = ["--keep", 1, "--exclude_images_of", f"{tmp_path / 'held'}:test"]
    assert curate(scores, "--output", tmp_path / "exact", *options) == 0
    assert numbers(tmp_path / "exact") == [3, 4, 5, 6, 7, 8]
    found = about(tmp_path / "exact")
    assert found["figures"]["samples"]["excluded"] == 3
    [listed] = found["left_out"]
    place = f"{tmp_path / 'held'}:test scene/renamed.bmp"
    assert listed["rows"] == [[f"rows.jsonl:{i}", place, "same picture"] for i in (0, 1, 2)] and listed["count"] == 3
    assert "scene/renamed.bmp" in (tmp_path / "exact" / "report.md").read_text()
    assert "3 image is in an evaluation set" in capsys.readouterr().out
    assert curate(scores, "--output", tmp_path / "near", *options, "--exclude_near", "--dedup", "exact") == 0
    assert numbers(tmp_path / "near") == [4, 5, 6]
    [listed] = about(tmp_path / "near")["left_out"]
    assert [row[0] for row in listed["rows"]] == [f"rows.jsonl:{i}" for i in (0, 1, 2, 3, 8)]


# --- scores of several models ----------------------------------------------------------------------------------------


@pytest.fixture
def several(scored, tmp_path):
    """Scores as several models' mean would be, with a spread that rises from 0 to 1 in the order of the texts."""
    folder = shutil.copytree(scored["jsonl"], tmp_path / "several")
    manifest = read_manifest(folder)
    manifest["scorer"]["score_combine"] = "mean"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    place = 0
    for path in sorted(folder.glob("scores-*.parquet")):
        table = pq.read_table(path)
        std = pa.array(np.arange(place, place + len(table)) / 44, pa.float32())
        place += len(table)
        pq.write_table(table.set_column(table.column_names.index("score_std"), table.field("score_std"), std), path)
    return folder


def test_rows_are_ranked_by_the_mean_less_the_spread(several, tmp_path):
    lines = read_scores(several).to_pylist()
    for line in lines:
        line["score"] -= line["score_std"]
    expected = best(pa.Table.from_pylist(lines), 0.4)
    assert expected != best(read_scores(several), 0.4)
    assert curate(several, "--output", tmp_path / "out", "--keep", 0.4, "--rank", "mean-std") == 0
    assert set(kept_of(tmp_path / "out")) == expected and about(tmp_path / "out")["settings"]["rank"] == "mean-std"
    assert curate(several, "--output", tmp_path / "plain", "--keep", 0.4) == 0
    assert set(kept_of(tmp_path / "plain")) == best(read_scores(several), 0.4)
    assert "less their standard deviation" in (tmp_path / "out" / "report.md").read_text()


def test_texts_on_which_models_disagree_are_dropped_and_counted(several, tmp_path, capsys):
    lines = [line for line in read_scores(several).to_pylist() if line["score_std"] <= np.float32(0.5)]
    assert curate(several, "--output", tmp_path / "out", "--keep", 0.5, "--max_std", 0.5) == 0
    assert set(kept_of(tmp_path / "out")) == best(pa.Table.from_pylist(lines), 0.5)
    assert about(tmp_path / "out")["figures"]["texts"]["unsure"] == 45 - len(lines) == 22
    assert "22 score models disagree" in capsys.readouterr().out
    assert curate(several, "--output", tmp_path / "rows", "--per", "row", "--keep", 1.0, "--max_std", 0.5) == 0
    dropped = {line["row_id"] for line in read_scores(several).to_pylist() if line["score_std"] > np.float32(0.5)}
    assert dropped and not dropped & {row for row, _ in kept_of(tmp_path / "rows")}


@pytest.mark.parametrize("options", [("--rank", "mean-std"), ("--max_std", 1)])
def test_the_spread_of_one_models_scores_is_not_known(scored, tmp_path, capsys, options):
    told = refused(capsys, scored["jsonl"], "--output", tmp_path / "out", *options)
    assert f"are of one model, so that {options[0]} is not known" in told and not (tmp_path / "out").exists()


def test_what_is_known_depends_on_how_scores_were_combined(several, tmp_path, capsys):
    manifest = read_manifest(several)
    plain = best(read_scores(several), 0.4)
    for rule in ("mean-std", "min"):
        manifest["scorer"]["score_combine"] = rule
        (several / "manifest.json").write_text(json.dumps(manifest))
        assert curate(several, "--output", tmp_path / rule, "--keep", 0.4, "--max_std", 9) == 0
        assert set(kept_of(tmp_path / rule)) == plain
    assert "score_combine mean" in refused(capsys, several, "--output", tmp_path / "x", "--rank", "mean-std")
    manifest["scorer"]["score_combine"] = "mean-std"
    (several / "manifest.json").write_text(json.dumps(manifest))
    assert curate(several, "--output", tmp_path / "again", "--keep", 0.4, "--rank", "mean-std") == 0
    assert set(kept_of(tmp_path / "again")) == plain


# --- other scores ---------------------------------------------------------------------------------------------------


def test_agreement_with_other_scores(layouts, scored, tmp_path, capsys):
    other = score(layouts["jsonl"], tmp_path / "other", "random", "--rows_per_shard", 7, "--seed", 1)
    assert curate(scored["jsonl"], "--output", tmp_path / "out", "--keep", 0.5, "--compare", other) == 0
    ours, theirs = read_scores(scored["jsonl"]).to_pylist(), read_scores(other).to_pylist()
    assert [line["row_id"] for line in ours] == [line["row_id"] for line in theirs]
    found = about(tmp_path / "out")["figures"]["agreement"]
    both = best(read_scores(scored["jsonl"]), 0.5) & best(read_scores(other), 0.5)
    rho = spearmanr([line["score"] for line in ours], [line["score"] for line in theirs]).statistic
    n, k = len(ours), len(kept_of(tmp_path / "out"))
    assert found == {
        "n": n,
        "spearman": pytest.approx(rho),
        "kept": k,
        "both": len(both),
        "overlap": len(both) / k,
        "chance": pytest.approx(k / n),
    }
    same = tmp_path / "same"
    assert curate(scored["jsonl"], "--output", same, "--keep", 0.5, "--compare", scored["jsonl"]) == 0
    assert about(same)["figures"]["agreement"]["overlap"] == 1.0
    assert about(same)["figures"]["agreement"]["spearman"] == pytest.approx(1.0)
    told = refused(capsys, scored["jsonl"], "--output", tmp_path / "x", "--compare", scored["csv"])
    assert "of another input" in told and "stamp differs" in told


def test_other_scores_that_miss_some_lines_are_laid_beside(layouts, scored, tmp_path):
    other = score(layouts["jsonl"], tmp_path / "other", "random", "--rows_per_shard", 5)
    shard_path(other, read_manifest(other), 1).unlink()
    options = ["--keep", 0.5, "--compare", other, "--allow_partial"]
    assert curate(scored["jsonl"], "--output", tmp_path / "out", *options) == 0
    found = about(tmp_path / "out")["figures"]["agreement"]
    assert found["n"] == len(read_scores(other, partial=True)) < len(read_scores(scored["jsonl"]))
    assert found["spearman"] == pytest.approx(1.0) and found["overlap"] == 1.0


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, told",
    [
        (["--keep", 0], "--keep is 0, expected a fraction of more than 0 and at most 1"),
        (["--keep", 30], "--keep is 30, expected a fraction"),
        (["--keep", 0.3, 1.2], "--keep is 1.2"),
        (["--keep", "nan"], "--keep is nan"),
        (["--keep", 0.3, "--threshold", 1], "--keep and --threshold are both given"),
        (["--keep", 0.3, 0.30], "--keep names a value twice"),
        (["--threshold", 1, "--best_of_every_image"], "--best_of_every_image goes with --keep"),
        (["--threshold", "inf"], "--threshold is inf, expected a number"),
        (["--threshold", 7], "nothing of 45 samples would be kept with --threshold 7: the highest score is 0.9"),
        (["--near_distance", 11], "--near_distance is 11, expected 0 to 10 bits"),
        (["--exclude_near"], "--exclude_near is given without --exclude_images_of"),
        (["--exclude_images_of", "nowhere"], "nowhere does not exist"),
        (["--input", "x"], "--input is for --ids"),
        (["--max_images_in_report", -1], "--max_images_in_report is -1"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(scored, tmp_path, capsys, options, told):
    assert told in refused(capsys, scored["parquet"], "--output", tmp_path / "out", *options)
    assert os.listdir(tmp_path) == []


def test_folders_that_hold_no_scores(layouts, tmp_path, capsys):
    out = ["--output", tmp_path / "out"]
    assert "no manifest.json; expected a folder that `rs-rlhf score" in refused(capsys, layouts["parquet"], *out)
    assert "no manifest.json" in refused(capsys, tmp_path / "nowhere", *out)
    assert "no SCORES" in refused(capsys, *out)


def test_unfinished_scores(layouts, scored, tmp_path, capsys):
    scores = tmp_path / "scores"
    shutil.copytree(scored["jsonl"], scores)
    shard_path(scores, read_manifest(scores), 2).unlink()
    assert "1 of 5 shards are missing" in refused(capsys, scores, "--output", tmp_path / "out")
    assert curate(scores, "--output", tmp_path / "out", "--allow_partial", "--keep", 0.5) == 0
    assert set(kept_of(tmp_path / "out")) == best(read_scores(scores, partial=True), 0.5)
    assert "1 of 5 shards are missing" in about(tmp_path / "out")["notes"][0]
    for i in range(5):
        shard_path(scores, read_manifest(scores), i).unlink(missing_ok=True)
    told = refused(capsys, scores, "--output", tmp_path / "none", "--allow_partial")
    assert "holds no scores yet" in told


def test_data_that_changed_since(tmp_path, capsys):
    data = write_jsonl(tmp_path / "rows.jsonl", [{"text": "one"}, {"text": "one two"}])
    scores = score(data, tmp_path / "scores", "length", "--text_only")
    write_jsonl(data, [{"text": "one"}, {"text": "another text"}])
    told = refused(capsys, scores, "--output", tmp_path / "out")
    assert "rows.jsonl" in told and "then" in told and "score anew" in told
    data.unlink()
    assert "no such file" in refused(capsys, scores, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_written_over_unasked(layouts, scored, tmp_path, capsys):
    out = tmp_path / "out"
    assert curate(scored["jsonl"], "--output", out, "--keep", 0.3) == 0
    before = same_but_for(out)
    assert "exists; choose another --output or pass --overwrite" in refused(capsys, scored["jsonl"], "--output", out)
    assert same_but_for(out) == before
    (out / "mine.txt").write_text("of the folder that is replaced")
    assert curate(scored["jsonl"], "--output", out, "--keep", 0.6, "--overwrite") == 0
    assert about(out)["settings"]["keep"] == 0.6 and os.listdir(tmp_path) == ["out"]
    assert not (out / "mine.txt").exists()
    other = tmp_path / "other"
    other.mkdir()
    assert curate(scored["jsonl"], "--output", other) == 0  # an empty folder may be filled
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    told = refused(capsys, scored["jsonl"], "--output", tmp_path / "notes", "--overwrite")
    assert "has not written it" in told and os.listdir(tmp_path / "notes") == ["mine.txt"]
    for place in (
        scored["jsonl"],
        scored["jsonl"] / "in",
        layouts["jsonl"],
        layouts["jsonl"] / "in",
        layouts["jsonl"].parent,
    ):
        assert "overlaps with" in refused(capsys, scored["jsonl"], "--output", place, "--overwrite")
    # The data of one curation are the input of the next: they are not replaced by their own best part.
    again = score(out, tmp_path / "scores of out", "random")
    assert "overlaps with" in refused(capsys, again, "--output", out, "--overwrite")
    assert curate(again, "--output", tmp_path / "twice", "--keep", 0.5) == 0
    assert about(tmp_path / "twice")["image_root"] == about(out)["image_root"]
    assert not any(row.error for row in open_image_texts(tmp_path / "twice"))


def test_with_several_cuts_none_is_written_where_one_is_there(scored, tmp_path, capsys):
    assert curate(scored["jsonl"], "--output", tmp_path / "keep-0.5", "--keep", 0.5) == 0
    told = refused(capsys, scored["jsonl"], "--output", tmp_path, "--keep", 0.3, 0.5)
    assert "keep-0.5" in told and os.listdir(tmp_path) == ["keep-0.5"]


@pytest.mark.parametrize(
    "options, told",
    [
        (["--keep", 0.3], "--keep is given with --ids"),
        (["--dedup", "exact"], "--dedup is given with --ids"),
        (["--allow_partial"], "--allow_partial is given with --ids"),
        (["--compare", "x"], "--compare is given with --ids"),
    ],
)
def test_a_list_says_itself_what_is_kept(layouts, tmp_path, capsys, options, told):
    listed = ["--ids", tmp_path / "x", "--input", layouts["jsonl"], "--output", tmp_path / "out"]
    assert told in refused(capsys, *listed, *options)


def test_lists_that_do_not_fit(layouts, scored, tmp_path, capsys):
    def ids(rows, index=0):
        pq.write_table(pa.table({"row_id": rows, "text_index": pa.array([index] * len(rows), pa.int32())}), listed)
        return ["--ids", listed, "--input", layouts["jsonl"], "--output", tmp_path / "out"]

    listed = tmp_path / "list.parquet"
    told = refused(capsys, *ids(["a.jsonl:9", "a.jsonl:3", "b.jsonl:1", "b.jsonl:77"]))
    assert "rows that are to be kept are not in the data: 2, such as 'a.jsonl:9'" in told
    assert "are not in the data: 1, such as 'c.jsonl:0'" in refused(capsys, *ids(["c.jsonl:0"]))
    assert "only those of a list can be kept" in refused(capsys, *ids(["a.jsonl:0"], 5))
    assert "lists no rows" in refused(capsys, *ids(pa.array([], pa.string())))
    assert "cannot be read as a list of rows" in refused(capsys, *ids(["no number"]))
    pq.write_table(pa.table({"id": ["a.jsonl:0"]}), listed)
    options = ["--ids", listed, "--input", layouts["jsonl"], "--output", tmp_path / "out"]
    assert "no column `row_id` (columns: id)" in refused(capsys, *options)
    listed.write_bytes(b"PAR1")
    assert "cannot be read as a list of rows" in refused(capsys, *options)
    listed.unlink()
    assert "no such file" in refused(capsys, *options)
    assert "--ids needs --input" in refused(capsys, "--ids", listed, "--output", tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == []


def test_a_killed_process_leaves_what_was_there(scored, tmp_path):
    """Killed while it writes: the folder of before is whole, and the same command gets through."""
    out = tmp_path / "out"
    assert curate(scored["parquet"], "--output", out, "--keep", 0.3) == 0
    before = same_but_for(out)
    code = (
        "import os, signal, sys\n"
        "from rs_rlhf.cli.main import run\n"
        "from rs_rlhf.curation.writer import KeptRows\n"
        "KeptRows.check_all_found = lambda self, name: os.kill(os.getpid(), signal.SIGKILL)\n"
        "run('curate', sys.argv[1:])\n"
    )
    arguments = [str(scored["parquet"]), "--output", str(out), "--keep", "0.6", "--overwrite"]
    killed = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True)
    assert killed.returncode == -9
    assert same_but_for(out) == before and sorted(os.listdir(tmp_path)) == [".out.new", "out"]
    assert curate(*arguments) == 0
    assert about(out)["settings"]["keep"] == 0.6 and os.listdir(tmp_path) == ["out"]


def test_help_needs_no_heavy_modules():
    code = (
        "import sys\nfrom rs_rlhf.cli.main import run\n"
        "try:\n    run('curate', ['--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'numpy', 'pyarrow', 'transformers'} & set(sys.modules), sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--near_distance" in done.stdout, done.stderr


def test_flags_in_kebab_case(scored, tmp_path):
    options = ["--max-images-in-report", 0, "--near-distance", 3, "--allow-partial", "--output-dir", tmp_path / "out"]
    assert curate(scored["csv"], *options) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<img" not in page and about(tmp_path / "out")["settings"]["near_distance"] == 3


def test_memory_does_not_hold_the_images(tmp_path):
    """Ten megabytes of stored images, of which never more than a few are in memory."""
    noise = np.random.default_rng(0)
    images = []
    for _ in range(40):
        stream = io.BytesIO()
        Image.fromarray(noise.integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(stream, "PNG")
        images.append({"bytes": stream.getvalue(), "path": None})
    (tmp_path / "data").mkdir()
    table = pa.table({"image": images, "caption": [f"{'word ' * (i % 7)}end {i}" for i in range(40)]})
    pq.write_table(table, tmp_path / "data" / "rows.parquet", row_group_size=4)
    scores = score(tmp_path / "data", tmp_path / "scores", "length", "--rows_per_shard", 4)
    options = ["--dedup", "exact", "--max_images_in_report", 4]
    assert curate(scores, "--output", tmp_path / "warm", *options) == 0
    tracemalloc.start()
    assert curate(scores, "--output", tmp_path / "out", *options) == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(len(image["bytes"]) for image in images) > 10e6 and peak < 5e6, peak


def test_the_data_of_the_layouts_are_as_expected(scored):
    assert len(read_scores(scored["jsonl"])) == sum(1 + i % 3 for i in range(COUNT)) == 45
