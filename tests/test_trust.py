"""Code that lies in a checkpoint's folder never runs unasked: every load says so, and such folders are refused."""

import ast
import io
import json
import shutil
import sys
from pathlib import Path

import pytest

from rs_rlhf import Policy, ScoreModel, Scorer
from rs_rlhf.cli.main import main
from rs_rlhf.errors import ModelError
from rs_rlhf.models.clip import ClipModel

PACKAGE = Path(__file__).parents[1] / "rs_rlhf"
LOADERS = {"from_pretrained", "from_config", "load_dataset", "LLM"}
# Ours, which pass the argument on, and PEFT's, whose adapters bring no code.
AUTO = ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoProcessor", "AutoTokenizer")
ELSEWHERE = {"ScoreModel", "Scorer", "ClipModel", "ClipScorer", "Policy", "PeftModel", "cls"}


def loads(tree):
    """Yields the calls that load a model, a config, a processor or a data set through another library."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            owner = getattr(node.func, "value", None)
            if name in LOADERS and not (isinstance(owner, ast.Name) and owner.id in ELSEWHERE):
                yield node


def without(tree):
    """Returns the lines of loads that leave `trust_remote_code` to the library, which may ask on the terminal."""
    missing = []
    for call in loads(tree):
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        value = given.get("trust_remote_code")
        if value is None or (isinstance(value, ast.Constant) and value.value is not False):
            missing.append(call.lineno)
    return missing


def test_every_load_says_whether_code_may_run():
    trees = {path: ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
    assert sum(len(list(loads(tree))) for tree in trees.values()) >= 8
    assert {str(path): lines for path, tree in trees.items() if (lines := without(tree))} == {}


@pytest.mark.parametrize(
    ("call", "lines"),
    [
        ("AutoConfig.from_pretrained(path)", [1]),
        ("AutoConfig.from_pretrained(path, **options)", [1]),
        ("transformers.AutoModel.from_config(config, trust_remote_code=True)", [1]),
        ("datasets.load_dataset(name, trust_remote_code=None)", [1]),
        ("load_dataset(name, trust_remote_code=False)", []),
        ("Scorer.from_pretrained(path)", []),
    ],
)
def test_the_check_finds_a_load_that_does_not_say(call, lines):
    assert without(ast.parse(call)) == lines


def copied_with_code(model, folder, config):
    """A copy of a checkpoint with code, which would leave a file; returns both."""
    path = folder / "code"
    shutil.copytree(model, path)
    (path / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
    for file in path.glob("*config.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return path, folder / "ran"


@pytest.fixture(autouse=True)
def answer_yes(monkeypatch):
    """A question on the terminal would be answered with yes, and fails the test."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))


CONFIG = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
MODEL = {
    "model_type": "bert",
    "auto_map": dict.fromkeys(AUTO, "evil.Model"),
    "architectures": ["AForConditionalGeneration"],
}


@pytest.mark.parametrize(
    ("load", "config"),
    [(Policy, CONFIG), (Policy, MODEL), (ScoreModel, CONFIG), (Scorer, CONFIG), (ClipModel, CONFIG)],
)
def test_a_folder_with_code_is_refused(load, config, tiny_vlm, tmp_path):
    path, ran = copied_with_code(tiny_vlm, tmp_path, config)
    with pytest.raises(ModelError) as caught:
        load.from_pretrained(str(path))
    assert caught.value.where == str(path) and caught.value.key == "trust_remote_code"
    assert not ran.exists()


@pytest.mark.parametrize("load", [Policy, ScoreModel])
def test_the_code_of_a_known_family_is_left_alone(load, tiny_vlm, tmp_path):
    path, ran = copied_with_code(tiny_vlm, tmp_path, {"auto_map": dict.fromkeys(AUTO, "evil.Any")})
    load.from_pretrained(str(path))
    assert not ran.exists()


@pytest.mark.parametrize("command", ["sft", "grpo", "reward", "dpo"])
def test_commands_refuse_a_folder_with_code(command, tiny_vlm, tmp_path, capsys):
    path, ran = copied_with_code(tiny_vlm, tmp_path, CONFIG)
    rows = tmp_path / "rows.jsonl"
    question, answer = (
        {"role": role, "content": text} for role, text in (("user", "What?"), ("assistant", "A river."))
    )
    columns = {"prompt": [question], "solution": "river"}
    pair = {"chosen": "A river.", "rejected": "A port."}
    columns |= {"reward": pair, "dpo": pair, "sft": {"completion": [answer]}}.get(command, {})
    rows.write_text(json.dumps(columns) + "\n")
    arguments = [command, "--model_name_or_path", path, "--dataset_name", rows, "--output_dir", tmp_path / "out"]
    arguments += ["--text_only", "--reward_funcs", "rs_rlhf.rewards.score_reward"][: 3 if command == "grpo" else 1]
    arguments += ["--use_cpu", "true", "--bf16", "false", "--report_to", "none"]
    assert main([str(argument) for argument in arguments]) == 1
    assert f"{path}: cannot be loaded without running the custom code" in capsys.readouterr().err
    assert not ran.exists()
