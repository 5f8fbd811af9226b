"""`VisionGRPOTrainer`: TRL's GRPOTrainer with the score model as the reward and remote-sensing images.

What TRL's lacks for this: images stay paths (GeoTIFF included) until their batch is due and go through our reader;
no vision token is sampled; the score model is put in one of three places, with the memory that each needs stated at
the start; the run audits its reward; and a fixed set of validation prompts is answered at every evaluation. A plain
`trl.GRPOTrainer` with a [`ScoreReward`] works as well: this class adds comfort, not correctness.

Left out: tools and environments (TRL's, untouched), and streaming data sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from transformers import AutoProcessor
from trl import GRPOConfig, GRPOTrainer

from ..errors import OptionError
from ..imagery.arguments import ImageArguments
from ..imagery.identity import source_key
from ..imagery.raster import ImageOptions, read_image
from ..models.pixel_budget import set_pixel_budget
from ..models.vision_sharing import share_vision
from ..models.vlm import VISION_TOKENS
from ..rewards.rules import RSReward
from ..rewards.score import TRANSFORMS, ScoreReward
from ..scoring.load import is_url, load_scorer
from .mixins import ResumeMixin
from .rollout_audit import RolloutAudit

REWARDS = ("score", "rs")
PLACEMENTS = ("replicated", "sharded")


@dataclass
class VisionGRPOConfig(ImageArguments, GRPOConfig):
    """TRL's `GRPOConfig` with image options, the score model as the reward, and the audit of it."""

    score_model: str | None = field(
        default=None,
        metadata={
            "help": "Score model of the reward: a name in reward_models/, a folder, a hub id, or the URLs of reward "
            "servers, separated by commas."
        },
    )
    reward: str = field(
        default="score",
        metadata={
            "help": "'score': the score model's score of each completion; 'rs': the published mix 0.3 format + 0.7 "
            "accuracy by the column `reward_type` (em, iou, open_ended), the score model judging open_ended rows.",
            "choices": list(REWARDS),
        },
    )
    score_model_placement: str = field(
        default="replicated",
        metadata={
            "help": "'replicated': the whole score model on each process's device; 'sharded': shared out by DeepSpeed "
            "ZeRO-3 beside the policy. One with a URL is where its server is.",
            "choices": list(PLACEMENTS),
        },
    )
    score_model_dtype: str | None = field(
        default=None, metadata={"help": "Type of its weights, such as bfloat16; by default the checkpoint's."}
    )
    relative_to_reference: bool = field(
        default=False,
        metadata={"help": "Reward 1 - exp(-reward_scale * (score - score of the solution)), 0 below the solution."},
    )
    score_transform: str = field(
        default="none",
        metadata={
            "help": "'exp' rewards exp(score), which is proportional to the probability of being the best answer; "
            "'softmax' that probability itself, among the row's `choices`.",
            "choices": list(TRANSFORMS),
        },
    )
    reward_scale: float = field(default=0.2, metadata={"help": "Scale of relative_to_reference."})
    answer_only: bool = field(
        default=True, metadata={"help": "Score the text inside <answer> where there is one, not the whole completion."}
    )
    shuffle_reward_images: bool = field(
        default=False,
        metadata={"help": "Score with another prompt's image: the control run, which must not improve."},
    )
    max_failed_fraction: float = field(
        default=0.5, metadata={"help": "Stop when more than this share of the rewards of the last 10 steps failed."}
    )
    audit_steps: int = field(
        default=25, metadata={"help": "Steps between two measurements of the reward's image-shuffle gap; 0: none."}
    )
    validation_prompts: int = field(
        default=32,
        metadata={"help": "Evaluation prompts, the first ones, answered greedily at every evaluation; 0: none."},
    )
    logged_samples: int = field(
        default=8,
        metadata={"help": "Rollouts (and validation answers) written with thumbnails at each logging; 0: none."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in (("score_model_placement", PLACEMENTS), ("reward", REWARDS)):
            if getattr(self, name) not in choices:
                raise OptionError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        if self.augment:
            raise OptionError("augment must be false: the policy is rewarded for the image that it is shown.")
        if self.log_multimodal:
            self.log_multimodal = False  # ours are capped thumbnails, see logged_samples


class VisionGRPOTrainer(ResumeMixin, GRPOTrainer):
    """GRPO on prompts with images, rewarded by a score model.

    Args:
        model (`str` or `PreTrainedModel`): The policy, as in TRL.
        reward_funcs (callable or list, *optional*): Further rewards, or all of them without `args.score_model`.
        args ([`VisionGRPOConfig`]): The options.
        train_dataset, eval_dataset (`Dataset`): Rows with `prompt` (messages), `images` (undecoded sources) and
            optionally `solution` and `choices`, as [`load_prompts`] gives them.
        processing_class (`ProcessorMixin`, *optional*): By default the model's.
        **kwargs: As in [`~trl.GRPOTrainer`].

    Example:
        >>> data, root = load_prompts("scenes", "train")  # doctest: +SKIP
        >>> args = VisionGRPOConfig("out/grpo", score_model="out/score-model", image_root=root)  # doctest: +SKIP
        >>> VisionGRPOTrainer("out/policy", args=args, train_dataset=data).train()  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: VisionGRPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = VisionGRPOConfig(f"{name.rstrip('/').split('/')[-1]}-GRPO")
        given = [] if reward_funcs is None else reward_funcs
        rewards = list(given) if isinstance(given, list) else [given]
        self.score_reward = next((reward for reward in rewards if isinstance(reward, ScoreReward)), None)
        if args.score_model is not None:
            self.score_reward = _score_reward(args)
        if args.reward == "rs":
            rewards = [RSReward(self.score_reward), *rewards]
        elif args.score_model is not None:
            rewards = [self.score_reward, *rewards]
        if not rewards:
            raise OptionError("no reward; give score_model in the arguments, or reward_funcs.")
        if processing_class is None:
            path = model if isinstance(model, str) else model.config._name_or_path
            revision = (cast("dict[str, Any]", args.model_init_kwargs or {})).get("revision")
            processing_class = AutoProcessor.from_pretrained(
                path, revision=revision, truncation_side="left", padding_side="left"
            )
        if isinstance(model, str):
            args.model_init_kwargs = {"use_safetensors": True} | cast("dict[str, Any]", args.model_init_kwargs or {})
        set_pixel_budget(processing_class, args.min_pixels, args.max_pixels)
        args.generation_kwargs = _without_vision_tokens(args, processing_class.tokenizer)
        super().__init__(
            model=model,
            reward_funcs=rewards,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if self.score_reward is not None and args.score_model is not None:
            self.score_reward._scorer = self._place_score_model(args)
        for each in (self.model, self.ref_model):
            if each is not None:
                share_vision(self.accelerator.unwrap_model(each))
        self.audit = RolloutAudit(self)

    def _place_score_model(self, args: VisionGRPOConfig) -> Any:
        """Loads the score model where the arguments say, and states the memory of each place."""
        url = is_url(args.score_model)
        sharded = args.score_model_placement == "sharded" and not url
        zero3 = self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3
        if sharded and not zero3:
            raise OptionError("score_model_placement 'sharded' needs DeepSpeed ZeRO-3 (--accelerate_config zero3).")
        options: dict[str, Any] = {} if url else {"sharded": sharded, "dtype": args.score_model_dtype}
        # The pictures come from `read_images`: bands and stretch must not be applied to them a second time.
        pictures = ImageOptions(max_image_pixels=args.max_image_pixels)
        scorer: Any = load_scorer(str(args.score_model), pictures, **options)
        if url:
            self.accelerator.print(f"Score model: on {args.score_model}, no memory of this machine's processes.")
            return scorer
        scorer.collator.image_options = pictures  # nor those of the score model's card
        self.accelerator.print(memory_estimate(scorer.model, self.accelerator.num_processes, sharded))
        if sharded:
            scorer.share_weights(self.accelerator)
        else:
            scorer.model.to(self.accelerator.device)
        return scorer

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Reads the images of a generation batch, each distinct one once, and hands it to TRL."""
        return super()._generate_and_score_completions(self.read_images(inputs))

    def read_images(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns rows whose `image` or `images` are PIL pictures, shared between rows of the same source.

        Raises:
            ImageError: An image cannot be read; names the file.
        """
        options = cast("VisionGRPOConfig", self.args).image_options()
        read: dict[Any, Any] = {}

        def picture(source: Any) -> Any:
            key = source_key(source)
            if key not in read:
                read[key] = read_image(source, options)
            return read[key]

        out = []
        for row in rows:
            row = dict(row)
            if row.get("images") is not None:
                row["images"] = [picture(source) for source in row["images"]]
            elif row.get("image") is not None:
                row["image"] = picture(row["image"])
            out.append(row)
        return out

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Any:
        """TRL's rewards, and the audit of them."""
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self.audit.observe(inputs, prompts, completions, completion_ids_list, rewards)
        return rewards

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's log; while training also writes some rollouts with thumbnails."""
        if self.model.training:
            self.audit.write_rollouts()
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """TRL's evaluation, and the greedy answers to the fixed validation prompts."""
        self.audit.evaluated = []
        metrics = super().evaluate(*args, **kwargs)
        ours = self.audit.validate(kwargs.get("metric_key_prefix", "eval"))
        if ours:
            training = self.model.training
            self.model.eval()
            self._metrics["eval"].clear()
            self.log(dict(ours))
            self.model.train(training)
        return {**metrics, **ours}

    @torch.no_grad()
    def greedy(self, rows: Sequence[dict[str, Any]]) -> list[list[int]]:
        """Answers prompts greedily, one completion each; with ZeRO-3 every process must ask for as many.

        Args:
            rows (sequence of `dict`): Rows from [`read_images`].

        Returns:
            `list`: Token ids of each completion, up to its end token.
        """
        from trl.data_utils import prepare_multimodal_messages

        prompts = []
        for row in rows:
            images = row["images"] if row.get("images") is not None else [row["image"]] if row.get("image") else []
            prompts.append(prepare_multimodal_messages(row["prompt"], images=images))
        ids, images, fields = self._tokenize_prompts(prompts)
        with self._without_sampling():
            return self._generate_single_turn(ids, images, fields, 1)[0]

    @contextmanager
    def _without_sampling(self) -> Any:
        """Makes generation greedy for a while."""
        place = self.vllm_generation if self.use_vllm else self.generation_config
        values = {"temperature": 0.0, "top_p": 1.0} if self.use_vllm else {"do_sample": False}
        old = {name: getattr(place, name) for name in values}
        kwargs: dict[str, Any] = getattr(self, "generation_kwargs", {})
        self.generation_kwargs = {**kwargs, "do_sample": False}
        try:
            for name, value in values.items():
                setattr(place, name, value)
            yield
        finally:
            for name, value in old.items():
                setattr(place, name, value)
            self.generation_kwargs = kwargs

    def gathered(self, values: list[Any]) -> list[Any]:
        """All processes' values, in the order of the processes."""
        return gather_object(values)


def _score_reward(args: VisionGRPOConfig) -> ScoreReward:
    return ScoreReward(
        str(args.score_model),
        relative_to_reference=args.relative_to_reference or args.reward == "rs",
        scale=args.reward_scale,
        transform=args.score_transform,
        answer_only=args.answer_only,
        shuffle_images=args.shuffle_reward_images,
        max_failed_fraction=args.max_failed_fraction,
    )


def _without_vision_tokens(args: GRPOConfig, tokenizer: Any) -> dict[str, Any]:
    """Generation options that never sample a vision token: a sampled one would not fit the image features."""
    known = tokenizer.get_vocab()
    ids = [known[name] for name in VISION_TOKENS if name in known]
    given = dict(cast("dict[str, Any]", args.generation_kwargs or {}))
    if args.use_vllm:
        given["logit_bias"] = {**{i: -100.0 for i in ids}, **(given.get("logit_bias") or {})}
    else:
        given["suppress_tokens"] = sorted({*ids, *(given.get("suppress_tokens") or [])})
    return given


def memory_estimate(model: Any, processes: int, sharded: bool) -> str:
    """States what a score model's weights need on each device, per placement.

    Args:
        model ([`ScoreModel`]): The model, whole or in DeepSpeed shards.
        processes (`int`): Processes of the training.
        sharded (`bool`): Which placement is used.
    """
    count = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
    dtype = next(model.parameters()).dtype
    size = count * dtype.itemsize / 2**20
    used = "sharded" if sharded else "replicated"
    return (
        f"Score model: {count / 1e6:.1f} M parameters in {str(dtype).removeprefix('torch.')}. Weights on each of "
        f"{processes} device(s): replicated {size:,.0f} MiB, sharded (ZeRO-3) {size / processes:,.0f} MiB, on a "
        f"reward server 0 MiB. Used: {used}."
    )
