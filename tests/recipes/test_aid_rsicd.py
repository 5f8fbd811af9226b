"""The plan of the experiments on AID and RSICD: its commands parse, its stages read what others made, it resumes."""

import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from helpers import ROOT
from helpers.documents import check_arguments

RECIPE = ROOT / "recipes" / "aid-rsicd"


@pytest.fixture(scope="module", autouse=True)
def modules():
    """The recipe's modules, which import each other by their names."""
    sys.path.insert(0, str(RECIPE))
    yield
    sys.path.remove(str(RECIPE))


@pytest.fixture
def plan(tmp_path):
    from plan import Plan

    return Plan(tmp_path / "aid_rsicd", f"{tmp_path / 'aid_rsicd'}:validation", tmp_path / "out")


def shape(command):
    """A command without what differs between repetitions."""
    return tuple(re.sub(r"\d+", "#", str(part)) for part in command)


def test_every_command_parses(plan):
    from plan import all_stages

    for k in range(plan.score_models):
        (plan.out / "policy" / str(k) / "policy").mkdir(parents=True)  # a model that is no folder is refused
    distinct = {shape(stage.command): stage.command for stage in all_stages(plan)}
    assert len(distinct) > 60
    for command in distinct.values():
        if not command[0].endswith(".py"):
            check_arguments([*command])
        else:
            assert (RECIPE / command[0]).is_file()


def test_stages_need_only_what_is_there_and_read_nothing_that_is_made_later(plan):
    """A path below the output that a stage reads lies in what a stage that it needs, or one before that, has made."""
    from plan import all_stages

    stages = {stage.name: stage for stage in all_stages(plan)}
    made = {stage.name: output(stage.command) for stage in stages.values()}

    def needs(name, known):
        for other in stages[name].after:
            if other not in known:
                known.add(other)
                needs(other, known)
        return known

    for stage in stages.values():
        before = {made[name] for name in needs(stage.name, set())}
        read = " ".join(stage.command).replace(made[stage.name], "").replace(",", " ").split()
        for path in (part for part in read if part.startswith(str(plan.out))):
            made_there = any(path.startswith(place) or place.startswith(f"{path}/") for place in before)
            assert made_there, (stage.name, path)


def output(command):
    """The place that a stage writes to."""
    if command[0] == "subsets.py":
        return command[3]
    if command[0].endswith(".py"):
        return command[3]
    if command[0].startswith("tiny-"):
        return command[1]
    if command[:2] == ["data", "scenes"]:
        return command[2]
    flag = next(flag for flag in ("--output_dir", "--output", "--out") if flag in command)
    return command[command.index(flag) + 1]


def test_stages_run_once_and_resume(tmp_path, monkeypatch):
    import stages
    from stages import Stage, run_stages

    ran = []

    def run(arguments, log, core):
        ran.append(arguments[0])
        if arguments[0] == "bad":
            raise SystemExit("bad")

    monkeypatch.setattr(stages, "run_command", run)
    plan = [Stage("b", ["second"], ["a/1"]), Stage("a/1", ["first"])]
    run_stages(plan, tmp_path, jobs=2)
    assert ran == ["first", "second"]
    run_stages([*plan, Stage("c", ["bad"], ["b"])][:2], tmp_path, jobs=2)
    assert ran == ["first", "second"]
    assert json.loads((tmp_path / "stages" / "a-1.json").read_text())["command"] == ["first"]
    with pytest.raises(SystemExit, match="bad"):
        run_stages([*plan, Stage("c", ["bad"], ["b"])], tmp_path, jobs=1)
    assert not (tmp_path / "stages" / "c.json").exists()
    with pytest.raises(SystemExit, match=r"a-1.json: a/1 was done by another command"):
        run_stages([Stage("a/1", ["other"])], tmp_path, jobs=1)
    tuned = Stage("d", ["grpo", "--config", "aid-rsicd/grpo"])
    run_stages([tuned], tmp_path, jobs=1)
    run_stages([tuned], tmp_path, jobs=1)
    path = tmp_path / "stages" / "d.json"
    note = json.loads(path.read_text())
    path.write_text(json.dumps(note | {"config": note["config"] | {"learning_rate": 0.5}}))
    with pytest.raises(SystemExit, match=r"d.json: d was done with other settings than its --config has now"):
        run_stages([tuned], tmp_path, jobs=1)
    assert ran[3:] == ["grpo"]


