"""`VisionGRPOTrainer`: TRL's GRPOTrainer with the score model as the reward and remote-sensing images.

What TRL's lacks for this: images stay paths (GeoTIFF included) until their batch is due and go through our reader;
no vision token is sampled; the score model is put in one of three places, with the memory that each needs stated at
the start; the run audits its reward; and a fixed set of validation prompts is answered at every evaluation. A plain
`trl.GRPOTrainer` with a [`ScoreReward`] works as well: this class adds comfort, not correctness.

It takes TRL's place in a TRL script: a plain `GRPOConfig`, any policy and processing class that TRL takes, streaming
data sets, tools and environments, and with none of our options set TRL's losses (`docs/trl_conformance.md`). What is
ours about images holds for the families that it knows (`models.families.QWEN_VL`); of others nothing is touched but
that placeholders of images are never sampled.

Left out: validation prompts and prompt checks where tools, an environment or a rollout function make the turns.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import PIL.Image
import torch
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.trainer_utils import TrainOutput
from trl import GRPOConfig

from ..data.group import ImageSource
from ..errors import ModelMismatch, OptionError, RewardFailed, RSRLHFError, ScorerUnavailable, loading
from ..imagery.augment import rotate_flip
from ..imagery.identity import source_key
from ..imagery.raster import ImageOptions, read_image
from ..models.collator import GroupCollator
from ..models.families import QWEN_VL
from ..models.pixel_budget import settle
from ..models.policies.shared_generation import share_prompts
from ..models.row_limits import RowLimits
from ..models.vision_sharing import always_see, share_vision
from ..models.vlm import hub_config, load_processor, placeholder_tokens, set_family_budget
from ..rewards.boxes import IoUReward
from ..rewards.configured import check_weights, configured
from ..rewards.rs import RSReward
from ..rewards.score import ScoreReward
from ..runs.checkpoints import last_whole_checkpoint
from ..runs.tables import stamp_table
from ..scoring.load import load_scorer
from ..scoring.several import is_url
from ._compat import GRPOHooks, Row, ask_layout, clear_metrics, compare_layouts, has_rollouts
from .audit.rollout_audit import RolloutAudit
from .losses.group import GroupLoss
from .mixins import ResumeMixin, own_config
from .options import GRPOOptions
from .row_check import has_images, plain_turns, prompt_errors, prompt_group, row_place, row_texts

if TYPE_CHECKING:
    from ..scoring.base import GroupScorer

T = TypeVar("T")
Reward = Callable[..., list[float | None]]
Processing = ProcessorMixin | PreTrainedTokenizerBase


@dataclass
class VisionGRPOConfig(GRPOOptions, GRPOConfig):  # type: ignore[misc]  # TRL's `remove_unused_columns` may be None
    """TRL's `GRPOConfig` with image options, the score model as the reward, and the audit of it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check()


