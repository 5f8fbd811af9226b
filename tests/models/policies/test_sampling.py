"""Sampling options validate themselves; tokens follow the draws; batches hold what is due, the longest first."""

from dataclasses import dataclass

import pytest
import torch

from rs_rlhf.errors import OptionError
from rs_rlhf.models.policies.sampling import SamplingOptions, choose_tokens, consecutive_batches, planned_batches


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -1}, {"n": 0}, {"max_new_tokens": 0}]
)
def test_an_option_out_of_range_is_named(wrong):
    with pytest.raises(OptionError) as error:
        SamplingOptions(**wrong)
    assert error.value.key == next(iter(wrong))


def test_a_command_gives_the_options_that_it_has():
    @dataclass
    class Command:
        n: int = 3
        seed: int = 5
        dtype: str = "bfloat16"

    assert SamplingOptions.from_command(Command(), seed=6) == SamplingOptions(n=3, seed=6)


def test_draws_follow_the_probabilities():
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = torch.full((20000, 40), -torch.inf)
    places = [20, 21, 23, 24]
    logits[:, places] = shares.log()
    draws = torch.rand(20000, generator=torch.Generator().manual_seed(0))

    def frequencies(**options):
        chosen = choose_tokens(logits.clone(), draws, SamplingOptions(**options), [22], 40)
        return [(chosen == place).float().mean().item() for place in places]

    assert frequencies() == pytest.approx(shares.tolist(), abs=0.01)
    assert frequencies(top_k=2) == pytest.approx([0.625, 0.375, 0, 0], abs=0.01)
    assert frequencies(top_p=0.7) == pytest.approx([0.625, 0.375, 0, 0], abs=0.01)
    assert frequencies(temperature=1e-3) == [1, 0, 0, 0]
    assert frequencies(temperature=0, top_p=0.9) == [1, 0, 0, 0]


def test_barred_tokens_and_the_padding_of_the_vocabulary_are_never_chosen():
    logits = torch.zeros(1, 50)
    logits[:, [3, 4]] = 50.0
    logits[:, 42:] = 60.0
    logits[:, 40] = 40.0
    assert choose_tokens(logits, torch.tensor([0.5]), SamplingOptions(), [3, 4], 42).tolist() == [40]


def test_batches_are_planned_the_longest_first_and_shared():
    sampling = SamplingOptions(2, max_new_tokens=10, token_budget=120)
    whole = [[1, 3], [0, 2, 4]]
    assert list(planned_batches([10, 20, 10, 20, 5], sampling)) == whole
    assert list(planned_batches([10, 20, 10, 20, 5], sampling, (1, 2))) == whole[1:]
    assert list(planned_batches([10, 20, 10, 20, 5], sampling, done={1, 3})) == whole[1:]
    assert list(consecutive_batches(5, 2, done={0})) == [[0, 1], [2, 3], [4]]
    with pytest.raises(OptionError) as error:
        next(consecutive_batches(5, 2, (2, 2)))
    assert error.value.key == "share"
