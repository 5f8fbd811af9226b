"""Rounds of rejection-sampling fine-tuning: what they write, resuming after a kill in each phase, and refusals."""

import json
from statistics import fmean

import pyarrow.parquet
import pytest
from helpers import WORDS, picture, tree, warm
from helpers.kills import compare, contents
from helpers.processes import kill_when
from safetensors.torch import load_file

from rs_rlhf.cli.main import run
from rs_rlhf.errors import DataError, OptionError
from rs_rlhf.runs.report import page_data
from rs_rlhf.scoring.load import load_scorer

TRAINING = {"use_cpu": "true", "bf16": "false", "gradient_checkpointing": "false", "report_to": "none"}
TRAINING |= {"disable_tqdm": "true", "per_device_train_batch_size": 4, "max_steps": 2, "learning_rate": 1e-3}
TRAINING |= {"save_steps": 1, "logging_steps": 1}


def flags(**given):
    return [str(part) for key, value in given.items() for part in (f"--{key}", value)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asked")
    for i in range(9):
        picture(i).save(folder / f"{i}.png")
    asked = [{"id": f"q{i}", "prompt": "What is it?", "image": f"{i}.png", "solution": WORDS[i % 4]} for i in range(9)]
    write(folder / "train.jsonl", asked[:6])
    write(folder / "held.jsonl", asked[6:])
    write(folder / "unknown.jsonl", [{k: v for k, v in row.items() if k != "solution"} for row in asked[:6]])
    return folder


@pytest.fixture(scope="module")
def line(data, policy_path, score_model_path):
    """The arguments of a run, but for its folder."""
    given = {"model_name_or_path": policy_path, "score_model": score_model_path, "dataset_name": data / "train.jsonl"}
    sampling = {"n": 4, "max_new_tokens": 6, "token_budget": 180, "seed": 5, "min_margin": 0.001}
    return flags(**given, **sampling, rounds=2, eval_dataset_name=data / "held.jsonl", check_best_of_n=2, **TRAINING)


@pytest.fixture(scope="module")
def whole(line, tmp_path_factory):
    folder = tmp_path_factory.mktemp("raft") / "out"
    assert run("raft", [*line, "--output_dir", str(folder)]) == 0
    return folder


def test_a_round_trains_on_what_data_best_writes(whole, data, policy_path, score_model_path, tmp_path):
    assert {path.name for path in whole.iterdir()} == {
        *(
            "eval",
            "images",
            "rollouts",
            "round-0",
            "round-1",
            "round-2",
            "rs_rlhf_run.json",
            "samples",
            "trainer_state.json",
        )
    }
    for number, policy in ((1, policy_path), (2, whole / "round-1" / "policy")):
        given = {"policy": policy, "score_model": score_model_path, "input": data / "train.jsonl", "n": 4}
        given |= {"max_new_tokens": 6, "token_budget": 180, "seed": 4 + number, "min_margin": 0.001}
        assert run("data best", flags(**given, output=tmp_path / f"{number}.jsonl")) == 0
        assert (tmp_path / f"{number}.jsonl").read_bytes() == (whole / f"round-{number}" / "best.jsonl").read_bytes()
    # And it trains as `rs-rlhf sft --weight_column` does.
    given = {"model_name_or_path": policy_path, "dataset_name": tmp_path / "1.jsonl", "weight_column": "weight"}
    assert run("sft", flags(**given, **TRAINING, seed=5, output_dir=tmp_path / "sft")) == 0
    ours, theirs = (load_file(path / "model.safetensors") for path in (whole / "round-1" / "policy", tmp_path / "sft"))
    assert ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)
    state = json.loads((whole / "round-1" / "policy" / "trainer_state.json").read_text())
    assert state["global_step"] == 2