class VisionGRPOTrainer(ResumeMixin, GRPOHooks):
    """GRPO on prompts with images, rewarded by a score model.

    Args:
        model (`str` or `PreTrainedModel`): The policy, as in TRL.
        reward_funcs (callable, `str`, model or list, *optional*): Further rewards, or all of them without
            `args.score_model`.
        args ([`VisionGRPOConfig`] or `GRPOConfig`, *optional*): The options; of a `GRPOConfig` ours have their
            defaults. They are copied, as a `peft_config` is: the caller's objects stay as they are.
        train_dataset, eval_dataset (`Dataset`, `IterableDataset`): Rows with `prompt` (messages or text), perhaps
            `images` or `image` (undecoded sources, or pictures) and optionally `solution` and `choices`, as
            [`load_prompts`] gives them.
        processing_class (`ProcessorMixin` or tokenizer, *optional*): By default the model's.
        **kwargs: As in [`~trl.GRPOTrainer`].

    Raises:
        ModelError: The policy or its processor cannot be loaded.
        OptionError: Options contradict each other, there is no reward, or a pixel budget is given for a policy
            without one.

    Example:
        >>> data, root = load_prompts("scenes", "train")  # doctest: +SKIP
        >>> args = VisionGRPOConfig("out/grpo", score_model="out/score-model", image_root=root)  # doctest: +SKIP
        >>> VisionGRPOTrainer("out/policy", args=args, train_dataset=data).train()  # doctest: +SKIP
    """

    processing_class: Processing

    method = "GRPO"

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Reward | list[Reward] | None = None,
        args: GRPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        processing_class: Processing | None = None,
        **kwargs: Any,
    ) -> None:
        name = model if isinstance(model, str) else str(model.config._name_or_path)
        args = own_config(args or VisionGRPOConfig(f"{name.rstrip('/').split('/')[-1]}-GRPO"))
        self.options = args if isinstance(args, GRPOOptions) else GRPOOptions()
        self.score_reward, rewards = _rewards(self.options, reward_funcs)
        if not rewards and kwargs.get("environment_factory") is None:
            raise OptionError("no reward; give score_model in the arguments, or reward_funcs.", "score_model")
        check_weights(args.reward_weights, rewards)
        init = cast("dict[str, Any]", args.model_init_kwargs or {})
        options = {"trust_remote_code": args.trust_remote_code, **init}
        with loading(name, key="model_name_or_path"):
            # What TRL would refuse with a traceback is refused here.
            config = hub_config(name, options) if isinstance(model, str) else model.config
            if processing_class is None:
                processing_class = load_processor(name, options, truncation_side="left", padding_side="left")
        if isinstance(model, str):
            args.model_init_kwargs = {"use_safetensors": True, **init}
        processing_class = self._fit(name, config, processing_class, args)
        kwargs = {key: list(value) if isinstance(value, list) else value for key, value in kwargs.items()}
        if kwargs.get("peft_config") is not None:
            kwargs["peft_config"] = copy.deepcopy(kwargs["peft_config"])
        with loading(name, (OSError, ImportError), "model_name_or_path"):
            super().__init__(
                model=model,
                reward_funcs=list(rewards),
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                **kwargs,
            )
        for reward in rewards:
            if isinstance(reward, IoUReward | RSReward):
                reward.use_policy(config.model_type, self._processor)
        if self.score_reward is not None and self.options.score_model is not None:
            self.score_reward._scorer = self._place_score_model(self.options)
        for each in (self.model, self.ref_model):
            if each is not None:
                share_vision(bare := self.accelerator.unwrap_model(each))
                always_see(bare, processing_class)
        if self.options.shared_prefix:
            self.group_loss = GroupLoss(self.accelerator, self._processor)
            share_prompts(self.accelerator.unwrap_model(self.model))
        if self.use_vllm and self.limits.budget is not None:
            self._compare_layouts()
        self.audit = RolloutAudit(self)
        self._failures: list[RSRLHFError] = []
        if self.score_reward is not None:
            self.score_reward.on_failure = self._failures.append

    def _fit(self, name: str, config: PreTrainedConfig, processing_class: Processing, args: GRPOConfig) -> Processing:
        """Sets what is ours about images where the family is known: pixel budget, limits of rows, tokens that are
        never sampled. Returns the processing class, copied if it is changed.
        """
        budget = (self.options.min_pixels, self.options.max_pixels)
        if budget != (None, None):
            processing_class = copy.deepcopy(processing_class)
        set_family_budget(name, config, processing_class, *budget)
        self._processor = processing_class if isinstance(processing_class, ProcessorMixin) else None
        self.limits = RowLimits(self.options.reader_options(), None, frozenset())
        if self._processor is not None:
            args.generation_kwargs = _without_vision_tokens(args, config, self._processor)
        if self._processor is not None and config.model_type in QWEN_VL:
            self.limits = RowLimits.of(GroupCollator(self._processor, self.options.reader_options()))
        return processing_class

    def _place_score_model(self, args: GRPOOptions) -> GroupScorer:
        """Loads the score model, or several, where the arguments say, and states the memory of each place."""
        url = is_url(args.score_model)
        sharded = args.score_model_placement == "sharded" and not url
        zero3 = self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3
        if sharded and not zero3:
            raise OptionError("score_model_placement 'sharded' needs DeepSpeed ZeRO-3 (--accelerate_config zero3).")
        here = {"sharded": sharded, "dtype": args.score_model_dtype, **args.several()}
        options: dict[str, Any] = {"wait": args.score_server_wait} if url else here
        # The pictures come from `read_images`: bands and stretch must not be applied to them a second time.
        pictures = ImageOptions(max_image_pixels=args.max_image_pixels)
        reading, folder = pictures if url else args.reader_options(), Path(str(self.args.output_dir))
        scorer: Any = load_scorer(str(args.score_model), reading, standards=folder, **options)
        if url:
            self.accelerator.print(f"Score model: on {args.score_model}, no memory of this machine's processes.")
            return scorer
        models = nn.ModuleList(part.model for part in scorer.parts)
        self.accelerator.print(memory_estimate(models, self.accelerator.num_processes, sharded))
        if sharded:
            scorer.share_weights(self.accelerator)
        else:
            models.to(self.accelerator.device)
        for part in scorer.parts:
            part.collator.image_options = pictures  # nor those of the score model's card
        return scorer

    def settled(self, images: list[list[Any] | None]) -> list[list[Any] | None]:
        """Returns the pictures of each row resized to this run's pixel budget, which vLLM does not know."""
        if self.limits.budget is None:
            return images
        processor = cast("ProcessorMixin", self.processing_class)
        # Rows share pictures: each is resized once.
        sizes = {id(picture): settle(picture, processor) for row in images for picture in row or ()}
        return [row and [sizes[id(picture)] for picture in row] for row in images]

    def _compare_layouts(self) -> None:
        """Compares vLLM's tokens of images with the trainer's, a server's of the first images already now.

        Raises:
            ModelMismatch: They differ.
        """
        compare_layouts(self.vllm_generation)
        data: Any = self.train_dataset
        row = next(
            (row for row in islice(() if data is None else data, 64) if row.get("images") or row.get("image")), None
        )
        if row is not None:
            first, reader = self.read_images([row])[0], self.processing_class.image_processor
            pictures = first.get("images") or [first["image"]]
            grids = reader(images=pictures, return_tensors="pt")["image_grid_thw"]
            counts = (grids.prod(1) // reader.merge_size**2).tolist()
            ask_layout(self.vllm_generation, self.settled([pictures])[0] or [], counts)

    def read_images(self, rows: Sequence[dict[str, Any]], training: bool = False) -> list[dict[str, Any]]:
        """Returns rows whose `images` (and `image`) are PIL pictures, shared between rows of the same source.

        With `augment`, pictures of `training` rows are turned or flipped, those of a prompt's rows alike: the policy
        and its rewards see the same.

        Raises:
            ImageError: An image cannot be read; names the file and row.
        """
        options, turning = self.options.reader_options(), training and self.options.augment
        read: dict[object, PIL.Image.Image] = {}

        def picture(source: ImageSource, row: Row) -> PIL.Image.Image:
            where, texts = row_place(row), row_texts(row) if turning else []
            draw = f"{self.args.seed} {self.state.global_step} {where} {texts}" if turning else ""
            key = (source_key(source), draw)
            if key not in read:
                image = read_image(source, options, where)
                read[key] = rotate_flip(image, texts, random.Random(draw)) if turning else image
            return read[key]

        taken = [self._readable(row, picture) for row in rows]
        pairs = zip(rows, taken, strict=True)
        if all("images" not in given and len(row.get("images", ())) == 1 for given, row in pairs):
            return [{key: value for key, value in row.items() if key != "images"} for row in taken]  # `image` will do
        if any("images" in row for row in taken):
            return [{**row, "images": row.get("images", [])} for row in taken]
        return taken

    def _readable(self, row: Row, picture: Callable[[ImageSource, Row], PIL.Image.Image]) -> Row:
        """A row as TRL takes it: every image of the prompt in `images`, even if there is none."""
        if not has_images(row):
            return row
        given = row.get("images") if row.get("images") is not None else row.get("image")
        sources = list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
        where, prompt = row_place(row), row.get("prompt")
        if not self.makes_turns and not plain_turns(prompt, len(sources)):
            group = prompt_group(row)
            prompt, sources = group.prompt, sources if len(sources) == len(group.images) else group.images
        for source in sources:
            self.limits.size(source, where)  # said by us, before the processor says it without the row
        pictures = [picture(source, row) for source in sources]
        row = {**row, "images": pictures} if "prompt" not in row else {**row, "prompt": prompt, "images": pictures}
        return {**row, "image": pictures[0]} if row.get("image") is not None else row

    @property
    def makes_turns(self) -> bool:
        """Whether tools, an environment or a rollout function have a part in the turns, which are TRL's then."""
        return bool(self.tools or self.environment_factories or self.rollout_func)

    def row_errors(self, row: Mapping[str, Any]) -> Iterable[RSRLHFError]:
        """Yields why a prompt with images cannot be laid out; turns that TRL makes, and texts alone, are TRL's."""
        return () if self.makes_turns or not has_images(row) else prompt_errors(row, self.limits)

    def on_rewards(
        self, inputs: list[Row], prompts: list, completions: list, ids: list[list[int]], rewards: torch.Tensor
    ) -> None:
        """Stops the run if its reward has failed, on all processes at once; audits the rewards."""
        failures = self._failures
        if self.accelerator.num_processes > 1:
            failures = self.gathered(failures)
        if failures:
            raise failures[0]
        self.audit.observe(inputs, prompts, completions, ids, rewards)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trains; a run whose reward has failed for good is saved before it ends with the cause."""
        try:
            return super().train(*args, **kwargs)
        except (ScorerUnavailable, ModelMismatch, RewardFailed) as error:
            raise type(error)(f"{error.detail.rstrip('.')}. {self._saved()}", error.key) from error

    def _saved(self) -> str:
        """Saves a checkpoint unless the last step has one; says where it is."""
        step = self.state.global_step
        if not step:
            return "No step was trained, so that nothing is saved."
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{step}"
        if last_whole_checkpoint(str(self.args.output_dir)) != str(folder):
            self._save_checkpoint(self.model, trial=None)
        return f"Step {step} is saved in {folder}; resume from it with --resume_from_checkpoint true."

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's log; while training also writes some rollouts with thumbnails."""
        if self.model.training:
            self.audit.write_rollouts()
        given = self.log_completions
        # Else TRL would write an empty table over that of the step from which a run is resumed.
        self.log_completions = given and has_rollouts(self)
        super().log(logs, start_time)
        self.log_completions = given
        written = Path(str(self.args.output_dir), "completions", f"completions_{self.state.global_step:05d}.parquet")
        if self.log_completions and self.accelerator.is_main_process and written.is_file():
            stamp_table(written)

    def evaluate(
        self,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluates as TRL does, and answers the fixed validation prompts greedily."""
        self.audit.evaluated = []
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        ours = self.audit.validate(metric_key_prefix)
        if ours:
            training = self.model.training
            self.model.eval()
            clear_metrics(self, "eval")
            self.log(dict(ours))
            self.model.train(training)
        return {**metrics, **ours}

    def gathered(self, values: list[T]) -> list[T]:
        """All processes' values, in the order of the processes."""
        return gather_object(values)


def _rewards(args: GRPOOptions, given: Reward | list[Reward] | None) -> tuple[ScoreReward | None, list[Reward]]:
    """Returns the reward by the score model, which the audit watches, and all rewards."""
    rewards = [] if given is None else list(given) if isinstance(given, list) else [given]
    score = next((reward for reward in rewards if isinstance(reward, ScoreReward)), None)
    if args.score_model is not None:
        score = ScoreReward(
            args.score_model,
            relative_to_reference=args.relative_to_reference or args.reward == "rs",
            scale=args.reward_scale,
            transform=args.score_transform,
            answer_only=args.answer_only,
            shuffle_images=args.shuffle_reward_images,
            max_failed_fraction=args.max_failed_fraction,
        )
    args.check_several(args.score_model)
    if args.score_server_wait < 0:
        raise OptionError(
            f"score_server_wait is {args.score_server_wait:g}, expected at least 0.", "score_server_wait"
        )
    if args.score_server_wait != GRPOOptions.score_server_wait and not is_url(args.score_model):
        raise OptionError("score_server_wait is read with a reward server only; leave it out.", "score_server_wait")
    if args.reward == "rs":
        rewards = [RSReward(score), *rewards]
    elif args.score_model is not None and score is not None:
        rewards = [score, *rewards]
    names = ("format_weight", "profile", "solution_unit", "pairing")
    return score, configured(rewards, {name: value for name in names if (value := getattr(args, name)) is not None})


def _without_vision_tokens(args: GRPOConfig, config: PreTrainedConfig, processor: ProcessorMixin) -> dict[str, Any]:
    """Generation options that never sample a vision token: a sampled one would not fit the image features."""
    ids = placeholder_tokens(config, processor)
    given = dict(cast("dict[str, Any]", args.generation_kwargs or {}))
    if args.use_vllm:
        given["logit_bias"] = {**{i: -100.0 for i in ids}, **(given.get("logit_bias") or {})}
    else:
        given["suppress_tokens"] = sorted({*ids, *(given.get("suppress_tokens") or [])})
    return given


def memory_estimate(model: nn.Module, processes: int, sharded: bool) -> str:
    """States what a score model's weights need on each device, per placement; `sharded` is the one that is used."""
    count = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
    dtype = next(model.parameters()).dtype
    size = count * dtype.itemsize / 2**20
    used = "sharded" if sharded else "replicated"
    return (
        f"Score model: {count / 1e6:.1f} M parameters in {str(dtype).removeprefix('torch.')}. Weights on each of "
        f"{processes} device(s): replicated {size:,.0f} MiB, sharded (ZeRO-3) {size / processes:,.0f} MiB, on a "
        f"reward server 0 MiB. Used: {used}."
    )
