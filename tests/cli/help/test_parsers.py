"""Help and checks before the start: grouped, true to TRL's parser, and without torch."""

import json
import os
import subprocess
import sys

import pytest
from helpers import ROOT

from rs_rlhf.cli.help.parsers import MOST_USED, OTHERS, training_parser
from rs_rlhf.cli.help.table import TRAININGS, stored, training_of
from rs_rlhf.cli.main import COMMANDS

HEAVY = ("torch", "transformers", "trl", "accelerate", "datasets")
WITHOUT = f"""
import contextlib, io, json, sys
from rs_rlhf.cli.main import main
told = []
for argv in json.loads(sys.argv[1]):
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = main(argv)
    loaded = sorted({set(HEAVY)!r} & set(sys.modules))
    told.append([code, out.getvalue(), error.getvalue(), loaded])
print(json.dumps(told))
"""


def run_light(cases, folder=ROOT):
    """Runs commands in one process; returns the code, the output and the loaded heavy modules of each."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = [sys.executable, "-c", WITHOUT, json.dumps(cases)]
    done = subprocess.run(code, env=env, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_help_of_no_command_loads_torch():
    assert stored()
    cases = [[*name.split(), "--help"] for name in COMMANDS]
    cases += [[name, "--help-all"] for name in (*TRAININGS, "raft")]
    for case, (code, out, error, loaded) in zip(cases, run_light(cases), strict=True):
        assert (code, error, loaded) == (0, "", []), case
        assert out.startswith(f"usage: rs-rlhf {' '.join(case[:-1])}")
        trained = case[0] in (*TRAININGS, "raft")
        assert ("--learning_rate" in out) == trained
        assert ("--adam_epsilon" in out) == (case[-1] == "--help-all")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["reward", "--learning_rat", "1"], "did you mean --learning_rate?"),
        (["clip", "--num-proceses", "2"], "did you mean --num_processes?"),
        (["grpo", "--score_modle", "x"], "did you mean --score_model?"),
        (
            ["raft", "--input", "x", "--policy", "y", "--output_dir", "z", "--score_model", "s", "--learn", "1"],
            "--learn",
        ),
        (["score", "--inptu", "x"], "did you mean --input?"),
        (["eval", "--modle", "x"], "did you mean --model?"),
        (["data", "pairs", "--inputs=x"], "did you mean --input?"),
        (["sft", "--max_steps", "many"], "invalid int value: 'many'"),
        (["sft", "--use_cpu", "perhaps"], "neither true nor false"),
        (["dpo", "--dataset_name", "none.jsonl", "--model_name_or_path", "m"], "none.jsonl: no such file or folder"),
        (["kto", "--dataset_name", "a.jsonl", "--model_name_or_path", "m"], "a.jsonl: no such file or folder"),
        (["reward", "--dataset_name", "x/y", "--model_name_or_path", "./m"], "./m is neither a folder"),
        (["reward", "--dataset_name", "x/y", "--model_name_or_path", "m", "--image_options", "i"], "no such file"),
        (["reward", "--dataset_name", "x/y", "--model_name_or_path", "m", "--output_dir", "file"], "is a file"),
        (["reward", "--config", "recipe.yaml"], "none.jsonl: no such file or folder"),
        (["score", "--input", "none.csv", "--model", "m", "--output", "o"], "none.csv: no such file or folder"),
        (["eval", "--model", "./m", "--task", "scenes"], "./m: no such folder"),
        (["eval", "preferences", "--model", "m", "--preferences", "none.jsonl"], "none.jsonl: no such file or folder"),
        (["best-of-n", "--policy", "/no/m", "--score_model", "m", "--task", "scenes", "--out", "o"], "/no/m: no such"),
        (["init", "nowhere"], "init: nowhere: no such folder"),
        (["serve", "--model", "/no/m"], "/no/m is neither a folder"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_mistake_is_told_before_torch_is_loaded(arguments, told, light):
    code, _, error, loaded = light[json.dumps(arguments)]
    assert code == 1 and told in error and error.count("\n") == 1 and not loaded


@pytest.fixture(scope="module")
def light(request, tmp_path_factory):
    """What all the mistakes gave, told in one process."""
    folder = tmp_path_factory.mktemp("light")
    (folder / "file").touch()
    (folder / "recipe.yaml").write_text("dataset_name: none.jsonl\nmodel_name_or_path: m\nlearning_rate: 1e-5\n")
    marks = test_a_mistake_is_told_before_torch_is_loaded.pytestmark
    cases = [case for mark in marks if mark.name == "parametrize" for case, _ in mark.args[1]]
    return dict(zip(map(json.dumps, cases), run_light(cases, folder), strict=True))


@pytest.mark.parametrize("name", TRAININGS)
def test_the_light_parser_knows_the_flags_of_trls_parser(name):
    training = training_of(name)
    light, real = training_parser(training), training.parser()
    flags = {flag for action in real._actions for flag in action.option_strings if not flag.startswith("--no")}
    assert flags <= {*light._option_string_actions}
    given = ["--use_cpu", "--bf16", "false", "--max_steps", "3", "--learning_rate", "1e-3", "--seed", "7"]
    values, known = vars(light.parse_args(given)), vars(real.parse_known_args(given)[0])
    assert {key: values[key] for key in known if key in values and key not in ("config",)} == known


def test_the_most_used_options_are_some_of_some_training():
    known = {action.dest for name in TRAININGS for action in training_parser(training_of(name))._actions}
    assert not {name for names in MOST_USED.values() for name in names.split()} - known
    titles = [group.title for group in training_parser(training_of("reward"), False)._action_groups]
    assert [*MOST_USED][:3] == [title for title in titles if title in MOST_USED][:3] and OTHERS not in titles


@pytest.mark.slow
def test_a_training_does_not_begin_with_a_line_about_wandb():
    code = "from rs_rlhf.cli.training import quietly_import_transformers; quietly_import_transformers()"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}
    done = subprocess.run([sys.executable, "-c", f"{code}; import rs_rlhf.cli.launch"], env=env, capture_output=True)
    assert done.returncode == 0 and done.stdout == b""
