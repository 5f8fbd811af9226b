"""The command line: what it prints, how it fails, and what it hands to `accelerate launch`."""

import json
import os
import shlex
import subprocess
import sys

import pytest
from helpers import ROOT, warm

import rs_rlhf
from rs_rlhf.cli import main as cli
from rs_rlhf.declarations import find
from rs_rlhf.errors import DataError, DeclarationError, OptionError


def run(*arguments):
    """Runs `rs-rlhf` in a process of its own."""
    return warm.run(arguments)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A folder with scenes and pairs, made by the commands themselves."""
    folder = tmp_path_factory.mktemp("cli") / "scenes"
    done = run("data", "scenes", folder, "--n_train", 12, "--n_validation", 4, "--size", 56)
    assert done.returncode == 0, done.stderr
    for split in ("train", "validation"):
        arguments = ["--input", folder, "--split", split, "--output", folder / f"{split}_pairs.jsonl"]
        done = run("data", "pairs", *arguments, "--pairs-per-image", 2)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def parser():
    from rs_rlhf.cli.reward import training

    return training.parser()


@pytest.fixture
def not_launched(monkeypatch):
    for name in ("LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from rs_rlhf.cli.main import main; assert main(['--help']) == 0; "
        "heavy = {'torch', 'transformers', 'trl', 'accelerate', 'datasets', 'numpy', 'PIL'} & set(sys.modules); "
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in cli.COMMANDS)


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"rs-rlhf {rs_rlhf.__version__}\n"


def test_every_command_but_the_demo_has_help(capsys):
    for name in cli.COMMANDS:
        if name not in ("demo", "env"):
            assert cli.main([*name.split(), "--help"]) == 0
            assert f"rs-rlhf {name.removesuffix(' run')}" in capsys.readouterr().out
    assert cli.main(["data", "--help"]) == 0
    assert "data pairs" in capsys.readouterr().out


@pytest.mark.parametrize(("wrong", "right"), [(["rewards"], "reward"), (["data", "chek"], "data check")])
def test_an_unknown_command_gets_the_nearest(wrong, right, capsys):
    assert cli.main(wrong) == 1
    assert f"did you mean '{right}'?" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["data"]])
def test_no_command_prints_help_and_fails(arguments, capsys):
    assert cli.main(arguments) == 1
    assert "data check" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rat", "1"], "unknown flag --learning_rat; did you mean --learning_rate?"),
        (["--num_proceses", "2"], "did you mean --num_processes?"),
        (["--trainabel=head"], "did you mean --trainable?"),
        (["--max_steps", "many"], "--max-steps: invalid int value: 'many'"),
        (["--trainable", "tower"], "invalid choice: 'tower'"),
        (["--seed", "1", "stray"], "'stray' follows no flag"),
        (["--config", "scorers-qwen2vl-7b/stage9"], "did you mean 'scorers-qwen2vl-7b/stage3'?"),
        (["--accelerate_config", "zero9"], "did you mean 'zero"),
        (["--config"], "--config needs a value"),
        (["--use_cpu"], "no dataset_name; give --dataset_name"),
        (["--use_cpu", "--dataset_name", "none.jsonl", "--model_name_or_path", "m"], "no such file or folder"),
        (["--use_cpu", "--dataset_name", "a/b", "--model_name_or_path", "m", "--load_in_4bit"], "not supported"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, message, capsys, not_launched):
    assert cli.main(["reward", *arguments]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("rs-rlhf reward: ") and message in error


def test_an_unknown_key_of_a_recipe_gets_the_nearest(tmp_path, parser):
    from rs_rlhf.cli.launch import split_arguments

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("lerning_rate: 1.0e-5\n")
    with pytest.raises(DeclarationError, match="recipe.yaml: unknown key 'lerning_rate'; did you mean learning_rate?"):
        split_arguments(parser, ["--config", str(recipe)])


def test_flags_override_the_recipe_and_its_env_is_set(tmp_path, parser, monkeypatch):
    from rs_rlhf.cli.launch import parse, split_arguments

    monkeypatch.setenv("RS_RLHF_TEST", "before")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("env: {RS_RLHF_TEST: 1}\nlearning_rate: 1e-5\nseed: 3\nuse_cpu: true\n")
    _, flags, launch_flags = split_arguments(parser, [f"--config={recipe}", "--seed", "4"])
    _, training, _ = parse(parser, flags)
    assert (training.learning_rate, training.seed, launch_flags) == (1e-5, 4, [])
    assert os.environ["RS_RLHF_TEST"] == "1"


def test_the_launch_command(tmp_path, parser):
    from rs_rlhf.cli.launch import launch_arguments, split_arguments

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("seed: 3\naccelerate_config: zero3\nnum_processes: 4\nsame_network: true\nquiet: false\n")
    given = ["--config", str(recipe), "--seed", "2", "--num_processes", "2", "--accelerate-config=zero2"]
    arguments = launch_arguments("reward", *split_arguments(parser, [*given, "--output_dir", "out"]))
    assert arguments == [
        *("--config_file", str(find("accelerate_configs", "zero2"))),
        *("--num_processes", "4", "--same_network", "--num_processes", "2"),
        *("-m", "rs_rlhf", "reward", "--config", str(recipe), "--seed", "2", "--output_dir", "out"),
    ]
    from accelerate.commands.launch import launch_command_parser

    assert launch_command_parser().parse_args(arguments).num_processes == 2


@pytest.mark.parametrize(("variable", "launches"), [(None, 1), ("LOCAL_RANK", 0), ("ACCELERATE_MIXED_PRECISION", 0)])
def test_a_launched_process_never_launches_again(variable, launches, parser, monkeypatch, not_launched):
    from rs_rlhf.cli import launch

    calls = {"launch": 0, "main": 0}
    monkeypatch.setattr(launch, "launch", lambda arguments: calls.update(launch=1) or 0)
    monkeypatch.setattr(launch, "parse", lambda parser, flags: flags)
    monkeypatch.setattr(launch, "check_output", lambda options: None)
    if variable:
        monkeypatch.setenv(variable, "0")
    flags = ["--accelerate_config", "cpu_zero2", "--num_processes", "2", "--use_cpu", "true"]
    assert launch.run("reward", parser, lambda *_: calls.update(main=1), flags) == 0
    assert calls == {"launch": launches, "main": 1 - launches}


@pytest.mark.parametrize("config", ["multi_gpu", "zero3", "single_gpu"])
@pytest.mark.parametrize("flags", [["--num_processes", "8", "--use_cpu", "true"], ["--num_processes", "800"]])
def test_an_accelerate_config_whose_gpus_are_not_there_starts_nothing(config, flags, parser, not_launched):
    from rs_rlhf.cli import launch

    with pytest.raises(OptionError) as error:
        launch.run("reward", parser, lambda *_: pytest.fail("trained"), ["--accelerate_config", config, *flags])
    assert error.value.key == "accelerate_config" and f"{config} starts {flags[1]} " in error.value.detail
    launch.refuse_absent_gpus(["--config_file", str(find("accelerate_configs", "cpu_2proc"))], True)


def test_without_a_gpu_mixed_precision_is_left_out(parser, monkeypatch, capsys):
    import torch

    from rs_rlhf.cli import launch

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    for flags in ([], ["--bf16", "true"], ["--fp16", "true"]):
        more = launch.float32_flags(parser, flags)
        given, _ = parser.parse_known_args([*flags, *more])
        assert not given.bf16 and given.bf16 is not None and not given.fp16
        assert "training in float32" in capsys.readouterr().err
    for flags in (["--use_cpu", "true"], ["--bf16", "false"]):
        assert launch.float32_flags(parser, flags) == [] and not capsys.readouterr().err


def test_several_gpus_need_a_launcher(parser, monkeypatch, not_launched):
    import torch

    from rs_rlhf.cli import launch

    trained = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # they are counted but not there
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(OptionError, match="2 GPUs.*--accelerate_config multi_gpu.*CUDA_VISIBLE_DEVICES=0"):
        launch.run("reward", parser, lambda *_: trained.append(1), ["--bf16", "false"])
    assert not trained and find("accelerate_configs", "multi_gpu")
    launch.run("reward", parser, lambda *_: trained.append(1), ["--use_cpu"])
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(launch, "parse", lambda parser, flags: flags)
    monkeypatch.setattr(launch, "check_output", lambda options: None)
    launch.run("reward", parser, lambda *_: trained.append(1), [])
    assert len(trained) == 2


@pytest.mark.parametrize(
    "flags",
    [
        ["--load_in_4bit"],
        ["--load_in_8bit"],
        ["--pad_to_multiple_of", "8"],
    ],
)
def test_sft_refuses_what_it_would_ignore(flags, capsys, not_launched):
    assert cli.main(["sft", "--use_cpu", "--dataset_name", "a/b", "--model_name_or_path", "m", *flags]) == 1
    assert "not supported" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("command", ["sft", "reward", "clip", "grpo", "dpo", "kto"])
def test_an_evaluation_at_the_start_needs_a_strategy(command, capsys, not_launched):
    flags = ["--use_cpu", "--dataset_name", "a/b", "--model_name_or_path", "m", "--eval_on_start"]
    flags += ["--eval_strategy", "no", *(["--score_model", "s"] if command == "grpo" else [])]
    assert cli.main([command, *flags]) == 1
    assert "give --eval_on_start false" in capsys.readouterr().err.strip().splitlines()[-1]


def test_data_check_takes_the_image_options(scenes, capsys):
    file = str(scenes / "validation_pairs.jsonl")
    assert cli.main(["data", "check", file, "--bands", "4", "3", "2", "--max_problems", "1"]) == 1
    assert "names a band that is not there" in capsys.readouterr().out


def test_checked_pairs_are_good(scenes):
    files = [scenes / "train_pairs.jsonl", "--eval", scenes / "validation_pairs.jsonl"]
    done = run("data", "check", *files)
    assert done.returncode == 0, done.stdout
    assert "no problems" in done.stdout


def test_a_broken_line_is_named(scenes, tmp_path):
    lines = (scenes / "train_pairs.jsonl").read_text().splitlines()
    row = json.loads(lines[2])
    del row["chosen"]
    broken = tmp_path / "broken.jsonl"
    broken.write_text("\n".join([*lines[:2], json.dumps(row)]) + "\n")
    done = run("data", "check", broken, "--image-root", scenes)
    assert done.returncode == 1 and "broken.jsonl, line 3: no column `chosen`" in done.stdout
    options = ["--model_name_or_path", "m", "--use_cpu", "--report_to", "none", "--output_dir", tmp_path / "out"]
    done = run("reward", "--dataset_name", broken, *options)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "broken.jsonl, line 3: no column `chosen`" in done.stderr


def test_a_worker_error_is_one_sentence():
    error = ValueError("Caught ImageError in worker 0.\nOriginal Traceback:\n  x\na.b.ImageError: c.png: gone")
    assert cli.sentence(error) == "c.png: gone"


def test_env_names_the_packages(capsys):
    assert cli.main(["env"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("rs-rlhf", "python", "torch", "trl", "device"))


def test_reward_trains_from_a_recipe(scenes, tmp_path, tiny_vlm, monkeypatch, not_launched, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model_name_or_path: {tiny_vlm}\ndataset_name: {scenes / 'train_pairs.jsonl'}\nmax_steps: 1\n"
        f"eval_dataset_name: {scenes / 'validation_pairs.jsonl'}\nper_device_train_batch_size: 2\n"
        "bf16: false\nuse_cpu: true\nreport_to: none\nsave_strategy: 'no'\ntrainable: head\n"
    )
    out = tmp_path / "out"
    assert cli.main(["reward", "--config", str(recipe), "--output_dir", str(out)]) == 0
    assert (out / "model.safetensors").is_file()
    assert "eval_score/accuracy" in json.loads((out / "eval_results.json").read_text())
    printed = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  rs-rlhf eval"))
    assert cli.main(shlex.split(printed)[1:]) == 0
    assert "| all |" in capsys.readouterr().out


def test_the_printed_command_evaluates_as_the_training_did(parser):
    from rs_rlhf.cli.launch import parse
    from rs_rlhf.cli.reward import eval_command

    def printed(*flags):
        script, training, _ = parse(parser, ["--use_cpu", "--output_dir", "my out", *flags])
        return eval_command(script, training)

    start = "rs-rlhf eval --model 'my out' --preferences"
    assert printed("--dataset_name", "a.jsonl") == f"{start} FILE"
    assert printed("--dataset_name", "d", "--eval_strategy", "epoch") == f"{start} d --split test"
    flags = ["--bands", "4", "3", "2", "--stretch", "percentile", "--image_root", "r"]
    given = printed("--eval_dataset_name", "b.jsonl,c.jsonl", *flags, "--image_blind")
    assert given == f"{start} b.jsonl c.jsonl {' '.join(flags)} --image_blind"


def test_image_paths_start_at_their_own_file(tmp_path):
    from rs_rlhf.data.rows import common_folder, image_folder

    files = [tmp_path / "a" / "train.jsonl", tmp_path / "b" / "eval.jsonl"]
    for file in files:
        file.parent.mkdir()
        file.touch()
    real = os.path.realpath(tmp_path)
    assert image_folder(str(files[0])) == os.path.join(real, "a") == image_folder(str(files[0].parent))
    assert image_folder("owner/name") == os.path.realpath(".")
    assert common_folder([str(files[0])]) == os.path.join(real, "a")
    assert common_folder([str(file) for file in files]) == real
    with pytest.raises(DataError, match="share no folder; give --image_root"):
        common_folder([str(files[0]), "/etc/passwd"])


def test_evaluation_needs_data(scenes):
    from types import SimpleNamespace

    from rs_rlhf.trainers.data.reward import load_data
    from rs_rlhf.trainers.options import RewardScriptArguments

    script = RewardScriptArguments(dataset_name=str(scenes / "train_pairs.jsonl"))
    with pytest.raises(DataError, match="has no splits; give --eval_dataset_name"):
        load_data(script, SimpleNamespace(eval_strategy="steps", image_root=None))
    training = SimpleNamespace(eval_strategy="no", image_root=None)
    train_set, eval_set = load_data(script, training)
    assert eval_set is None and training.image_root == os.path.realpath(scenes)
    assert train_set[0]["images"][0]["path"].startswith(os.path.realpath(scenes))


@pytest.mark.parametrize("arguments", [["--help"], ["data", "check", "--help"], ["env"]])
def test_a_reader_that_has_seen_enough_is_no_error(arguments):
    command = [sys.executable, "-m", "rs_rlhf", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 0
