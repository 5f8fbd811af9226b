"""Options of the training commands beside TRL's: the data of each, and what our trainers add to TRL's configs.

They are apart from the trainers so that `--help` loads neither torch nor TRL: each trainer's config inherits its
options and TRL's config. Left out: options of images (`imagery.arguments`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..data.columns import ColumnOptions
from ..data.rows import check_there
from ..errors import OptionError
from ..imagery.arguments import ImageArguments
from ..metrics.boxes import BOX_UNITS, PAIRINGS
from ..options import option
from ..rewards.score import TRANSFORMS
from ..scoring.comparison import CheckOptions
from ..scoring.several import SeveralOptions


@dataclass(kw_only=True)
class TrainingOptions(ImageArguments):
    """Options of every training beside TRL's."""

    overwrite_output_dir: bool = option(
        False, "Remove what an earlier run has left in output_dir, once model and data are loaded; other files stay."
    )
    remove_unused_columns: bool = option(False, "Must stay false: images are read from their columns by the workers.")
    logging_nan_inf_filter: bool = option(False, "Log a mean of earlier losses in place of a loss that is not finite.")

    def __post_init__(self) -> None:
        """Gives the value of TRL's option, and of its default, to the one that has taken its place in transformers."""
        values = vars(self)
        for old, new in (
            ("gradient_checkpointing", "activation_checkpointing"),
            ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
        ):
            if new in values and values[new] is None:
                setattr(self, new, values.get(old))
        if after := getattr(super(), "__post_init__", None):
            after()

    def check(self) -> None:
        """Refuses values that only a parser would refuse; an [`OptionError`] names the option."""
        for field in fields(self):
            value, choices = getattr(self, field.name), field.metadata.get("choices")
            if choices and value is not None and value not in choices:
                raise OptionError(f"{field.name} is {value!r}, expected one of {', '.join(choices)}.", field.name)
        if self.remove_unused_columns:
            raise OptionError(
                "remove_unused_columns must be false: images are read from their columns.", "remove_unused_columns"
            )
        if self.augment and getattr(self, "dataloader_persistent_workers", False):
            reason = "workers learn the epoch when they start"
            raise OptionError(f"augment needs dataloader_persistent_workers false: {reason}.", "augment")


@dataclass(kw_only=True)
class RewardScriptArguments(ColumnOptions):
    """Data of `rs-rlhf reward`, `dpo` and `kto`."""

    dataset_name: str | None = option(
        None, "Preference files, a folder or a Hub id; several are separated by commas.", reads=check_there
    )
    dataset_train_split: str | None = option(
        None, "Split of a folder or Hub id to train on, by default the only one or 'train'; a file has none."
    )
    dataset_test_split: str = option("test", "Split to evaluate on, without an eval_dataset_name.")
    eval_dataset_name: str | None = option(
        None,
        "Preference files to evaluate on, as for dataset_name. By default the dataset_test_split of dataset_name, if "
        "eval_strategy asks for evaluation.",
        reads=check_there,
    )


@dataclass(kw_only=True)
class RewardOptions(TrainingOptions):
    """What images and the three published stages need beside TRL's `RewardConfig`."""

    trainable: str = option(
        "all",
        "Weights that are trained: 'head' only, 'vision' tower and head, 'language' model and head, or 'all'.",
        choices=["head", "vision", "language", "all"],
    )
    positions: str | None = option(
        None, "Positions of the score model, 'mrope' or 'sequential'; by default the checkpoint's."
    )
    output_activation: str | None = option(
        None, "Output activation, 'softplus' (default of a new head) or 'identity'."
    )
    ranked_rejected: bool = option(
        True,
        "A `rejected` list is ranked best to worst (Plackett-Luce over the whole list). If false, the "
        "chosen completion must win over all of them, which are not ranked among themselves.",
    )
    anchor_coefficient: float = option(
        0.0,
        "Weight of a term that makes scores comparable between images, as curation needs: chosen above 0, "
        "rejected below (cross-entropy of each completion by itself). Needs output_activation 'identity'.",
    )
    image_blind: bool = option(False, "Leave the images out: the text-only baseline that a score model must beat.")
    shuffle_gap_samples: int = option(
        256, "Evaluation rows scored again with another row's image, for the image-shuffle gap; 0: none."
    )
    worst_pairs: int = option(8, "Evaluation rows ranked most wrongly that are logged with thumbnails; 0: none.")
    max_length: int | None = option(
        None, "Longest prompt + completion in tokens, image tokens included; a longer row is an error."
    )


