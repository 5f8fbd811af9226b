"""What our configs make of TRL's options."""

import warnings

import pytest

from rs_rlhf.cli.help.table import TRAININGS, training_of


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, True),
        ({"gradient_checkpointing": False}, False),
        ({"activation_checkpointing": False}, False),
        ({"activation_checkpointing": False, "gradient_checkpointing": True}, False),
    ],
)
def test_checkpointing_goes_by_its_new_name_without_a_warning(name, given, expected, tmp_path):
    module, cls = training_of(name).config.split(":")
    config = getattr(__import__(f"rs_rlhf.{module}", fromlist=[cls]), cls)
    kwargs = {"use_reentrant": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        args = config(str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing_kwargs=kwargs, **given)
    expected = expected and (name != "clip" or bool(given))  # transformers' own default is off
    assert args.activation_checkpointing is args.gradient_checkpointing is expected
    assert args.activation_checkpointing_kwargs == kwargs
