"""`rs-rlhf score`: the scores are the scorer's however the work is cut, errors are told, and a run goes on."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import ROOT, picture, warm

from rs_rlhf import ImageOptions, Scorer
from rs_rlhf.cli import main as cli
from rs_rlhf.curation.samples import read_scored
from rs_rlhf.curation.shards import missing_units, read_manifest, read_scores
from rs_rlhf.data.image_text_dataset import open_image_texts
from rs_rlhf.models.tiny_clip import save_tiny_clip
from rs_rlhf.scoring.load import READ_BY, load_scorer

ROWS = 24


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of rows of every form: several captions, a question with its answer, a conversation, text alone."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for i in range(ROWS):
        picture(i, 56 + 28 * (i % 3)).save(folder / f"{i}.png")
        words = " ".join(["a", "long"] * (i % 5))
        rows.append(
            [
                {"image": f"{i}.png", "captions": [f"{words} river {i}.", "many trees."], "label": "water"},
                {"image": f"{i}.png", "question": "What is it?", "answer": f"{words} port {i}.", "source": "qa"},
                {
                    "images": [f"{i}.png", "0.png"],
                    "conversations": [
                        {"from": "human", "value": "<image><image>Compare."},
                        {"from": "gpt", "value": f"{words} alike."},
                        {"from": "human", "value": "Sure?"},
                        {"from": "gpt", "value": "Yes, both are rivers."},
                    ],
                },
                {"text": f"{words} road without a picture."},
            ][i % 4]
        )
    write_rows(folder / "rows.jsonl", rows)
    return folder


def score(*argv, expect=0):
    code = cli.main(["score", *map(str, argv)])
    assert code == expect
    return code


@pytest.fixture(scope="module")
def scored(data, score_model_path, tmp_path_factory):
    """The scores of the data by the tiny model, in one shard."""
    out = tmp_path_factory.mktemp("scores") / "one"
    score("--input", data, "--model", score_model_path, "--output", out)
    return out


def test_scores_are_those_of_the_scorer(data, scored, score_model_path):
    table = read_scores(scored)
    rows = list(open_image_texts(data))
    scorer = Scorer.from_pretrained(score_model_path, device="cpu")
    groups = [group for row in rows for group in row.groups]
    expected = [one for own in scorer.score_groups(groups) for one in own]
    assert table["score"].to_pylist() == pytest.approx(expected, abs=1e-5) and table["error"].null_count == len(table)
    assert table["row_id"].to_pylist() == [row.row_id for row in rows for _ in row.texts]
    assert table["text_index"].to_pylist() == [k for row in rows for k, _ in enumerate(row.texts)]
    texts = [text for row in rows for text in row.texts]
    assert table["text"].to_pylist() == texts
    tokenize = scorer.processor.tokenizer
    assert table["tokens"].to_pylist() == [len(tokenize(text, add_special_tokens=False).input_ids) for text in texts]
    assert table["whole"].to_pylist() == [row.whole for row in rows for _ in row.texts]
    assert set(table["source"].to_pylist()) == {"rows", "qa"} and set(table["label"].to_pylist()) == {"water", ""}


def test_images_are_hashed_as_they_are_stored(data, scored):
    hashes = dict(zip(*(read_scores(scored)[name].to_pylist() for name in ("row_id", "image_hash")), strict=True))
    digest = [hashlib.sha256((data / f"{i}.png").read_bytes()).hexdigest() for i in range(3)]
    assert hashes["rows.jsonl:0"] == digest[0] and hashes["rows.jsonl:1"] == digest[1]
    assert hashes["rows.jsonl:2"] == hashlib.sha256((digest[2] + digest[0]).encode()).hexdigest()
    assert hashes["rows.jsonl:3"] == ""
    rows = [{"image": {"bytes": (data / f"{i}.png").read_bytes(), "path": None}, "caption": "a."} for i in range(3)]
    parquet = data.parent / f"{data.name}.parquet"
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    score("--input", parquet, "--scorer", "length", "--output", scored.parent / "parquet")
    assert read_scores(scored.parent / "parquet")["image_hash"].to_pylist() == digest


def test_how_the_work_is_cut_does_not_matter(data, scored, score_model_path, tmp_path, capsys):
    options = ("--input", data, "--model", score_model_path)
    score(*options, "--output", tmp_path / "threads", "--num_workers", 0)
    assert read_scores(tmp_path / "threads").equals(read_scores(scored))
    score(*options, "--output", tmp_path / "small", "--rows-per-shard", 5, "--token_budget", 300)
    assert len(list((tmp_path / "small").glob("scores-*-of-00005.parquet"))) == 5
    one, other = read_scores(scored), read_scores(tmp_path / "small")
    assert one.drop_columns("score").equals(other.drop_columns("score"))
    assert other["score"].to_pylist() == pytest.approx(one["score"].to_pylist(), abs=1e-4)
    captured = capsys.readouterr()
    assert f"scoring {ROWS} rows in 5 shards, 0 rows done" in captured.err
    assert f"{ROWS} rows: {len(one)} texts scored in " in captured.out


def test_several_models_write_their_spread(data, score_models, tmp_path, capsys):
    """And the folder keeps by what they are standardised: what is resumed is of the same models, rule and file."""
    shutil.copytree(score_models, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("[abc]"))
    file = tmp_path / "calibration.jsonl"
    names = ",".join(str(score_models / name) for name in "ab")
    options = ["--input", data, "--model", names, "--score_calibration", file, "--rows_per_shard", 9]
    options += ["--output", tmp_path / "o"]
    score(*options)
    table = read_scores(tmp_path / "o")
    scorer = load_scorer(names, score_calibration=str(file), device="cpu")
    groups = [group for row in open_image_texts(data) for group in row.groups]
    expected = [one for row in scorer.score_groups(groups) for one in row]
    assert table["score"].to_pylist() == pytest.approx(expected, abs=1e-5)
    assert table["score_std"].to_pylist() == pytest.approx([one.std for one in expected], abs=1e-5)
    (kept,) = (tmp_path / "o").glob("score_standards_*.json")
    stored = json.loads(kept.read_text())
    assert [(one["mean"], one["std"]) for one in stored["models"]] == [(s.mean, s.std) for s in scorer.standards]
    for changed in (("--score_combine", "min"), ("--model", f"{names},{score_models / 'c'}")):
        score(*options, *changed, expect=1)
        assert "holds scores of another run: scorer." in capsys.readouterr().err
    next((tmp_path / "o").glob("scores-00001*")).unlink()
    score(*options)
    assert read_scores(tmp_path / "o").equals(table)
    write_rows(file, [{"caption": text} for text in ("a river", "two planes")])
    score(*options, expect=1)
    assert "scorer.score_calibration_hash was " in capsys.readouterr().err
    assert cli.run("curate", [str(tmp_path / "o"), "--rank", "mean-std", "--output", str(tmp_path / "best")]) == 0


def test_two_launched_processes_share_the_work(data, score_model_path, tmp_path):
    options = ["--input", data, "--model", score_model_path, "--rows_per_shard", "4"]
    score(*options, "--output", tmp_path / "alone")
    launch = ["-c", warm.ACCELERATE, "--cpu", "--num_processes", "2", "-m", "rs_rlhf"]
    said = warm.launched([*launch, "score", *options, "--output", tmp_path / "both"], tmp_path)
    assert said.count("texts scored in") == 1 and "shards, 0 rows done" in said
    one, other = read_scores(tmp_path / "alone"), read_scores(tmp_path / "both")
    assert one.drop_columns("score").equals(other.drop_columns("score"))  # threads of the maths may differ: not bits
    assert other["score"].to_pylist() == pytest.approx(one["score"].to_pylist(), abs=1e-5)


def test_finished_shards_are_not_scored_again(data, tmp_path, capsys):
    options = ("--input", data, "--scorer", "length", "--rows_per_shard", 4, "--output", tmp_path / "o")
    score(*options)
    whole = read_scores(tmp_path / "o")
    shards = sorted((tmp_path / "o").glob("*.parquet"))
    shards[2].unlink()
    shards[4].unlink()
    before = {shard: (shard.stat().st_ino, shard.stat().st_mtime_ns) for shard in shards if shard.exists()}
    (tmp_path / "o" / f".{shards[2].name}.rs-rlhf.tmp").write_text("half of a shard")
    capsys.readouterr()
    score(*options)
    assert "16 rows done" in capsys.readouterr().err
    assert {shard: (shard.stat().st_ino, shard.stat().st_mtime_ns) for shard in before} == before
    assert read_scores(tmp_path / "o").equals(whole) and not list((tmp_path / "o").glob("*.tmp"))
    summary = (tmp_path / "o" / "summary.json").stat().st_mtime_ns
    score(*options)  # finished: nothing is loaded or written
    assert (tmp_path / "o" / "summary.json").stat().st_mtime_ns == summary
    assert f"{ROWS} rows: {len(whole)} texts scored" in capsys.readouterr().out
    shards[1].write_bytes(shards[1].read_bytes()[:-9])
    score(*options)
    assert f"{shards[1]} was damaged and is scored again" in capsys.readouterr().err
    assert read_scores(tmp_path / "o").equals(whole)


def test_a_changed_file_of_image_options_is_another_run(data, score_model_path, tmp_path, capsys):
    file, out = tmp_path / "options.yaml", tmp_path / "o"
    file.write_text("s2: {path: '*.png', bands: [3, 2, 1]}")
    options = ("--input", data, "--model", score_model_path, "--limit", 2, "--output", out)
    score(*options, "--image_options", file)
    score(*options, "--image_options", file)
    swapped = read_scores(out)["score"].to_pylist()
    bands = ("--input", data, "--model", score_model_path, "--limit", 2, "--bands", 3, 2, 1)
    score(*bands, "--output", tmp_path / "bands")
    assert swapped == read_scores(tmp_path / "bands")["score"].to_pylist()
    assert read_scored(out).options == ImageOptions(sensors=file)
    file.write_text("s2: {path: '*.png', bands: [1, 2, 3]}")
    capsys.readouterr()
    for changed in ((), ("--image_options", file)):
        score(*options, *changed, expect=1)
        assert "holds scores of another run: scorer.sensors was [" in capsys.readouterr().err


def test_a_finished_run_loads_no_model(data, scored, score_model_path, monkeypatch, capsys):
    monkeypatch.setattr(Scorer, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    score("--input", data, "--model", score_model_path, "--output", scored)
    assert "texts scored" in capsys.readouterr().out


def test_the_baselines(data, tmp_path):
    def scores(name, *options):
        score("--input", data, "--output", tmp_path / name, *options)
        return read_scores(tmp_path / name)

    words = scores("length", "--scorer", "length", "--rows_per_shard", 7)
    lengths = [len(text.split()) for text in words["text"].to_pylist()]
    assert words["score"].to_pylist() == lengths == words["tokens"].to_pylist()
    chance = scores("random", "--scorer", "random")
    drawn = chance["score"].to_pylist()
    assert len(set(drawn)) == len(drawn) and all(0 <= one < 1 for one in drawn) and 0.3 < sum(drawn) / len(drawn) < 0.7
    assert scores("cut", "--scorer", "random", "--rows_per_shard", 3).equals(chance)
    assert scores("other", "--scorer", "random", "--seed", 1)["score"] != chance["score"]


def test_clip_scores(data, tmp_path):
    clip = save_tiny_clip(tmp_path / "clip")
    rows = [{"image": str(data / f"{i}.png"), "captions": ["a river.", "many trees."]} for i in range(4)]
    write_rows(tmp_path / "rows.jsonl", [*rows, {"text": "no image"}])
    score(
        "--input",
        tmp_path / "rows.jsonl",
        "--image_root",
        data,
        "--scorer",
        "clip",
        "--model",
        clip,
        "--output",
        tmp_path / "o",
        "--max_error_fraction",
        0.5,
    )
    table = read_scores(tmp_path / "o")
    from rs_rlhf.scoring.clip import ClipScorer

    scorer = ClipScorer.from_pretrained(clip, device="cpu")
    groups = [row.groups[0] for row in open_image_texts(tmp_path / "rows.jsonl", image_root=data)][:4]
    expected = [one for own in scorer.score_groups(groups) for one in own]
    assert table["score"].to_pylist()[:8] == pytest.approx(expected, abs=1e-6)
    assert table["score"][8].as_py() is None and table["error"][8].as_py().startswith("no image; a CLIP score")
    tokenize = scorer.model.processor.tokenizer
    assert table["tokens"][0].as_py() == len(tokenize("a river.", add_special_tokens=False).input_ids)
    assert read_manifest(tmp_path / "o")["scorer"]["model_stamp"]


def test_rows_that_cannot_be_scored_are_counted_and_named(score_model_path, tmp_path, capsys):
    for i in range(6):
        picture(i).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:120])  # its header is whole
    rows = [{"image": f"{i}.png", "captions": ["a river.", "trees."]} for i in range(6)]
    rows[1]["image"] = "gone.png"
    rows[3]["captions"] = ["a <|image_pad|>.", "trees."]
    rows[4]["captions"] = None
    write_rows(tmp_path / "rows.jsonl", rows)
    with (tmp_path / "rows.jsonl").open("ab") as file:
        file.write(
            b'{"image": "0.png", "caption": \n{"image": "0.png", "captions": ["a river.", "trees."], '
            b'"source": "\xff\xfe"}\n'
        )
    score(
        "--input",
        tmp_path / "rows.jsonl",
        "--model",
        score_model_path,
        "--output",
        tmp_path / "o",
        "--max-error-fraction",
        0.8,
    )
    table = read_scores(tmp_path / "o").to_pylist()
    errors = {(one["row_id"], one["text_index"]): one["error"] for one in table if one["error"] is not None}
    ids = {key: f"rows.jsonl:{key}" for key in range(8)}
    expected = {
        (ids[1], 0): "no such file",
        (ids[2], 0): "truncated",
        (ids[2], 1): "truncated",
        (ids[3], 0): "image tokens in the text",
        (ids[3], 1): "image tokens in the text",
        (ids[4], 0): "the text is missing",
        (ids[6], 0): "JSON",
    }
    assert errors.keys() == expected.keys()
    for key, part in expected.items():
        assert part in errors[key] and "rows.jsonl" not in errors[key]
    assert all((one["score"] is None) == (one["error"] is not None) for one in table)
    unread = [one for one in table if one["row_id"] in (ids[1], ids[4], ids[6])]
    assert [one["text"] for one in unread] == [None] * 3 and [one["tokens"] for one in unread] == [None] * 3
    good = {one["row_id"]: one["score"] for one in table if one["text_index"] == 0 and one["error"] is None}
    scorer = Scorer.from_pretrained(score_model_path, device="cpu")
    images = [str(tmp_path / f"{i}.png") for i in (0, 5)]
    alone = [own[0] for own in scorer.score(images, None, [["a river.", "trees."]] * 2)]
    assert [good[ids[0]], good[ids[5]]] == pytest.approx(alone, abs=1e-4) and len(good) == 3
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert (summary["rows"], summary["texts"], summary["failed_texts"]) == (8, 6, 7) and len(summary["errors"]) == 5
    assert f"2 as {ids[2]}: image " in capsys.readouterr().out


def test_too_many_errors_stop_the_run_with_their_cause(tmp_path, capsys):
    for i in range(30):
        picture(i).save(tmp_path / f"{i}.png")
    rows = [{"image": f"{i % 36}.png", "caption": f"river {i}."} for i in range(300)]
    write_rows(tmp_path / "rows.jsonl", rows)
    options = ("--input", tmp_path / "rows.jsonl", "--scorer", "length", "--rows_per_shard", 50)
    score(*options, "--output", tmp_path / "o", expect=1)
    told = capsys.readouterr().err
    # a sixth of the rows, and 50 rows are too few to stop at
    assert "rows.jsonl: 12 of 100 rows cannot be scored, more than --max_error_fraction 0.05: " in told
    assert "12 as rows.jsonl:30: image " in told
    assert "no such file" in told and "Traceback" not in told
    assert [path.name for path in (tmp_path / "o").glob("*.parquet")] == ["scores-00000-of-00006.parquet"]
    for i in range(30, 36):
        picture(i).save(tmp_path / f"{i}.png")
    score(*options, "--output", tmp_path / "o")
    errors = [one for one in read_scores(tmp_path / "o").to_pylist() if one["error"]]
    assert [one["row_id"] for one in errors] == [f"rows.jsonl:{i}" for i in range(30, 36)]
    (tmp_path / "o" / "scores-00000-of-00006.parquet").unlink()  # as the reports say, to score its rows anew
    score(*options, "--output", tmp_path / "o")
    assert read_scores(tmp_path / "o")["error"].null_count == 300
    assert json.loads((tmp_path / "o" / "summary.json").read_text())["failed_texts"] == 0
    few = write_rows(tmp_path / "few.jsonl", [{"image": "no.png", "caption": "a river."}, *rows[:3]])
    score("--input", few, "--scorer", "length", "--output", tmp_path / "few", expect=1)
    assert "1 of 4 rows cannot be scored" in capsys.readouterr().err
    score("--input", few, "--scorer", "length", "--output", tmp_path / "few", "--max_error_fraction", 1)


def test_limit_scores_the_first_rows(data, tmp_path):
    score("--input", data, "--scorer", "length", "--output", tmp_path / "o", "--limit", 10, "--rows_per_shard", 4)
    assert len(set(read_scores(tmp_path / "o")["row_id"].to_pylist())) == 10
    assert [unit["rows"] for unit in read_manifest(tmp_path / "o")["units"]] == [4, 4, 2]


def test_a_tar_is_scored_some_rows_at_a_time(data, tmp_path, capsys):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(7):
            image = (data / f"{i}.png").read_bytes()
            for name, content in ((f"{i}.png", image), (f"{i}.txt", f"river {i}.".encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    options = ("--input", tmp_path / "a.tar", "--scorer", "random", "--output")
    score(*options, tmp_path / "three", "--rows_per_shard", 3)
    score(*options, tmp_path / "all")
    assert len(read_scores(tmp_path / "all")) == 7
    assert read_scores(tmp_path / "three").equals(read_scores(tmp_path / "all"))
    assert missing_units(read_manifest(tmp_path / "three"), tmp_path / "three") == []
    score(*options, tmp_path / "limit", "--limit", 2, expect=1)
    assert "--limit needs data whose rows can be counted" in capsys.readouterr().err


REFUSED = [
    (["--scorer", "clip"], "no --model; give one to score with, or --scorer length or random."),
    (["--scorer", "length", "--model", "m"], "--model is not read with --scorer length; leave it out."),
    (["--scorer", "random", "--token_budget", "5"], "--token_budget is not read with --scorer random"),
    (["--scorer", "length", "--bands", "4", "3", "2"], "--bands is not read with --scorer length"),
    (["--scorer", "clip", "--model", "m", "--max-pixels", "9"], "--max_pixels is not read with --scorer clip"),
    (["--scorer", "length", "--seed", "1"], "--seed is not read with --scorer length"),
    (["--scorer", "length", "--rows_per_shard", "0"], "--rows_per_shard is 0, expected at least 1."),
    (["--scorer", "length", "--max_error_fraction", "2"], "expected a number from 0 to 1."),
    (["--model", "no/such/folder"], "no/such/folder is neither a folder nor named as a model"),
    (["--scorer", "length", "--image_root", "nowhere"], "nowhere: no such folder; correct image_root"),
    (["--scorer", "length", "--split", "test"], "no data file that begins with 'test'"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[" ".join(options) for options, _ in REFUSED])
def test_what_cannot_be_run_is_one_sentence_and_leaves_nothing(data, tmp_path, capsys, options, message):
    score("--input", data, "--output", tmp_path / "o", *options, expect=1)
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told and len(told.strip().splitlines()) == 1
    assert not list(tmp_path.glob("o/*"))


def test_a_mistake_in_the_columns_is_told_and_can_be_corrected(data, tmp_path, capsys):
    options = ("--input", data, "--scorer", "length", "--output", tmp_path / "o")
    score(*options, "--text_column", "words", expect=1)
    told = capsys.readouterr().err
    assert f"{ROWS} of {ROWS} rows cannot be scored" in told and "no column `words`" in told
    score(*options)
    score(*options, "--text_column", "words", expect=1)
    assert "columns was None, now {'text': 'words'}; choose another --output" in capsys.readouterr().err


def test_a_model_that_does_not_load_leaves_no_plan(data, score_model_path, tmp_path, capsys):
    shutil.copytree(score_model_path, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    options = ("--input", data, "--model", tmp_path / "model", "--output", tmp_path / "o")
    score(*options, expect=1)
    assert "cannot be loaded" in capsys.readouterr().err and not (tmp_path / "o").exists()
    weights.write_bytes(content)
    score(*options, "--prompt_form", "user-turn")
    score(*options, expect=1)
    assert "scorer.prompt_form was 'user-turn', now 'question-answer'" in capsys.readouterr().err
    weights.write_bytes(content[:-4] + b"\1\2\3\4")
    score(*options, "--prompt_form", "user-turn", expect=1)
    assert "scorer.model_stamp was " in capsys.readouterr().err


def test_inputs_that_are_empty_damaged_or_the_output(data, tmp_path, capsys):
    def refusal(path, output=tmp_path / "o"):
        score("--input", path, "--scorer", "length", "--output", output, "--rows_per_shard", 10, expect=1)
        told = capsys.readouterr().err
        assert "Traceback" not in told
        return told

    (tmp_path / "empty.jsonl").touch()
    assert "empty.jsonl: is empty" in refusal(tmp_path / "empty.jsonl")
    (tmp_path / "blank.jsonl").write_text("\n\n")
    assert "blank.jsonl: is empty" in refusal(tmp_path / "blank.jsonl")
    assert not (tmp_path / "o" / "manifest.json").exists()
    assert "no such file or folder" in refusal(tmp_path / "gone.jsonl")
    assert "is where --input" in refusal(data, data) and "is where --input" in refusal(data, data / "data")
    table = pa.table({"image": [None] * 60, "caption": [f"{i**40} river" for i in range(60)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10, compression="none", use_dictionary=False)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    group = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(4).column(1)
    content[group.data_page_offset : group.data_page_offset + 20] = bytes(20)
    (tmp_path / "a.parquet").write_bytes(content)
    told = refusal(tmp_path / "a.parquet", tmp_path / "p")
    assert "a.parquet: cannot be read as Parquet" in told and "scoring 60 rows in 6 shards" in told
    assert len(list((tmp_path / "p").glob("*.parquet"))) == 4 and not list((tmp_path / "p").glob("*.tmp"))
    assert "a.parquet: cannot be read as Parquet" in refusal(tmp_path / "a.parquet", tmp_path / "p")


def test_rows_that_vanish_under_the_run_are_missed(tmp_path, capsys):
    write_rows(tmp_path / "a.csv", [])
    (tmp_path / "a.csv").write_text("title\n" + "".join(f"river {i}.\n" for i in range(10)))
    options = (
        "--input",
        tmp_path / "a.csv",
        "--scorer",
        "length",
        "--rows_per_shard",
        5,
        "--output",
        tmp_path / "o",
        "--text_only",
    )
    score(*options)
    next((tmp_path / "o").glob("scores-00001*")).unlink()
    lines = (tmp_path / "a.csv").read_text().splitlines()
    joined = "\n".join([*lines[:-2], f"{lines[-2]} {lines[-1]}"]) + "\n"  # as many bytes, a row less
    (tmp_path / "a.csv").write_text(joined)
    score(*options, expect=1)
    assert "a.csv: row 9 and those after it are gone; the input has changed" in capsys.readouterr().err


@pytest.fixture
def small_disk(tmp_path):
    """A file system of half a megabyte; where none can be mounted the test is skipped."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("a file system can be mounted by root only")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_told_and_nothing_is_lost(small_disk, tmp_path, capsys):
    noise = [hashlib.sha512(str(i).encode()).hexdigest() for i in range(8000)]
    write_rows(tmp_path / "rows.jsonl", [{"text": f"{i} {one}"} for i, one in enumerate(noise)])
    options = ("--input", tmp_path / "rows.jsonl", "--scorer", "length", "--rows_per_shard", 1000, "--text_only")
    score(*options, "--output", small_disk / "o", expect=1)
    told = capsys.readouterr().err
    assert "cannot be written (No space left on device); finished shards are kept" in told and "Traceback" not in told
    there = list((small_disk / "o").glob("*.parquet"))
    assert 0 < len(there) < 8 and {path.suffix for path in (small_disk / "o").iterdir()} == {"", ".json", ".parquet"}
    assert len(read_scores(small_disk / "o", partial=True)) == 1000 * len(there)
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    score(*options, "--output", small_disk / "o")
    score(*options, "--output", tmp_path / "whole")
    assert read_scores(small_disk / "o").equals(read_scores(tmp_path / "whole"))


def test_help_names_every_option_and_loads_no_torch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "rs_rlhf", "score", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and all(f"--{name}" in done.stdout for name in READ_BY)
    assert not any(line.split("|")[-1].strip() in ("torch", "transformers") for line in done.stderr.splitlines())


def test_folders_are_where_they_are_said(scored):
    assert {path.name for path in Path(scored).iterdir()} == {
        ".locks",
        "manifest.json",
        "scores-00000-of-00001.parquet",
        "summary.json",
    }


def test_baselines_do_without_torch(tmp_path):
    picture(0).save(tmp_path / "0.png")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "0.png", "caption": "a river."}) + "\n")
    argv = ["score", "--input", str(tmp_path / "rows.jsonl"), "--scorer", "length", "--output", str(tmp_path / "o")]
    code = f"import sys; from rs_rlhf.cli.main import main; assert main({argv}) == 0; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.endswith("False\n"), done.stdout + done.stderr