@dataclass(kw_only=True)
class PreferenceTuningOptions(TrainingOptions):
    """What images need beside TRL's `DPOConfig` and `KTOConfig`."""

    max_length: int | None = option(
        None, "Longest prompt + completion in tokens, image tokens included; longer is an error."
    )


@dataclass(kw_only=True)
class SFTScriptArguments(ColumnOptions):
    """Data of `rs-rlhf sft`.

    `--text_column captions` trains on the captions of labelled images alone, which are else asked for their class.
    """

    dataset_name: str | None = option(
        None,
        "Image-text data: a file or folder of labelled or captioned images, questions and answers, or "
        "conversations, or a folder of `rs-rlhf curate`.",
        reads=check_there,
    )
    dataset_train_split: str | None = option(
        None, "Split of a folder to train on, by default 'train' where there is one, else all of it."
    )
    dataset_test_split: str | None = option(
        None, "Split to evaluate on, if eval_strategy asks for it; by default 'test', and all of an eval_dataset_name."
    )
    eval_dataset_name: str | None = option(
        None, "Data to evaluate on, as for dataset_name, which is the default.", reads=check_there
    )
    max_train_samples: int | None = option(None, "Training rows (images, conversations) at most, drawn by seed.")


@dataclass(kw_only=True)
class SFTOptions(TrainingOptions):
    """What images need beside TRL's `SFTConfig`."""

    trainable: str = option(
        "all",
        "Weights that are trained: 'merger' (the projector from the vision tower to the language model) "
        "or 'all'. With LoRA leave it 'all', and name the merger in lora_modules_to_save to train it too.",
        choices=["all", "merger"],
    )
    max_length: int | None = option(None, "Longest sample in tokens, image tokens included; longer is an error.")
    weight_column: str | None = option(
        None,
        "Column of the training rows' weights, numbers from 0 on: the loss of a row's tokens is multiplied by its "
        "weight, and the sum is divided by the number of tokens as without weights.",
    )


@dataclass(kw_only=True)
class GRPOScriptArguments(CheckOptions, ColumnOptions):
    """Data and rewards of `rs-rlhf grpo`."""

    dataset_name: str | None = option(
        None,
        "Prompts: files, folders or Hub ids with `prompt`, `image` and perhaps `solution`, or labelled images; "
        "several are separated by commas.",
        reads=check_there,
    )
    dataset_train_split: str | None = option(None, "Split of a folder or Hub id to train on; a file has none.")
    dataset_test_split: str | None = option(None, "Split to evaluate on.")
    eval_dataset_name: str | None = option(
        None, "Prompts to evaluate on; by default the dataset_test_split of dataset_name.", reads=check_there
    )
    max_train_samples: int | None = option(None, "Training prompts at most, drawn by seed.")
    max_eval_samples: int | None = option(None, "Evaluation prompts at most, drawn by seed.")
    reward_funcs: list[str] | None = option(
        None,
        "Further rewards: names in rs_rlhf.rewards, such as exact_match_reward, or dotted paths of your own. "
        "--reward_weights has a number for each reward, the one of --reward first, where there is one.",
    )
    system_prompt: str | None = option(
        None, "System turn put before each prompt; 'think-answer' asks for <think>… and <answer>…."
    )


