"""W&B dashboard: the layout of a workspace and a report for the runs of a project.

W&B makes one panel per key in the order of their names; this puts the reward beside the task accuracy first, then a
section for each of our prefixes, training and evaluation on one panel. transformers logs `score/mean` to W&B as
`train/score/mean` and `eval_score/mean` as `eval/score/mean`, so those are the keys here. `wandb-workspaces` is
imported late: it is an extra (`pip install "rs-rlhf[dashboard]"`).

Left out: filters and groups of runs, which are a project's own, and two axes on one panel, which W&B lacks: reward and
accuracy get a panel each, side by side.
"""

from __future__ import annotations

import json
import os
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import OptionError, RSRLHFError

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import LinePlot, Report
    from wandb_workspaces.workspaces import Workspace

# Section to its panels; a panel is a metric of `train/` and `eval/`, or a title and the W&B keys of its lines.
SECTIONS: dict[str, tuple[str | tuple[str, tuple[str, ...]], ...]] = {
    "Reward beside accuracy": (
        ("reward", ("train/reward", "eval/reward", "eval/score/greedy_mean")),
        ("accuracy", ("train/audit/accuracy", "eval/audit/accuracy", "eval/audit/greedy_accuracy")),
    ),
    "score": (
        "score/accuracy",
        "score/margin",
        "score/mean",
        "score/std",
        "score/min",
        "score/max",
        "score/ties",
        ("score/shuffle_gap", ("eval/score/shuffle_gap",)),
    ),
    "reward": ("reward", "reward_std", "reward/failed_fraction", "rewards/score_reward/mean", "frac_reward_zero_std"),
    "audit": (
        "audit/accuracy",
        "audit/unparseable",
        "audit/score_right",
        "audit/score_wrong",
        "audit/right_above_wrong",
        "audit/score_length_correlation",
        "audit/disagreement",
        ("audit/shuffle_gap", ("train/audit/shuffle_gap",)),
        ("greedy answers", ("eval/audit/greedy_accuracy", "eval/audit/greedy_unparseable")),
    ),
    "train": ("loss", "learning_rate", "grad_norm", "kl", "entropy", "completions/mean_length", "num_tokens"),
}
# Sections whose metrics differ from run to run: one panel of every key that matches.
PATTERNS = {
    "score": ("score by kind and source", r"(train|eval)/score/accuracy_(kind|source)/.*"),
    "curation": ("curation", r"(.*/)?curation/.*"),
    "eval": ("evaluation", r"eval/(exact_match|loss|[^/]*accuracy)"),
    "bon": ("best of n", r"(.*/)?bon/.*"),
}
STEP = "train/global_step"  # W&B's own Step counts logs, not optimizer steps
ORDER = ("Reward beside accuracy", "score", "reward", "audit", "curation", "eval", "bon", "train")


def _packages() -> tuple[ModuleType, ModuleType]:
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise OptionError(
            f'rs-rlhf dashboard needs wandb-workspaces ({error}); pip install "rs-rlhf[dashboard]".'
        ) from None
    return workspaces, reports


def panels(section: str) -> list[LinePlot]:
    """Returns the `wandb_workspaces` line plots of a section, one of `ORDER`."""
    _, reports = _packages()
    made = []
    for panel in SECTIONS.get(section, ()):
        title, keys = panel if isinstance(panel, tuple) else (panel, (f"train/{panel}", f"eval/{panel}"))
        made.append(reports.LinePlot(title=title, x=STEP, y=list(keys)))
    if section in PATTERNS:
        title, pattern = PATTERNS[section]
        made.append(reports.LinePlot(title=title, x=STEP, metric_regex=pattern))
    return made


def build_workspace(entity: str, project: str, name: str = "RLHF") -> Workspace:
    """Returns a `wandb_workspaces` workspace, not saved; panels of all other keys follow those of the sections."""
    workspaces, _ = _packages()
    layout = workspaces.SectionLayoutSettings(columns=2, rows=2)
    sections = [
        workspaces.Section(name=title, panels=panels(title), is_open=title == ORDER[0], layout_settings=layout)
        for title in ORDER
    ]
    return workspaces.Workspace(
        entity=entity, project=project, name=name, sections=sections, auto_generate_panels=True
    )


def build_report(entity: str, project: str, name: str = "RLHF") -> Report:
    """Returns a `wandb_workspaces` report with the same panels, not saved."""
    _, reports = _packages()
    blocks: list[Any] = [
        reports.P("A reward that rises while accuracy falls is being exploited: compare the first two panels.")
    ]
    for title in ORDER:
        section = panels(title)
        for i, panel in enumerate(section):  # two in a row of 24 units
            panel.layout = reports.Layout(x=12 * (i % 2), y=8 * (i // 2), w=12, h=8)
        grid = reports.PanelGrid(runsets=[reports.Runset()], panels=section)  # of the report's project
        blocks += [reports.H2(title), grid]
    return reports.Report(entity=entity, project=project, title=name, blocks=blocks, width="fluid")


def specification(board: Workspace | Report) -> dict[str, Any]:
    """Returns what W&B would be sent for a workspace or report, as plain values."""
    model = board._to_model()
    return json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True))


def save(board: Workspace | Report) -> None:
    """Saves a workspace or report to W&B; an [`OptionError`] if W&B is off, an [`RSRLHFError`] if it refuses."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        raise OptionError(
            f"WANDB_MODE is {os.environ['WANDB_MODE']}, and a W&B dashboard is made online: unset it, or see what "
            "would be made with --dry_run; `rs-rlhf report` needs no W&B."
        )
    try:
        board.save()
    except Exception as error:  # wandb's own, requests' and gql's have no common class
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200].rstrip(".")
        raise RSRLHFError(
            f"W&B did not take the {type(board).__name__.lower()} ({reason}); check the network, "
            "`wandb login` and the names of entity and project, or see what would be made with --dry_run."
        ) from None
