"""How a command ends early: a sentence for the user's mistakes, a traceback for bugs."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT, warm
from helpers.reward_runs import QUICK, reward, write_pairs

from rs_rlhf.cli import main as cli


def test_a_users_mistake_is_one_sentence_and_debug_adds_its_traceback(tmp_path, capsys, monkeypatch):
    command = ["report", str(tmp_path / "nowhere")]
    assert cli.main(command) == 1
    line = capsys.readouterr().err
    assert line.startswith("rs-rlhf report: ") and line.count("\n") == 1
    assert cli.main([*command, "--debug"]) == 1
    debugged = capsys.readouterr().err
    assert debugged.startswith("Traceback") and debugged.endswith(line)
    monkeypatch.setenv("RS_RLHF_DEBUG", "1")
    assert cli.main(command) == 1
    assert capsys.readouterr().err == debugged


def test_a_bug_keeps_its_traceback(tmp_path):
    """A `ValueError` of numpy whose last frame is in the package: no mistake of the user."""
    code = (
        "import numpy, sys; from rs_rlhf.cli.main import main; from rs_rlhf.metrics import preferences\n"
        "from rs_rlhf.runs import report\n"
        "source = 'def write_report(*given): return numpy.ones(2) + numpy.ones(3)'\n"
        "exec(compile(source, report.__file__, 'exec'), {'numpy': numpy}, vars(report))\n"
        "sys.exit(main(['report', 'nowhere']))"
    )
    done = warm.run(["-c", code], cwd=tmp_path, check=1)
    assert "Traceback" in done.stderr and "rs_rlhf/runs/report.py" in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("ValueError: operands could not be broadcast together")


def test_an_image_in_a_bad_row_is_not_printed(tmp_path, capsys):
    content = "data:image/png;base64," + "QUJD" * 100_000
    rows = [{"image": content, "chosen": content}, {"images": [{"url": content}], "chosen": "a", "rejected": "b"}]
    for row in rows:
        (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
        for command in (["data", "check", str(tmp_path / "rows.jsonl")], ["reward", "--dataset_name", str(tmp_path)]):
            flags = [*QUICK, "--model_name_or_path", "m"] if command[0] == "reward" else []
            assert cli.main([*command, *flags]) == 1
            captured = capsys.readouterr()
            printed = captured.out + captured.err
            assert "rows.jsonl" in printed and content[:201] not in printed and "QUJD" * 51 not in printed


def test_help_imports_no_torch():
    code = (
        "import sys; from rs_rlhf.cli.main import main\n"
        f"for name in {[*cli.COMMANDS]!r}:\n"
        "    assert main([*name.split(), '--help']) == 0, name\n"
        "    heavy = {'torch', 'transformers', 'trl'} & set(sys.modules)\n"
        "    assert not heavy, (name, heavy)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture
def pairs(tmp_path):
    return write_pairs(tmp_path)


@pytest.mark.parametrize("wrong", ["column", "image"])
def test_a_mistake_of_several_processes_is_told_once(wrong, pairs, tiny_vlm):
    """A missing column is met by both, a broken image by one, whose peer then finds the connection closed."""
    rows = [json.loads(line) for line in (pairs / "pairs.jsonl").read_text().splitlines()]
    if wrong == "image":
        (pairs / "2.png").write_bytes((pairs / "2.png").read_bytes()[:60])
    else:
        rows[2]["chosn"] = rows[2].pop("chosen")
    (pairs / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = [*reward(tiny_vlm), "--per_device_train_batch_size", "1", "--accelerate_config", "cpu_2proc"]
    printed = warm.launched(argv, pairs, cwd=pairs, expect=1)
    assert printed.count("rs-rlhf reward: ") == 1 and "pairs.jsonl, line 3" in printed and "Traceback" not in printed


@pytest.mark.parametrize("command", ["reward", "sft", "grpo", "clip", "dpo", "kto"])
@pytest.mark.parametrize("name", ["no/such/model", "./gone", "~/gone", "/gone"])
def test_a_model_that_is_neither_folder_nor_hub_id_is_named_with_its_option(command, name, pairs, capsys):
    flags = ["--reward_funcs", "rs_rlhf.rewards.ExactMatchReward", "--num_generations", "2"] * (command == "grpo")
    data = ["--dataset_name", str(pairs / "pairs.jsonl"), "--output_dir", str(pairs / "out")]
    assert cli.main([command, *data, "--model_name_or_path", name, *QUICK, *flags]) == 1
    assert f"rs-rlhf {command}: --model_name_or_path {name} is neither" in capsys.readouterr().err


def test_a_machine_without_a_gpu_trains_in_float32_with_a_note(pairs, tiny_vlm):
    argv = [
        flag for flag in reward(tiny_vlm, "--max_steps", "1") if flag not in ("--use_cpu", "--bf16", "--disable_tqdm")
    ]
    argv = [flag for flag in argv if flag not in ("true", "false")]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = warm.run([*argv, "--disable_tqdm", "true"], cwd=pairs, env=env, check=0)
    assert "training in float32" in done.stderr and "Score model saved" in done.stdout


@pytest.mark.parametrize("command", ["reward", "grpo"])
def test_models_that_cannot_be_loaded_are_a_sentence(command, pairs, tiny_vlm, tmp_path, capsys):
    weights = tmp_path / "only_bin"
    shutil.copytree(tiny_vlm, weights)
    (weights / "model.safetensors").rename(weights / "pytorch_model.bin")
    argv = reward(tiny_vlm, "--max_steps", "1", "--output_dir", str(pairs / "out"))
    argv[argv.index("pairs.jsonl")] = str(pairs / "pairs.jsonl")
    if command == "grpo":
        (pairs / "prompts.jsonl").write_text(json.dumps({"image": "0.png", "prompt": "What?", "solution": "a"}) + "\n")
        model = ["--model_name_or_path", tiny_vlm, "--reward_funcs", "rs_rlhf.rewards.ExactMatchReward"]
        argv = ["grpo", "--dataset_name", str(pairs / "prompts.jsonl"), *model, "--num_generations", "2", *QUICK]
        argv += ["--output_dir", str(pairs / "out")]
    assert cli.main([*argv, "--model_name_or_path", str(weights)]) == 1
    assert f"{weights}: --model_name_or_path: its weights are .bin files only" in capsys.readouterr().err
    if importlib.util.find_spec("flash_attn") is None:
        assert cli.main([*argv, "--attn_implementation", "flash_attention_2"]) == 1
        assert "Leave --attn_implementation out" in capsys.readouterr().err


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one MB, smaller than a tiny model."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("saving", ["steps", "no"])
def test_a_full_disk_is_named_by_a_training(saving, small_disk, pairs, tiny_vlm, capsys):
    (small_disk / "filled").write_bytes(bytes(900_000))
    argv = reward(tiny_vlm, "--max_steps", "2", "--save_strategy", saving, "--output_dir", str(small_disk / "out"))
    argv[argv.index("pairs.jsonl")] = str(pairs / "pairs.jsonl")
    assert cli.main(argv) == 1
    place = small_disk / "out" / "checkpoint-1" if saving == "steps" else small_disk / "out"
    told = capsys.readouterr().err
    assert f"rs-rlhf reward: {place}" in told and "no space is left" in told and "Traceback" not in told


def test_a_full_disk_is_named_by_another_command(small_disk, capsys):
    assert cli.main(["data", "scenes", str(small_disk / "scenes"), "--n_train", "600"]) == 1
    told = capsys.readouterr().err
    assert f"rs-rlhf data scenes: {small_disk}" in told and "no space is left" in told
