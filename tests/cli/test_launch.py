"""One folder, one run, in every training command: refused before anything is loaded, overwritten, resumed."""

import json

import pytest
from helpers import picture, tree, warm

from rs_rlhf.cli import main as cli
from rs_rlhf.runs.plots import history
from rs_rlhf.runs.report import page_data

QUICK = "--use_cpu true --bf16 false --report_to none --disable_tqdm true --per_device_train_batch_size 2".split()
EACH = "--logging_steps 1 --save_steps 1 --learning_rate 1e-4".split()
COMMANDS = ["reward", "sft", "grpo", "clip", "dpo", "kto"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with pictures, and rows that each command reads."""
    folder = tmp_path_factory.mktemp("work")
    for i in range(4):
        picture(i).save(folder / f"{i}.png")
    rows = {
        "reward": {"chosen": "a river.", "rejected": "trees."},
        "dpo": {"chosen": "a river.", "rejected": "trees."},
        "kto": {"completion": "a river.", "label": True},
        "sft": {"caption": "a river."},
        "clip": {"caption": "a river."},
        "grpo": {"prompt": "What is it?", "solution": "river"},
    }
    for name, row in rows.items():
        lines = [json.dumps({"image": f"{i}.png", **row, "id": str(i)}) + "\n" for i in range(4)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def training(command, work, model, out, *flags):
    data = ["--dataset_name", work / f"{command}.jsonl", "--model_name_or_path", model, "--output_dir", out]
    reward = ["--reward_funcs", "rs_rlhf.rewards.ExactMatchReward"]
    grpo = [*reward, *"--num_generations 2 --max_completion_length 4 --log_completions".split()]
    return [command, *map(str, data), *QUICK, *EACH, *(grpo if command == "grpo" else []), *map(str, flags)]


def finished(folder, step=6):
    (folder / "checkpoint-6").mkdir(parents=True)
    log = [{"step": step, "loss": 0.5}]
    for place in (folder, folder / "checkpoint-6"):
        (place / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": log}))
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_used_folder_is_refused_before_model_and_data_are_looked_at(command, tmp_path, capsys):
    out = finished(tmp_path / "out")
    (out / "notes.txt").write_text("mine")
    (tmp_path / f"{command}.jsonl").touch()
    before = tree(tmp_path)
    argv = training(command, tmp_path, "no/model", out)
    for flags, words in (
        ([], "holds files of another run: checkpoint-6, trainer_state.json; choose another --output_dir, resume with"),
        (["--resume_from_checkpoint", "true", "--overwrite_output_dir"], "leave one of them out"),
        (["--resume_from_checkpoint", "true"], "no checkpoint to resume from"),
    ):
        assert cli.main([*argv, *flags]) == 1
        captured = capsys.readouterr()
        assert f"rs-rlhf {command}: " in captured.err and words in captured.err, captured.err
    assert tree(tmp_path) == before
    (out / "model.safetensors").write_text("x")
    argv = training(command, tmp_path, out, out, "--overwrite_output_dir")
    assert cli.main(argv) == 1 and f"would remove {out}, which is read" in capsys.readouterr().err


def test_a_failed_command_leaves_the_run_that_it_would_overwrite(work, tmp_path, capsys):
    before = tree(finished(tmp_path))
    assert cli.main(training("reward", work, "no/model", tmp_path, "--overwrite_output_dir")) == 1
    assert "neither" in capsys.readouterr().err and tree(tmp_path) == before


def model_of(command, tiny_vlm, clips):
    return clips["clip"] if command == "clip" else tiny_vlm


@pytest.mark.parametrize("command", ["reward", *(pytest.param(name, marks=pytest.mark.slow) for name in COMMANDS[1:])])
def test_six_steps_then_two_then_resumed(command, work, tiny_vlm, clips, tmp_path):
    """Report, plot and resume are of the second run alone."""
    model, out = model_of(command, tiny_vlm, clips), tmp_path / "out"
    warm.run(training(command, work, model, out, "--max_steps", 6), check=0)
    for name in ("notes.txt", "eval/base/notes.txt", "checkpoint-6/notes.txt"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(name)
    before = tree(out)
    argv = training(command, work, model, out, "--max_steps", 2)
    assert "holds files of another run: checkpoint-6" in warm.run(argv, check=1).stderr and tree(out) == before
    warm.run([*argv, "--overwrite_output_dir"], check=0)
    page = page_data([out])
    assert dict(page["facts"])["Steps"] == "2 of 2" and max(entry["step"] for entry in history(out)) == 2
    tables = {table["title"]: [entry["step"] for entry in table["steps"]] for table in page["tables"]}
    titles = ("Rollouts", "Completions, as TRL logs them") if command == "grpo" else ()
    assert tables == dict.fromkeys(titles, [1, 2])
    assert {name for name in tree(out) if name.endswith("notes.txt")} == {
        "notes.txt",
        "eval/base/notes.txt",
        "checkpoint-6/notes.txt",
    }
    assert {path.parent.name for path in out.glob("checkpoint-*/trainer_state.json")} == {
        "checkpoint-1",
        "checkpoint-2",
    }
    more = training(command, work, model, out, "--max_steps", 3, "--resume_from_checkpoint", "true")
    refused = warm.run([*more, "--seed", 7], check=1).stderr
    assert "checkpoint-2: holds weights of another run: " in refused and "seed was 42, now 7" in refused
    warm.run(more, check=0)
    assert [entry["step"] for entry in history(out) if "loss" in entry] == [1, 2, 3]


def test_two_processes_agree_that_a_folder_is_used(work, tmp_path):
    before = tree(finished(tmp_path / "out"))
    argv = training("reward", work, "no/model", tmp_path / "out", "--accelerate_config", "cpu_2proc")
    printed = warm.launched(argv, tmp_path, expect=1)
    assert printed.count("holds files of another run") == 1 and "Traceback" not in printed
    assert tree(tmp_path / "out") == before


@pytest.mark.slow
def test_two_processes_overwrite_and_resume_one_run(work, tiny_vlm, tmp_path):
    out, two = finished(tmp_path / "out"), ["--accelerate_config", "cpu_2proc"]
    argv = training("reward", work, tiny_vlm, out, *two)
    warm.launched([*argv, "--max_steps", "2", "--overwrite_output_dir"], tmp_path)
    assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}
    resumed = [*argv, "--max_steps", "3", "--resume_from_checkpoint", "true"]
    printed = warm.launched([*resumed, "--seed", "7"], tmp_path, expect=1)
    assert printed.count("seed was 42, now 7") == 1 and "Traceback" not in printed
    warm.launched(resumed, tmp_path)
    one = [part for part in resumed if part not in two]  # fewer processes go on with the same run
    warm.run([*one, "--max_steps", "4"], check=0)
    assert [entry["step"] for entry in history(out) if "loss" in entry] == [1, 2, 3, 4]
