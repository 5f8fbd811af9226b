"""The W&B workspace and report, built from real `wandb_workspaces` objects without network."""

import json
import re
import sys

import pytest

from rs_rlhf.cli import main as cli
from rs_rlhf.errors import RSRLHFError
from rs_rlhf.runs import dashboard
from rs_rlhf.runs.report import PREFIXES

RUN = ["dashboard", "--entity", "team", "--project", "rs"]


@pytest.fixture
def packages():
    return pytest.importorskip("wandb_workspaces.workspaces", reason="wandb-workspaces is not installed")


def lines(panels):
    return [line for panel in panels for line in panel["config"].get("metrics", [])]


def test_a_dry_run_prints_workspace_and_report(packages, capsys, monkeypatch):
    monkeypatch.setattr(dashboard, "save", lambda thing: pytest.fail("a dry run saves nothing"))
    assert cli.main([*RUN, "--report", "--dry_run"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["entity"], made["project"]) == ("team", "rs")
    sections = {s["name"]: s for s in made["workspace"]["section"]["panelBankConfig"]["sections"] if s["panels"]}
    assert list(sections)[0] == "Reward beside accuracy" and set(PREFIXES) <= set(sections)
    first = lines(sections["Reward beside accuracy"]["panels"])
    assert "train/reward" in first and "train/audit/accuracy" in first and "eval/audit/greedy_accuracy" in first
    for name in ("score", "reward", "audit"):
        assert all(
            re.fullmatch(rf"(train|eval)/(frac_)?{name}s?(/.*|_.*)?", key) for key in lines(sections[name]["panels"])
        )
    panels = [panel for section in sections.values() for panel in section["panels"]]
    assert {panel["config"]["xAxis"] for panel in panels} == {"train/global_step"}
    grids = [block for block in made["report"]["blocks"] if block["type"] == "panel-grid"]
    assert len(grids) == len(dashboard.ORDER)
    reported = [panel for grid in grids for panel in grid["metadata"]["panelBankSectionConfig"]["panels"]]
    assert len(reported) == len(panels)
    assert cli.main([*RUN, "--dry_run"]) == 0
    assert "report" not in json.loads(capsys.readouterr().out)


def test_patterns_find_the_keys_of_w_and_b():
    found = {name: re.compile(pattern).fullmatch for name, (_, pattern) in dashboard.PATTERNS.items()}
    assert found["score"]("eval/score/accuracy_kind/wrong_class") and not found["score"]("train/score/accuracy")
    assert found["curation"]("train/curation/kept") and found["curation"]("curation/kept")
    assert found["bon"]("eval/bon/gain") and found["eval"]("eval/exact_match") and not found["eval"]("eval/runtime")


def test_mistakes_are_one_sentence(packages, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert cli.main(RUN) == 1
    told = capsys.readouterr().err
    assert told.startswith("rs-rlhf dashboard: WANDB_MODE is offline") and "--dry_run" in told

    monkeypatch.setenv("WANDB_MODE", "online")
    workspace = dashboard.build_workspace("team", "rs")
    monkeypatch.setattr(
        type(workspace), "save", lambda self: (_ for _ in ()).throw(ConnectionError("no route.\nto host."))
    )
    with pytest.raises(RSRLHFError, match=r"did not take the workspace \(to host\); check the network"):
        dashboard.save(workspace)

    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    assert cli.main([*RUN, "--dry_run"]) == 1
    told = capsys.readouterr().err
    assert "needs wandb-workspaces" in told and 'pip install "rs-rlhf[dashboard]"' in told and told.count("\n") == 1