@pytest.mark.slow
def test_several_score_models_choose_together(line, score_models, data, policy_path, tmp_path):
    names = ",".join(str(score_models / name) for name in "ac")
    given = {"score_model": names, "score_calibration": score_models / "calibration.jsonl", "rounds": 1}
    out = tmp_path / "out"
    assert run("raft", [*line, *flags(**given, check_best_of_n=0), "--output_dir", str(out)]) == 0
    assert len(list((out / "round-1").glob("score_standards_*.json"))) == 1
    log = json.loads((out / "trainer_state.json").read_text())["log_history"]
    scorer = load_scorer(names, score_calibration=str(given["score_calibration"]), device="cpu")
    (evaluated,) = [entry for entry in log if entry["step"] == 1]
    rows = pyarrow.parquet.read_table(out / "samples" / "eval_000001.parquet").to_pylist()
    images = [data / f"{6 + i}.png" for i in range(3)]
    scores = scorer.score(images, ["What is it?"] * 3, [[row["completion"].strip()] for row in rows])
    assert evaluated["eval_audit/greedy_disagreement"] == pytest.approx(fmean(s.std for (s,) in scores), abs=1e-4)
    assert [entry for entry in log if entry["step"] == 0][0]["audit/disagreement"] > 0
    with pytest.raises(OptionError) as error:
        run("raft", [*line, *flags(**given | {"score_combine": "min"}), "--output_dir", str(out)])
    assert error.value.key == "score_combine"


