"""`rs-rlhf dashboard`: lays out a W&B workspace, and with `--report` a report, for the runs of a project."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..options import option

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report
    from wandb_workspaces.workspaces import Workspace


@dataclass(kw_only=True)
class DashboardOptions:
    """Lay out a W&B workspace for the runs of a project."""

    entity: str = option(help="W&B user or team")
    project: str = option(help="W&B project")
    name: str = option("RLHF", "name of the workspace and of the report")
    report: bool = option(False, "write a W&B report with the same panels as well")
    dry_run: bool = option(False, "print what would be made as JSON; needs no network")


def main(options: DashboardOptions) -> None:
    """Saves the workspace and the report, or prints them."""
    from ..runs import dashboard

    of = (options.entity, options.project, options.name)
    made: dict[str, Workspace | Report] = {"workspace": dashboard.build_workspace(*of)}
    if options.report:
        made["report"] = dashboard.build_report(*of)
    if options.dry_run:
        specs = {name: dashboard.specification(board) for name, board in made.items()}
        print(json.dumps({"entity": options.entity, "project": options.project} | specs, indent=2))
        return
    for board in made.values():
        dashboard.save(board)
        print(f"{type(board).__name__} -> {board.url}")
