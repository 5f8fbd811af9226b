"""Options of the `rs-rlhf eval` commands and of `rs-rlhf best-of-n`: shared ones are declared once and inherited."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from ..errors import OptionError
from ..imagery.arguments import PixelOptions, ReadingOptions
from ..options import option
from ..runs.charts.style import ChartOptions
from ..scoring.several import SeveralOptions

# Options that only some types of model read; others refuse them.
READ_BY = dict.fromkeys(
    (
        *("temperature", "top_p", "max_new_tokens", "token_budget"),
        *("backend", "endpoint", "system_prompt", "score_model", "profile"),
    ),
    ("vlm",),
) | {"batch_size": ("vlm", "clip"), "min_pixels": ("vlm", "score"), "max_pixels": ("vlm", "score")}
READ_BY |= dict.fromkeys(("score_combine", "score_calibration"), ("vlm", "score"))


@dataclass(kw_only=True)
class DataOptions:
    """Where the data of benchmarks lie."""

    data_root: str | None = option(
        None, "folder that the benchmarks' data lie in (default: RS_RLHF_DATA, or ./data)", metavar="DIR"
    )
    data: list[str] = option([], "where one benchmark's data lie instead", action="append", metavar="TASK=PATH")


@dataclass(kw_only=True)
class BenchmarkOptions(DataOptions, PixelOptions, ReadingOptions):
    """What both `rs-rlhf eval run` and `rs-rlhf best-of-n` read: questions, sampling, and the output's folder."""

    core_only: bool = option(
        False, "only the question types that VLM papers report (RSVQA: without counting and area)"
    )
    limit: int | None = option(None, "questions of each task at most, drawn by a seed")
    overwrite: bool = option(False, "start again if the folder holds answers of other settings")
    token_budget: int = option(16384, "tokens of a batch with their answers at most")
    dtype: str | None = option(None, "such as bfloat16 (default: the checkpoint's)")
    profile: str | None = option(
        None,
        "how the vlm writes boxes and is asked: a name in eval/profiles/, or a YAML file (default: that of its type)",
    )
    image_root: str | None = field(default=None, init=False)  # a benchmark's images lie where its data are

    def reading(self) -> dict[str, Any]:
        """Returns the options of reading images that differ from their defaults."""
        defaults = {entry.name: entry.default for entry in fields(ReadingOptions)}
        return {name: value for name, value in self.recorded(list(defaults)).items() if value != defaults[name]}


@dataclass(kw_only=True)
class EvalOptions(SeveralOptions, BenchmarkOptions):
    """Evaluate a model on benchmarks.

    `rs-rlhf eval compare A B` compares two outputs, `rs-rlhf eval export DIR` writes lm-eval's format or to wandb,
    `rs-rlhf eval preferences` reports on preference files.
    """

    list: bool = option(False, "list the benchmarks and stop")
    model: str | None = option(
        None,
        "folder (a LoRA adapter's too), hub id, or name in reward_models/ (score models); with --endpoint the model "
        "that it is asked for",
        reads="policy",
    )
    task: str | None = option(None, "benchmarks by name or YAML file, separated by commas", flags=["--tasks"])
    model_type: Literal["vlm", "clip", "score"] | None = option(
        None, "what the model is (default: what the task is usually put to)"
    )
    out: Path = option(Path("out/eval"), "folder to write to", flags=["--output_dir"], writes="folder")
    seed: int = option(0, "seed of all draws", least=0)
    system_prompt: Literal["none", "think-answer"] = option(
        "none",
        "think-answer: ask for <think>…</think><answer>…</answer>, the form that models trained with RS rewards "
        "answer in",
    )
    temperature: float = option(0.0, "0: greedy")
    top_p: float = option(1.0, "probability mass that tokens are drawn from")
    max_new_tokens: int | None = option(None, "longest answer (default: the task's; 1024 with think-answer)")
    batch_size: int | None = option(None, "also at most so many questions a batch")
    backend: Literal["auto", "vllm"] = option("auto", "what runs the model; auto: transformers")
    endpoint: str | None = option(
        None,
        "an OpenAI-compatible endpoint that answers, such as http://localhost:8000/v1; its key is read from "
        "RS_RLHF_EVAL_KEY or OPENAI_API_KEY",
        metavar="URL",
    )
    score_model: str | None = option(
        None, "also score every answer of a vlm with this score model (several: a,b,c)", reads="model"
    )
    report_to: Literal["none", "wandb"] = option("none", "where to log the results too")
    wandb_project: str = option("rs-rlhf", "W&B project", flags=["--project"])

    def check(self, model_type: str) -> None:
        """Refuses options that are out of range, or that a model of this type does not read.

        Raises:
            OptionError: Names the option.
        """
        for entry in fields(self):
            readers = READ_BY.get(entry.name, (model_type,))
            if model_type not in readers and getattr(self, entry.name) != entry.default:
                raise OptionError(
                    f"--{entry.name} is not read when a model of type {model_type} is evaluated; leave it out.",
                    entry.name,
                )
        for name in ("batch_size", "max_new_tokens", "token_budget"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"--{name} is {value}, expected at least 1.", name)
        self.check_several(*((self.model, "model") if model_type == "score" else (self.score_model, "score_model")))


@dataclass(kw_only=True)
class BestOfNOptions(SeveralOptions, BenchmarkOptions, ChartOptions):
    """Sample N answers to every question of a benchmark and compare ways of choosing one of them."""

    policy: str = option(
        help="folder (a LoRA adapter's too) or hub id of a causal VLM that is sampled; or sample files of lmms-eval, "
        "of greedy and of -n sampled answers, separated by a comma",
        reads="policy",
    )
    score_model: str = option(
        help="name in reward_models/, folder or hub id of the model that chooses; several (a,b,c) are combined",
        reads="model",
    )
    clip_model: str | None = option(None, "also choose by the CLIP score of this dual encoder", reads="model")
    task: str = option(help="benchmark by name or YAML file; one whose answers are short, or boxes")
    out: Path = option(help="folder to write to", flags=["--output_dir"], writes="folder")
    n: int = option(16, "answers sampled for each question", flags=["-n"])
    seeds: list[int] = option([0], "seeds of the sampling", least=0, metavar="K")
    temperature: float = option(0.85, "temperature of the sampling")
    top_p: float = option(0.95, "probability mass that tokens are drawn from")
    max_new_tokens: int = option(50, "longest answer")
    metric: Literal["strict", "upstream_compat"] = option("strict", "what a right answer is")