def test_the_log_and_the_report_are_those_of_a_training(whole):
    log = json.loads((whole / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log] == [0, 1, 2]
    for key in ("score/mean", "score/kept_mean", "audit/accuracy", "audit/kept_accuracy", "audit/shuffle_gap"):
        assert all(key in entry for entry in log[:2]) and key not in log[2], key
    assert all("eval_score/greedy_mean" in entry and "eval_audit/greedy_accuracy" in entry for entry in log)
    for entry in log[:2]:
        lines = (whole / f"round-{entry['step'] + 1}" / "best.jsonl").read_text().splitlines()
        assert entry["score/kept_mean"] == pytest.approx(sum(json.loads(line)["score"] for line in lines) / len(lines))
        assert entry["score/min"] < entry["score/mean"] < entry["score/max"] and entry["kept/rows"] == len(lines)
    assert [("loss" in entry) for entry in log] == [False, True, True]
    page = page_data([whole])
    assert {chart["label"].split(":")[0] for chart in page["headline"]} == {
        "Greedy answers to the fixed validation prompts",
        "Sampled answers in training",
    }
    assert [table["title"] for table in page["tables"]] == ["Rollouts"] and page["samples"][0]["steps"] == [0, 1, 2]
    assert ["Steps", "2 of 2"] in page["facts"] and page["images"]
    # The comparison that was made before the first round.
    assert {row["n"] for row in page["evaluations"]} == {2} and any(
        "greedy" in row["what"] for row in page["evaluations"]
    )


def test_no_solution_is_read_to_train(whole, line, data, tmp_path):
    """Without solutions the weights are the same, and the log lacks only the accuracies."""
    where = line.index(str(data / "train.jsonl"))
    other = [*line[:where], str(data / "unknown.jsonl"), *line[where + 1 :], "--rounds", "1"]
    assert run("raft", [*other, "--output_dir", str(tmp_path / "out")]) == 0
    for name in ("best.jsonl", "policy/model.safetensors"):
        assert (tmp_path / "out/round-1" / name).read_bytes() == (whole / "round-1" / name).read_bytes().replace(
            b'"source": "train"', b'"source": "unknown"'
        ).replace(b"train-", b"unknown-")
    first = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"][0]
    assert "audit/accuracy" not in first and "score/mean" in first


def test_the_same_command_does_nothing_twice_and_more_rounds_go_on(whole, line, capsys):
    before = {name: content for name, content in tree(whole).items() if name != "trainer_state.json"}
    assert run("raft", [*line, "--output_dir", str(whole)]) == 0
    assert {name: content for name, content in tree(whole).items() if name != "trainer_state.json"} == before
    printed = capsys.readouterr().out
    assert "sampling" not in printed and f"rs-rlhf report {whole}" in printed
    last = [entry for entry in printed.splitlines() if entry.startswith("| 2 ")]
    assert len(last) == 1 and last[0].count("%") == 1  # of the held-out prompts


def test_other_held_out_prompts_are_answered_anew(line, data, tmp_path, capsys):
    once = [*line, "--rounds", "1", "--output_dir", str(tmp_path / "out")]
    assert run("raft", once) == 0
    capsys.readouterr()
    assert run("raft", [*once, "--eval_dataset_name", str(data / "unknown.jsonl")]) == 0
    printed = capsys.readouterr().out
    assert "evaluating" in printed and "training" not in printed and "sampling" not in printed
    log = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert all("eval_score/greedy_mean" in entry and "eval_audit/greedy_accuracy" not in entry for entry in log)


def test_a_used_folder_is_refused(whole, line, tmp_path):
    for more, key in (
        (["--keep", "softmax"], "keep"),
        (["--seed", "6"], "seed"),
        (["--min_margin", "1"], "min_margin"),
    ):
        with pytest.raises(OptionError) as error:
            run("raft", [*line, "--output_dir", str(whole), *more])
        assert (error.value.key, error.value.where) == (key, str(whole))
    with pytest.raises(OptionError) as error:  # of another command
        run("raft", [*line, "--output_dir", str(whole / "round-1" / "policy")])
    assert error.value.key == "output_dir"
    with pytest.raises(OptionError) as error:
        run("sft", flags(dataset_name="x/y", model_name_or_path="x", output_dir=whole, **TRAINING))
    assert error.value.key == "output_dir"
    policy = flags(model_name_or_path=whole / "round-1" / "policy")
    with pytest.raises(OptionError) as error:
        run("raft", [*line, *policy, "--output_dir", str(whole), "--overwrite_output_dir"])
    assert error.value.key == "overwrite_output_dir" and (whole / "round-1" / "policy" / "config.json").is_file()


def test_overwriting_leaves_other_files(line, tmp_path):
    out, once = tmp_path / "out", [*line, "--rounds", "1"]
    assert run("raft", [*once, "--output_dir", str(out)]) == 0
    (out / "round-1" / "notes.txt").write_text("mine")
    rows = (out / "round-1" / "best.jsonl").read_bytes()
    assert run("raft", [*once, "--output_dir", str(out), "--seed", "9", "--overwrite_output_dir", "true"]) == 0
    assert (out / "round-1" / "notes.txt").read_text() == "mine"
    assert (out / "round-1" / "best.jsonl").read_bytes() != rows


def test_nothing_kept_is_told(line, tmp_path):
    with pytest.raises(DataError) as error:
        run("raft", [*line, "--output_dir", str(tmp_path / "out"), "--min_margin", "1e6"])
    assert error.value.where == str(tmp_path / "out" / "round-1" / "best.jsonl")


PHASES = {
    "start evaluated": "round-0/evaluation.json.partial",
    "sampled": "round-1/best.jsonl.partial",
    "kept": "round-1/best.jsonl",
    "trained": "round-1/policy/checkpoint-1/trainer_state.json",
    "saved": "round-1/policy/trainer_state.json",
    "evaluated": "round-1/evaluation.json.partial",
    "second sampled": "round-2/best.jsonl.partial",
    "second trained": "round-2/policy/checkpoint-1/trainer_state.json",
    "second evaluated": "round-2/evaluation.json.partial",
}


@pytest.mark.parametrize(
    "phase", [pytest.param(name, marks=() if name == "trained" else pytest.mark.slow) for name in PHASES]
)
def test_a_run_that_was_killed_resumes(phase, whole, line, tmp_path):
    """Killed in any phase, the same command ends with the files of a run in one go."""
    out = tmp_path / "out"
    mark = out / PHASES[phase]

    def begun():
        return mark.exists() and (mark.suffix != ".partial" or mark.read_bytes().count(b"\n") > 1)

    kill_when(begun, ["raft", *line, "--output_dir", str(out)])
    assert not (out / "round-2" / "evaluation.json").exists()
    assert warm.run(["raft", *line, "--output_dir", str(out)], check=0).returncode == 0
    left, expected = (read(folder) for folder in (out, whole))
    compare(left, expected)


def read(folder):
    """What a run leaves, without its ids, and the folders that files name."""
    found = contents(folder)
    names = ("rs_rlhf_run.json", "training_args.bin", "trainer_state.json", "README.md")
    kept = {name: value for name, value in found.items() if not name.endswith(names)}
    return kept | {"log": found["trainer_state.json"]["log_history"]}
