"""Arguments of `rs-rlhf raft`: which are its own, which the training's, and which the launcher's."""

from pathlib import Path

import pytest

from rs_rlhf.cli.help.parsers import training_parser
from rs_rlhf.cli.raft import main, plain_flags, read_arguments
from rs_rlhf.cli.sft import training
from rs_rlhf.cli.training import Training
from rs_rlhf.errors import OptionError

NEEDED = ["--model_name_or_path", "p", "--dataset_name", "d.jsonl", "--score_model", "s", "--output_dir", "out"]


@pytest.mark.parametrize("parser_of", [training_parser, Training.parser])
def test_flags_are_split(parser_of, tmp_path):
    parser = parser_of(training)
    recipe = tmp_path / "raft.yaml"
    recipe.write_text(
        "model_name_or_path: p\ndataset_name: d.jsonl\nscore_model: s\noutput_dir: out\nrounds: 3\nkeep: softmax\n"
        "augment: true\nlearning_rate: 1.0e-4\nbf16: false\nmodel_init_kwargs: {a: 1}\nlora_target_modules: [q, v]\n"
        "num_processes: 2\nmixed_precision: 'no'\n"
    )
    flags = ["--config", str(recipe), "--rounds", "4", "--max_steps=5", "--overwrite_output_dir", "false", "-n", "6"]
    options, train, launched = read_arguments(flags, parser)
    assert (options.policy, options.input, options.rounds, options.n, options.keep) == (
        "p",
        "d.jsonl",
        4,
        6,
        "softmax",
    )
    assert (options.output_dir, options.augment, options.overwrite) == (Path("out"), True, False)
    expected = ["--learning_rate", "0.0001", "--bf16", "false", "--model_init_kwargs", '{"a": 1}']
    assert train == [*expected, "--lora_target_modules", "q", "v", "--max_steps=5"]
    assert launched == ["--num_processes", "2", "--mixed_precision", "no"]
    assert read_arguments([*NEEDED, "--resume_from_checkpoint", "true"], parser_of(training))[1:] == ([], [])


def test_switches_may_have_a_value():
    given = ["--overwrite", "TRUE", "--augment", "false", "--bf16", "false", "--text_only"]
    assert plain_flags(given) == ["--overwrite", "--bf16", "false", "--text_only"]


@pytest.mark.parametrize(
    ("flags", "key", "said"),
    [
        (["--learning_rates", "1"], "", "did you mean --learning_rate"),
        (["--learning_rate", "fast"], "", "learning_rate"),
        (["--rounds", "0"], "", "rounds"),
        (["--keep", "all"], "", "keep"),
        (["--weight_column", "w"], "weight_column", "leave it out"),
        (["--eval_strategy", "steps"], "eval_strategy", "leave it out"),
        (["--resume_from_checkpoint", "out/checkpoint-1"], "resume_from_checkpoint", "same command"),
        (["--accelerate_config", "zero4"], "", "zero"),
        (["--policy", "./gone"], "model_name_or_path", "neither a folder nor named"),
    ],
)
def test_mistakes_are_told_before_anything_is_sampled(flags, key, said):
    with pytest.raises(ValueError, match=said) as error:
        main([*NEEDED, *flags])
    assert getattr(error.value, "key", None) == key


def test_it_is_not_launched_itself(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(OptionError, match="launches its trainings itself"):
        main(NEEDED)