@dataclass(kw_only=True)
class GRPOOptions(SeveralOptions, TrainingOptions):
    """The score model as the reward, and the audit of it, beside TRL's `GRPOConfig`."""

    score_model: str | None = option(
        None,
        "Score model of the reward: a name in reward_models/, a folder, a hub id, or the URLs of reward "
        "servers, separated by commas. Several models, separated by commas, are combined.",
        reads="model",
    )
    reward: str = option(
        "score",
        "'score': the score model's score of each completion; 'rs': the published mix 0.3 format + 0.7 accuracy by "
        "the column `reward_type` (em, iou, math, count, open_ended), the score model judging open_ended rows.",
        choices=["score", "rs"],
    )
    format_weight: float | None = option(
        None, "Weight of the format in reward 'rs', from 0 to 1, by default 0.3; the accuracy has the rest."
    )
    profile: str | None = option(
        None,
        "How the policy writes boxes, and how they are paired with the right ones, for reward 'rs' and iou_reward: a "
        "name in eval/profiles/, or a YAML file; by default that of its type.",
    )
    solution_unit: str | None = option(
        None,
        "Unit of the boxes in the column `solution`, for the same rewards; by default 0-1000.",
        choices=list(BOX_UNITS),
    )
    pairing: str | None = option(
        None,
        "How boxes are paired, for the same rewards: 'best' one to one for the greatest total IoU, 'order' by their "
        "places, as published; by default as the profile says.",
        choices=list(PAIRINGS),
    )
    score_model_placement: str = option(
        "replicated",
        "'replicated': the whole score model on each process's device; 'sharded': shared out by DeepSpeed "
        "ZeRO-3 beside the policy. One with a URL is where its server is.",
        choices=["replicated", "sharded"],
    )
    score_model_dtype: str | None = option(None, "Type of its weights, such as bfloat16; by default the checkpoint's.")
    relative_to_reference: bool = option(
        False, "Reward 1 - exp(-reward_scale * (score - score of the solution)), 0 below the solution."
    )
    score_transform: str = option(
        "none",
        "'exp' rewards exp(score), which is proportional to the probability of being the best answer; "
        "'softmax' that probability itself, among the row's `choices`.",
        choices=list(TRANSFORMS),
    )
    reward_scale: float = option(0.2, "Scale of relative_to_reference.")
    answer_only: bool = option(True, "Score the text inside <answer> where there is one, not the whole completion.")
    shuffle_reward_images: bool = option(
        False, "Score with another prompt's image: the control run, which must not improve."
    )
    max_failed_fraction: float = option(
        0.5, "Stop when more than this share of the rewards of the last 10 steps failed."
    )
    score_server_wait: float = option(
        600.0, "Seconds to wait for reward servers while none answers; then the run is saved and stops."
    )
    shared_prefix: bool = option(
        True,
        "Compute the loss from one row per prompt, with its completions behind it, where that is known to be the same "
        "and estimated to be faster, and let rollouts by transformers read a prompt once; if false, one row per "
        "completion in both, as in TRL.",
    )
    audit_steps: int = option(25, "Steps between two measurements of the reward's image-shuffle gap; 0: none.")
    validation_prompts: int = option(
        32, "Evaluation prompts, the first ones, answered greedily at every evaluation; 0: none."
    )
    log_multimodal: bool = option(
        False, "Log whole images with TRL's completions table; thumbnails are among the logged_samples in any case."
    )
    logged_samples: int = option(
        8, "Rollouts (and validation answers) written with thumbnails at each logging; 0: none."
    )


@dataclass(kw_only=True)
class ClipScriptArguments(ColumnOptions):
    """Data of `rs-rlhf clip`, and the benchmarks to evaluate on."""

    dataset_name: str | None = option(
        None, "Image-text file, folder of them or Hub id, as for `rs-rlhf score --input`.", reads=check_there
    )
    dataset_train_split: str | None = option(None, "Split of a folder or Hub id to train on. By default all of it.")
    max_train_samples: int | None = option(None, "Training rows at most, drawn by seed.")
    eval_tasks: list[str] | None = option(
        None,
        "Benchmarks (names in eval/ or YAML files) that the model is put to at each evaluation "
        "(eval_strategy, eval_steps) and at the end.",
    )
    eval_data_root: str | None = option(
        None, "Folder that the benchmarks' data lie in; by default RS_RLHF_DATA, or ./data.", reads="folder"
    )


@dataclass(kw_only=True)
class ClipOptions(TrainingOptions):
    """Options of the contrastive loss beside transformers' `TrainingArguments`."""

    dataloader_drop_last: bool = option(True, "Drop an epoch's last batch if it is not whole: it has few negatives.")
    per_device_eval_batch_size: int = option(64, "Images encoded at a time in evaluation.")
    logging_steps: float = option(10, "Log every so many steps.")
    mask_duplicates: bool = option(
        True, "Keep pairs with the same picture or the same text out of each other's negatives."
    )
    grad_cache_chunk_size: int | None = option(
        None, "Encode a batch in chunks of so many pairs, twice: the batch is then bound by time, not memory."
    )
