"""`rs-rlhf dashboard`: a W&B workspace for the runs of a project."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from ..options import option, parse
from ..runs import dashboard


@dataclass(kw_only=True)
class DashboardOptions:
    """Lay out a W&B workspace for the runs of a project."""

    entity: str = option(help="W&B user or team")
    project: str = option(help="W&B project")
    name: str = option("RLHF", "name of the workspace and of the report")
    report: bool = option(False, "write a W&B report with the same panels as well")
    dry_run: bool = option(False, "print what would be made as JSON; needs no network")


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the workspace, or prints it."""
    options = parse(DashboardOptions, argv, "rs-rlhf dashboard")
    made = {"workspace": dashboard.build_workspace(options.entity, options.project, options.name)}
    if options.report:
        made["report"] = dashboard.build_report(options.entity, options.project, options.name)
    if options.dry_run:
        specs = {name: dashboard.specification(thing) for name, thing in made.items()}
        print(json.dumps({"entity": options.entity, "project": options.project} | specs, indent=2))
        return 0
    for thing in made.values():
        dashboard.save(thing)
        print(f"{type(thing).__name__} -> {thing.url}")
    return 0
