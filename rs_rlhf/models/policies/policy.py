"""The interface of all policies: prompts with images in, n sampled answers each out.

`QwenVLPolicy` and `HFPolicy` sample in this process, `VLLMPolicy` in vLLM's engine, `EndpointPolicy` asks a server.
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from ...data.group import Group
from ...runs.progress import progress
from .sampling import Batches, Item, SamplingOptions, as_groups, consecutive_batches, request_seed


class Policy(ABC):
    """A causal vision-language model that answers prompts.

    Example:
        >>> from rs_rlhf import Policy  # doctest: +SKIP
        >>> policy = Policy.from_pretrained("out/captioner")  # doctest: +SKIP
        >>> policy.sample([("What is the scene class of this image?", "a.png")], n=3)  # doctest: +SKIP
        [['river', 'river', 'lake']]
    """

    @staticmethod
    def from_pretrained(path: str | os.PathLike[str], **options: Any) -> Policy:
        """Loads the policy that fits a checkpoint; see [`load_policy`]."""
        from .load import load_policy

        return load_policy(path, **options)

    @abstractmethod
    def _answers(self, groups: Sequence[Group], places: Sequence[int], sampling: SamplingOptions) -> list[list[str]]:
        """Returns the n answers of each of the groups at these places."""

    @abstractmethod
    def _batches(
        self, groups: Sequence[Group], sampling: SamplingOptions, share: tuple[int, int], done: Collection[int]
    ) -> Iterator[list[int]]:
        """Yields the batches of one process that are not done, as places in the input."""

    @abstractmethod
    def pixels(self, group: Group) -> list[tuple[int, int]]:
        """Returns `(width, height)` of each image of a group, as the model sees it if that is known."""

    def sample_batches(
        self,
        groups: Sequence[Group],
        sampling: SamplingOptions,
        done: Collection[int] = (),
        share: tuple[int, int] = (0, 1),
    ) -> Batches:
        """Yields `(places in the input, their n answers each)` batch by batch.

        A killed run that is resumed with `done` gives what it would have given in one go, on the same machine and
        versions.

        Args:
            groups (sequence of [`Group`]): The prompts; their completions are not read.
            sampling ([`SamplingOptions`]): How to sample.
            done (collection of `int`): Places that have answers already: a batch of only these is skipped.
            share (`tuple`): `(rank, world)`: of the batches only every world-th, from the rank-th on. The batches
                are those of one process, so answers do not depend on the number of processes.

        Raises:
            OptionError: The share is no `(rank, world)`.
            ImageError, DataError: A prompt that cannot be read; names its file and row.
            EndpointError: A server gave no usable reply.
        """
        for places in self._batches(groups, sampling, share, done):
            yield places, self._answers(groups, places, sampling)

    def sample(
        self, items: Sequence[Item], n: int = 1, *, show_progress: bool | None = None, **options: Any
    ) -> list[list[str]]:
        """Answers every item n times.

        Args:
            items (sequence): [`Group`]s, whose completions are not read, or `(prompt, image)` pairs as
                [`make_group`] takes them; the image may be `None` or a list.
            n (`int`): Answers to each item.
            show_progress (`bool`, *optional*): By default on a terminal.
            **options: Of [`SamplingOptions`]: `temperature`, `top_p`, `top_k`, `max_new_tokens`, `seed`, …

        Returns:
            `list[list[str]]`: For each item its n answers, in the order of the input, without special tokens.

        Raises:
            OptionError: An option is out of range.
            ImageError, DataError, EndpointError: As in [`Policy.sample_batches`].
        """
        sampling = SamplingOptions(n=n, **options)
        answers: list[list[str]] = [[] for _ in items]
        with progress(
            len(items), 0, "Sampling", shown=sys.stderr.isatty() if show_progress is None else show_progress
        ) as advance:
            for places, texts in self.sample_batches(as_groups(items), sampling):
                for place, group_answers in zip(places, texts, strict=True):
                    answers[place] = group_answers
                advance(len(places))
        return answers


class RequestPolicy(Policy):
    """A policy whose backend takes one request per answer and makes batches of its own.

    Prompts are handed over in the order of the input; `token_budget` has no effect. At temperature 0 a prompt is
    requested once.
    """

    handed_over = 256  # prompts at a time

    def _batches(
        self, groups: Sequence[Group], sampling: SamplingOptions, share: tuple[int, int], done: Collection[int]
    ) -> Iterator[list[int]]:
        return consecutive_batches(len(groups), sampling.batch_size or self.handed_over, share, done)

    @abstractmethod
    def _ask(
        self, groups: Sequence[Group], requests: Sequence[tuple[int, int]], sampling: SamplingOptions
    ) -> list[str]:
        """Returns the answer to each request, which is the place of a group and a seed."""

    def _answers(self, groups: Sequence[Group], places: Sequence[int], sampling: SamplingOptions) -> list[list[str]]:
        distinct = sampling.n if sampling.temperature else 1
        requests = [(i, request_seed(sampling.seed, i, k)) for i in places for k in range(distinct)]
        texts = self._ask(groups, requests, sampling)
        return [texts[k : k + distinct] * (sampling.n // distinct) for k in range(0, len(texts), distinct)]
