"""Figures of a model card: the last evaluation of a log, with 95% intervals where it says of how many they are.

Left out: intervals of figures whose single values the log does not have (margins, losses, the image-shuffle gap).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult

from ...metrics.intervals import wilson_interval
from ...runs.record import Run
from ...runs.tables import markdown_table

_OF_TASK = re.compile(  # a figure of a benchmark, as the evaluation of dual encoders names it
    r"(.+?)_((?:top\d+|mean_class_accuracy|mean_recall|(?:image_to_text|text_to_image)_R@\d+)(?:_distinct)?)"
)
_RUNTIME = re.compile(r"(runtime|samples_per_second|steps_per_second|model_preparation_time|num_tokens|epoch)$")


@dataclass(frozen=True)
class Known:
    """A figure that evaluations log: its title, whether it is a share, and of how many (a key, or `rows`)."""

    title: str
    share: bool = False
    count: str = ""


FIGURES = {  # by the key of the log without the name of the evaluation
    "score/accuracy": Known("The chosen text scores above the rejected one", True, "score/n"),
    "score/top1": Known("The chosen text scores above all rejected ones", True, "rows"),
    "score/shuffle_gap": Known("Image-shuffle gap", True),
    "score/ties": Known("Ties", True),
    "score/margin": Known("Score of the chosen text minus that of the rejected one, mean"),
    "accuracy": Known("The chosen text has the higher reward", True, "rows"),
    "exact_match": Known("Answers that are right to the letter", True, "rows"),
    "mean_token_accuracy": Known("Tokens that are the most likely one", True),
    "audit/greedy_accuracy": Known("Greedy answers that are right", True, "audit/greedy_n"),
    "score/greedy_mean": Known("Score of greedy answers, mean"),
    "audit/accuracy": Known("Sampled answers that are right", True),
    "reward": Known("Reward of sampled answers, mean"),
    "rewards/accuracies": Known("Pairs that the policy orders as the data do", True, "rows"),
    "rewards/margins": Known("Implicit reward of the chosen answer minus that of the rejected one, mean"),
    "loss": Known("Loss"),
}
GAP = (
    "The image-shuffle gap is the accuracy with the right images minus the accuracy with those of other rows: a model "
    "that does not look at the image has a gap of 0."
)


def figures(run: Run, state: Mapping[str, Any]) -> tuple[list[dict[str, Any]], int | None]:
    """Returns the figures of the last evaluation, and its step; of the best one for a run that ends with its best
    weights. A figure is `key`, `set`, `title`, `value`, `share`, and if they are known `n` and the 95% `interval`.
    """
    log = [entry for entry in state.get("log_history", ()) if any(_is_figure(key) for key in entry)]
    if not log:
        return [], None
    best = state.get("best_global_step") if run.about["config"].get("load_best_model_at_end") else None
    steps = {entry["step"] for entry in log}
    step = best if best in steps else max(steps)
    values: dict[str, float] = {}
    for entry in log:
        if entry["step"] == step:
            values |= {
                key: value
                for key, value in entry.items()
                if key.startswith("eval_") and isinstance(value, int | float)
            }
    return [row for key in values if (row := _figure(key, values, run)) is not None], step


def _is_figure(key: str) -> bool:
    return key.startswith("eval_") and not _RUNTIME.search(key)


def _figure(key: str, values: Mapping[str, float], run: Run) -> dict[str, Any] | None:
    """What is known of a figure; `None` for one that the card does not show."""
    if not _is_figure(key) or key.endswith(("_n", "/n")):
        return None
    name, value = key.removeprefix("eval_"), values[key]
    title, share, count, prefix = "", False, None, ""
    endings = [end for end in FIGURES if name == end or name.endswith(f"_{end}")]
    if run.about["makes"] == "dual encoder":
        match = _OF_TASK.fullmatch(name)
        if match is None:
            return None
        prefix, title, share = f"{match[1]}_", match[2], True
        count = values.get(f"eval_{prefix}n") if title.startswith(("top", "image_to_text")) else None
    elif endings:
        ending = max(endings, key=len)
        known, prefix = FIGURES[ending], name.removesuffix(ending)
        title, share = known.title, known.share
        count = _rows(run, prefix) if known.count == "rows" else values.get(f"eval_{prefix}{known.count}")
    elif match := re.match(r"(.*?)score/accuracy_(kind|source)/(.*)", name):
        title, share, prefix = f"The same, {match[2]} {match[3]}", True, match[1]
    else:
        return None
    figure: dict[str, Any] = {"key": name, "set": prefix.rstrip("_"), "title": title, "value": value, "share": share}
    if count:
        n = round(count)
        figure |= {"n": n, "interval": list(wilson_interval(round(value * n), n))}
    return figure


def _rows(run: Run, prefix: str) -> int | None:
    """The number of rows of the evaluation data of that name."""
    fingerprint = run.settings.get(f"eval_data_{prefix.rstrip('_')}" if prefix else "eval_data")
    return int(fingerprint.split()[0]) if isinstance(fingerprint, str) else None


def figures_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Returns figures as Markdown, with their intervals."""
    several = any(row["set"] for row in found)

    def line(row: Mapping[str, Any]) -> list[str]:
        form: Callable[[float], str] = "{:.1%}".format if row["share"] else "{:.4g}".format
        interval = " – ".join(map(form, row["interval"])) if "interval" in row else ""
        cells = [row["title"], form(row["value"]), interval, str(row.get("n", ""))]
        return [row["set"], *cells] if several else cells

    header = ["figure", "value", "95% interval", "n"]
    return markdown_table(["set", *header] if several else header, map(line, found), "llrrr" if several else "lrrr")


def eval_results(
    found: Sequence[Mapping[str, Any]], data: Mapping[str, Mapping[str, Any]], task: str
) -> Iterator[EvalResult]:
    """Yields figures as `model-index` holds them; an interval is in the arguments and in the name of its metric.

    `data` are the data sets by `evaluation` and the name of the evaluation, if it has one.
    """
    for row in found:
        of = data.get(f"evaluation {row['set']}".strip()) or {}
        told = row["title"]
        args = None
        if "interval" in row:
            low, high = row["interval"]
            told += f" (95% interval {low:.1%} to {high:.1%}, n = {row['n']})"
            args = {"interval": [round(low, 6), round(high, 6)], "level": 0.95, "n": row["n"]}
        given = str(of.get("name") or row["set"] or "evaluation data")
        yield EvalResult(
            task_type=task,
            dataset_type=given if of.get("hub") else re.sub(r"[^\w.-]+", "-", given),
            dataset_name=given,
            dataset_split=of.get("split") or None,
            dataset_revision=of.get("hash") or None,
            metric_type=re.sub(r"^.*/", "", row["key"].removeprefix(f"{row['set']}_")),
            metric_value=round(row["value"], 6),
            metric_name=told,
            metric_args=args,
        )