def test_a_stage_is_a_command_or_a_script_and_what_it_says_is_in_its_log(tmp_path):
    from stages import Stage, run_stages

    run_stages([Stage("a/env", ["env"])], tmp_path, jobs=1)
    assert "torch" in (tmp_path / "logs" / "a-env.log").read_text()
    with pytest.raises(SystemExit, match=r"subsets.py nowhere\nended with exit code 2; .*b.log:\n.*usage"):
        run_stages([Stage("b", ["subsets.py", "nowhere"])], tmp_path, jobs=1)
    with pytest.raises(SystemExit, match=r"ended with exit code 1; .*c.log:\n  .*no command 'nothing'"):
        run_stages([Stage("c", ["nothing"])], tmp_path, jobs=1)
    assert [path.stem for path in (tmp_path / "stages").iterdir()] == ["a-env"]


def test_a_stage_ends_with_a_killed_experiment_and_two_do_not_run_in_one_folder(tmp_path):
    from stages import Stage, run_stages

    pid, script = tmp_path / "pid", tmp_path / "sleep.py"
    script.write_text(
        f"import os, pathlib, time\npathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\ntime.sleep(99)"
    )
    run = f"import stages; stages.IMPORTED[:] = []; stages.set_up(); s = stages.Stage('s', [{str(script)!r}])\n"
    run += f"import pathlib; stages.run_stages([s], pathlib.Path({str(tmp_path / 'out')!r}), 1)"
    experiment = subprocess.Popen([sys.executable, "-c", run], env={**os.environ, "PYTHONPATH": str(RECIPE)})
    try:
        wait_until(lambda: pid.is_file() and pid.read_text())
        with pytest.raises(SystemExit, match="another process runs stages"):
            run_stages([Stage("b", ["env"])], tmp_path / "out", jobs=1)
    finally:
        experiment.kill()
        experiment.wait()
    wait_until(lambda: not psutil.pid_exists(int(pid.read_text())))
    run_stages([Stage("b", ["env"])], tmp_path / "out", jobs=1)


def wait_until(true):
    """Waits until something is true, for 60 seconds at most."""
    start = time.monotonic()
    while not true():
        assert time.monotonic() < start + 60
        time.sleep(0.1)


def test_what_is_chosen_is_seen_on_other_images_with_the_same_models(plan):
    from dataclasses import replace

    from plan import all_stages

    reported, chosen = (
        {stage.name: [*stage.command] for stage in all_stages(one)} for one in (plan, replace(plan, choose=True))
    )
    assert {name for name in chosen if name.startswith("choose/")} == {
        f"choose/{name}" for name in reported.keys() - chosen.keys()
    }
    assert all(chosen[name] == reported[name] for name in reported.keys() & chosen.keys())
    command = chosen["choose/answers/grpo/1/0/greedy"]
    assert command[command.index("--task") + 1] == plan.at("data/choose_classification.yaml")
    assert command[command.index("--model") + 1] == plan.at("grpo/1/0")


def test_results_are_means_with_intervals_over_score_models_trainings_and_images(plan, capsys):
    """Of answers that are written here: an arm that answers as before has a gain of 0 in an interval of no width."""
    from results import RL, reinforcement, write_results

    draw = np.random.default_rng(0)
    plain = draw.random(200) < 0.4
    for arm in ("before", "GRPO", "DPO"):
        where = RL[arm]
        for way in ("greedy", "sampled"):
            for k in range(plan.score_models):
                for j in range(plan.trainings):
                    folder = plan.out / "answers" / where.format(k=k, j=j) / way
                    folder.mkdir(parents=True, exist_ok=True)
                    right = plain | (np.arange(200) < (30 if arm == "GRPO" else 0))
                    rows = [json.dumps({"id": f"{i:03d}", "strict": bool(one)}) for i, one in enumerate(right)]
                    (folder / "samples_classification.jsonl").write_text("\n".join(rows[::-1]) + "\n")
    found = reinforcement(plan)
    gain = (plain | (np.arange(200) < 30)).mean() - plain.mean()
    assert found["GRPO"]["greedy_gain"]["mean"] == pytest.approx(gain)
    low, high = found["GRPO"]["greedy_gain"]["interval"]
    assert 0 < low < gain < high
    assert found["DPO"]["greedy_gain"] == {"mean": 0.0, "interval": [0.0, 0.0], "runs": [[0.0] * 2] * 3}
    assert found.keys() == {"before", "GRPO", "DPO"}
    assert (
        f"RAFT, 2 rounds, sampled, is not there yet: {plan.at('answers/raft/0/0/2/sampled')}"
        in capsys.readouterr().out
    )
    write_results(plan, plan.out / "results")
    assert f"curation.json is not written yet: {plan.at('evaluated/clip')}" in capsys.readouterr().out
    assert {path.name for path in (plan.out / "results").iterdir()} == {"rl.json", "rl.png"}
    assert json.loads((plan.out / "results" / "rl.json").read_text())["figures"].keys() == found.keys()
