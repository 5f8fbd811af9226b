"""Every declaration loads, and every recipe is known to the parser that will read it."""

import importlib
import re

import pytest
import yaml

from rs_rlhf import declarations
from rs_rlhf.errors import DeclarationError

ALL = [(kind, name) for kind in declarations.KINDS for name in declarations.names(kind)]
RECIPES = declarations.names("recipes")


@pytest.mark.parametrize("kind", declarations.KINDS)
def test_the_folder_is_not_empty(kind):
    assert declarations.names(kind)


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_a_declaration_is_a_mapping_and_opens_with_its_command(kind, name):
    text = declarations.find(kind, name).read_text(encoding="utf-8")
    assert isinstance(yaml.safe_load(text), dict)
    assert re.match(r"# (\w+=\S+ )*(rs-rlhf|accelerate launch|make) ", text), "open with the command that uses it"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_parses_through_its_parser(name, tmp_path, monkeypatch):
    from rs_rlhf.cli import launch

    path = declarations.find("recipes", name)
    command = re.search(r"rs-rlhf (\w+) ", path.read_text(encoding="utf-8").splitlines()[0]).group(1)
    parser = importlib.import_module(f"rs_rlhf.cli.{command}").training.parser()
    # use_cpu: bf16 needs it on a machine without a GPU.
    flags = ["--use_cpu", "true", "--output_dir", str(tmp_path)]
    config, flags, launch_flags = launch.split_arguments(parser, ["--config", name, *flags])
    assert config == str(path)
    script, training, model = launch.parse(parser, flags)
    assert script.dataset_name and model.model_name_or_path and training.output_dir == str(tmp_path)
    if launch_flags:
        from accelerate.commands.launch import launch_command_parser

        arguments = launch.launch_arguments(command, config, flags, launch_flags)
        assert launch_command_parser().parse_args(arguments).training_script == "rs_rlhf"


def test_recipes_find_the_data_where_the_variable_says(monkeypatch, tmp_path):
    from rs_rlhf.cli.arguments import read_recipe

    path = str(declarations.find("recipes", "aid-rsicd-tiny/captioner"))
    monkeypatch.delenv("RS_RLHF_DATA", raising=False)
    assert read_recipe(path)["dataset_name"] == "data/aid_rsicd"
    monkeypatch.setenv("RS_RLHF_DATA", str(tmp_path))
    assert read_recipe(path)["dataset_name"] == f"{tmp_path}/aid_rsicd"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_a_readme(name):
    path = declarations.find("recipes", name)
    readme = (path.parent / "README.md").read_text(encoding="utf-8")
    assert f"--config {name}" in readme


@pytest.mark.parametrize("name", declarations.names("reward_models"))
def test_a_reward_model_loads(name):
    from rs_rlhf.scoring.cards import find_card

    card = find_card(name)
    assert card.model and card.licence and card.recipe


@pytest.mark.parametrize("name", declarations.names("accelerate_configs"))
def test_accelerate_takes_the_config(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(declarations.find("accelerate_configs", name)))
    assert config.num_processes >= 1
    stage = (config.deepspeed_config or {}).get("zero_stage")
    assert stage != 3 or config.deepspeed_config["zero3_save_16bit_model"] is True


@pytest.mark.parametrize(
    ("kind", "wrong", "right"),
    [
        ("recipes", "scorers-qwen2vl-7b/stag1", "scorers-qwen2vl-7b/stage1"),
        ("reward_models", "scorer-7b", "scorers-7b"),
        ("accelerate_configs", "zero_2", "zero2"),
    ],
)
def test_an_unknown_name_gets_the_nearest(kind, wrong, right):
    with pytest.raises(DeclarationError, match=f"did you mean '{right}'.*Choices:"):
        declarations.find(kind, wrong)


def test_a_path_is_taken_as_it_is(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 1\n")
    assert declarations.find("recipes", str(path)) == path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: a\nlicense: b\nrecipe: c\n", "unknown key 'license'; did you mean 'licence'"),
        ("model: a\nlicence: b\n", "missing recipe"),
        ("model: a\nlicence: b\nrecipe: c\nprompt_form: answer\n", "prompt_form must be one of"),
        ("- a\n", "expected keys and values, got list"),
        ("a: [\n", "not valid YAML"),
    ],
)
def test_a_broken_declaration_says_what_is_wrong(tmp_path, text, message):
    from rs_rlhf.scoring.cards import RewardModelCard

    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(DeclarationError, match=f"mine.yaml.*{message}"):
        declarations.load("reward_models", str(path), RewardModelCard)
