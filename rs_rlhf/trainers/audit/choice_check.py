"""The comparison of the score model's choice with the greedy answer, before the first step of GRPO.

The policy answers as it does in training, whatever generates there (transformers, vLLM, ZeRO-3 shards), and the
reward's score model chooses; the processes share the prompts of a batch. What is compared and printed is that of
`scoring.comparison`. Left out: open questions and boxes, whose answers are not compared with a text, and turns that
tools make.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOConfig

from ...data.group import Group
from ...data.questions import QuestionRow
from ...errors import ModelMismatch, RSRLHFError, ScoreError, ScorerUnavailable
from ...models.policies.policy import Policy
from ...models.policies.sampling import SamplingOptions, consecutive_batches
from ...scoring.base import raise_first
from ...scoring.cards import model_stamp
from ...scoring.comparison import NOT_COMPARED, Chooser, check_best_of_n, labelled_places, write
from .._compat import Row
from ..row_check import prompt_group

if TYPE_CHECKING:
    from ..grpo import VisionGRPOTrainer

FOLDER = "best of n before the training"  # in OUTPUT_DIR/eval, where the run's report finds it


class TrainedPolicy(Policy):
    """The policy of a [`VisionGRPOTrainer`], in the middle of its training; every process must ask it the same.

    Answers are sampled with the options of the training; those of a call only say how many, and whether greedily.

    Args:
        trainer ([`VisionGRPOTrainer`]): The training.
        rows (sequence of `dict`): Rows of its data, of which the groups that it is asked were made.
    """

    def __init__(self, trainer: VisionGRPOTrainer, rows: Sequence[Row]) -> None:
        self.trainer, self.rows = trainer, rows

    def _batches(
        self, groups: Sequence[Group], sampling: SamplingOptions, share: tuple[int, int], done: Collection[int]
    ) -> Iterator[list[int]]:
        args: Any = self.trainer.args
        rows = args.per_device_train_batch_size * args.steps_per_generation  # what a step generates at once
        size = max(1, rows // sampling.n) * self.trainer.accelerator.num_processes
        return consecutive_batches(len(groups), size, share, done)

    def _answers(self, groups: Sequence[Group], places: Sequence[int], sampling: SamplingOptions) -> list[list[str]]:
        trainer, processes = self.trainer, self.trainer.accelerator.num_processes
        share = -(-len(places) // processes)  # the same on every process: ZeRO-3 generates in step
        start = trainer.accelerator.process_index * share
        own = [places[min(start + k, len(places) - 1)] for k in range(share)]
        read: list[Row] = []
        errors: list[object] = []
        try:
            read = trainer.read_images([self.rows[i] for i in own])
        except RSRLHFError as error:
            errors = [error]
        raise_first(trainer.gathered(errors))  # on all processes, none of which is left waiting
        rows = [row for row in read for _ in range(sampling.n)]
        training = trainer.model.training
        trainer.model.eval()
        ids = trainer.generated(rows, sampled=sampling.temperature > 0)
        trainer.model.train(training)
        texts = trainer.processing_class.batch_decode(ids, skip_special_tokens=True)
        answered = [(place, texts[k * sampling.n : (k + 1) * sampling.n]) for k, place in enumerate(own)]
        known = dict(trainer.gathered(answered))
        return [known[place] for place in places]

    def pixels(self, group: Group) -> list[tuple[int, int]]:
        """Returns the sizes of a group's images; see [`Policy.pixels`]."""
        return [self.trainer.limits.size(image, group.where or "") for image in group.images]


class RewardScorer:
    """The score model of a [`VisionGRPOTrainer`] as a `GroupScorer`: shown what the reward shows it."""

    def __init__(self, trainer: VisionGRPOTrainer) -> None:
        self.trainer = trainer

    def score_groups(self, groups: Sequence[Group], **_: Any) -> list[Any]:
        """Returns for each group the scores of its completions; every process must ask."""
        reward = self.trainer.score_reward
        assert reward is not None
        read = self.trainer.read_images([{"prompt": group.prompt, "images": group.images} for group in groups])
        pictured = [replace(group, images=row.get("images", [])) for group, row in zip(groups, read, strict=True)]
        scores = reward.score_groups([reward.shown(group) for group in pictured])
        ends = (ScorerUnavailable, ModelMismatch)  # the run with it; without the score of an answer a run goes on
        failed = [each for each in scores if isinstance(each, Exception)]
        raise_first(self.trainer.gathered([e if isinstance(e, ends) else ScoreError(str(e)) for e in failed]))
        return scores


class ChoiceCheck(TrainerCallback):
    """Makes the comparison when a training begins whose reward is the score; not when it is resumed.

    Args:
        trainer ([`VisionGRPOTrainer`]): The training.
        limit (`int`): Labelled questions at most, of the evaluation prompts, or else of the training prompts.
    """

    def __init__(self, trainer: VisionGRPOTrainer, limit: int) -> None:
        self.trainer, self.limit = trainer, limit

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Compares, prints, and writes the results where the run's report finds them."""
        trainer = self.trainer
        if state.global_step or trainer.score_reward is None or trainer.options.reward != "score":
            return
        if trainer.makes_turns:
            return
        rows, title = self._rows()
        if not rows:
            trainer.accelerator.print(NOT_COMPARED)
            return
        self._compare(rows, title)

    def _compare(self, rows: Sequence[Row], title: str) -> None:
        trainer, args = self.trainer, cast("GRPOConfig", self.trainer.args)
        sampling = SamplingOptions(
            n=args.num_generations or 1,
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=max(args.top_k or 0, 0),
            max_new_tokens=args.max_completion_length or SamplingOptions.max_new_tokens,
            seed=args.seed,
        )
        here, device = trainer.accelerator.is_main_process, trainer.accelerator.device
        policy = trainer.model.config._name_or_path
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng([device] if device.type == "cuda" else []):
            results = check_best_of_n(
                lambda: TrainedPolicy(trainer, rows),
                Chooser([trainer.options.score_model], lambda: RewardScorer(trainer)),
                [_question(row) for row in rows],
                sampling,
                Path(folder),
                limit=len(rows),
                settings={"policy": policy, "policy_hash": model_stamp(policy)},
                title=title,
                shown=here,
            )
        if results is not None and here:
            write(results, Path(str(args.output_dir), "eval", FOLDER))

    def _rows(self) -> tuple[list[Row], str]:
        """Labelled rows to compare on, and what they are."""
        kinds = {"evaluation": self.trainer.eval_dataset, "training": self.trainer.train_dataset}
        for kind, data in kinds.items():
            if isinstance(data, Dataset) and "solution" in data.column_names:
                known = data.select_columns(sorted({"solution", "reward_type"} & {*data.column_names}))[:]
                labels = [*zip(known["solution"], known.get("reward_type", [None] * len(data)), strict=True)]
                if places := labelled_places(labels, self.limit, self.trainer.args.seed):
                    return [data[i] for i in places], f"labelled {kind} prompts"
        return [], ""


def _question(row: Row) -> QuestionRow:
    columns = {"reward_type": row.get("reward_type")}
    group, choices = prompt_group(row), list(row.get("choices") or [])
    return QuestionRow(
        group, group.prompt, str(row.get("id")), reference=str(row["solution"]), choices=choices, columns=columns
    )
