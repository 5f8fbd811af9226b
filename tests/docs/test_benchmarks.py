"""The figures of docs/performance.md are what the benchmarks wrote, and the benchmarks run to their end."""

import json
import os
import subprocess
import sys

import pytest
from helpers import ROOT

RESULTS = ROOT / "benchmarks" / "results"
PERFORMANCE = ROOT / "docs" / "performance.md"
PHASES = {"preparation", "generation", "reward", "loss", "optimizer"}


def results(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def rows(text, first):
    """The cells of a table's rows, of the table whose head begins so."""
    lines = text[text.index(f"\n| {first} |") + 1 :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_measured_ratios_of_scoring_are_stated():
    measured = results("group_speed")
    (cells,) = rows(PERFORMANCE.read_text(), "N = 2")
    expected = [f"{measured['scoring'][n]['ratio']:.1f}×" for n in ("2", "4", "8", "16")]
    assert cells == [*expected, f"{measured['training']['ratio']:.1f}×"]
    bounds = {"2": 1.8, "4": 3.2, "8": 5.5, "16": 7.5}
    assert all(measured["scoring"][n]["ratio"] >= bound for n, bound in bounds.items())
    assert measured["training"]["ratio"] >= 1.8
    assert f"four groups in one batch are {measured['training']['ratio_one_batch']:.2f}" in PERFORMANCE.read_text()
    assert f"16 texts are {measured['scoring']['16']['ratio_one_batch']:.1f} times as fast" in PERFORMANCE.read_text()


def test_the_loss_of_a_group_is_stated():
    expected = []
    for batch in results("grpo_loss")["batches"]:
        prompt, length, count = batch["prompt_tokens"], batch["completion_tokens"], batch["rollouts"]
        fewer = count * (prompt + length) / (prompt + count * length)
        found = batch["ratio"]["rows"], batch["ratio_of_text"], batch["saved_ratio"]["rows"]
        ratios = [f"{ratio:.2f}×" for ratio in found]
        expected.append(
            [
                f"{prompt} + {count} × {length}",
                f"{fewer:.1f}×",
                "frozen" if batch["frozen_tower"] else "trained",
                *ratios,
            ]
        )
    assert rows(PERFORMANCE.read_text(), "tokens") == expected


def test_the_speed_of_rollouts_is_stated():
    measured = results("rollout_speed")["samples"]
    expected = [
        [n, *(f"{found[part][f'ratio_{way}']:.1f}×" for part in ("prefill", "answer") for way in ("plain", "vision"))]
        for n, found in measured.items()
    ]
    assert rows(PERFORMANCE.read_text(), "N") == expected


def test_the_step_is_stated():
    measured = results("grpo_reward")
    groups, whole = measured["ways"]["groups"], measured["ways"]["rows"]
    expected = [
        [name, f"{groups['phases'][name]:.2f} s", f"{whole['phases'][name]:.2f} s"]
        for name in ("preparation", "generation", "reward", "loss", "optimizer")
    ]
    expected.append(["step", f"{groups['step']:.2f} s", f"{whole['step']:.2f} s"])
    found = rows(PERFORMANCE.read_text(), "phase")
    assert [row[:3] for row in found] == expected
    assert [row[3] for row in found if row[3]] == [
        f"{measured['ratios'][n]:.1f}×" for n in ("generation", "reward", "loss", "step")
    ]


def test_the_version_before_is_stated():
    measured = results("two_versions")
    expected = [
        [name, f"{one['ratio']:.2f}", f"± {one['spread']:.2f}"] for name, one in measured["benchmarks"].items()
    ]
    assert rows(PERFORMANCE.read_text(), "work") == expected and measured["old"] in PERFORMANCE.read_text()
    assert all(one["ratio"] < 1.05 for one in measured["benchmarks"].values())


@pytest.mark.parametrize("size", ["2b", "7b"])
def test_the_ratios_measured_on_a_gpu_are_stated(size):
    measured = json.loads((RESULTS / f"group_speed_gpu_{size}.json").read_text())
    assert measured["hardware"] == "NVIDIA H200" and measured["size"] == size
    parts = [measured["scoring"][n] for n in ("2", "4", "8", "16")] + [measured["training"]]
    cells = " | ".join(f"{part['ratio']:.1f}× / {part['ratio_one_batch']:.1f}×" for part in parts)
    assert f"| {size.upper()} | {cells} |" in PERFORMANCE.read_text()
    # the group form is as exact in bfloat16 as plain rows are, up to chance
    assert all(part["error"]["group"] < 2 * part["error"]["rows"] for part in parts[:-1])
    assert parts[3]["ratio_one_batch"] > 3 and parts[-1]["ratio_one_batch"] > 2


@pytest.mark.parametrize(
    ("name", "policy"),
    [("2b", "2B, all weights"), ("7b", "7B, all weights"), ("7b_lora", "7B, LoRA r 64")],
)
def test_the_7b_recipe_states_what_a_step_costs_on_a_gpu(name, policy):
    measured = json.loads((RESULTS / f"grpo_step_gpu_{name}.json").read_text())
    assert measured["hardware"] == "NVIDIA H200" and measured["dtype"] == "bfloat16"
    phases, memory, scoring = measured["step"]["phases"], measured["peak_memory_gib"], measured["scoring"]
    text = (ROOT / "recipes" / "qwen2-vl-7b-grpo" / "README.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {policy} |")]
    loss = phases["preparation"] + phases["loss"]
    assert f"| {measured['step']['step']:.1f} s | {phases['generation']:.1f} s | {phases['reward']:.2f} s |" in line
    assert f"| {loss:.1f} s | {max(memory.values()):.1f} GiB | {scoring['completions_per_second']:.0f} |" in line
    assert line.endswith(f"| {scoring['forward_share_of_peak']:.0%} |")


def test_the_reward_s_share_of_a_step_was_measured():
    path = RESULTS / "grpo_reward.json"
    measured = json.loads(path.read_text())
    assert "shared with other work" in measured["note"] and measured["rollouts"] == 8
    groups, rows = measured["ways"]["groups"], measured["ways"]["rows"]
    for way in (groups, rows):
        assert set(way["phases"]) == set(way["shares"]) == PHASES
        assert len(way["steps"]) == measured["rounds"]
        assert sum(way["shares"].values()) == pytest.approx(1, abs=0.05)
    for name in ("generation", "reward", "loss"):
        assert measured["ratios"][name] == pytest.approx(rows["phases"][name] / groups["phases"][name])
    assert measured["ratios"]["reward"] >= 3 and groups["shares"]["reward"] < rows["shares"]["reward"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "group_speed.py --size tiny --rounds 1 --sizes 2",
        "grpo_loss.py --size tiny --rounds 1",
        "grpo_reward.py --rounds 1",
        "rollout_speed.py --size tiny --rounds 1 --samples 2 --tokens 3 --static --texts",
    ],
)
def test_a_benchmark_runs_to_its_end(command, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    script, *options = command.split()
    command = [sys.executable, ROOT / "benchmarks" / script, *options, "--output", tmp_path / "found.json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "found.json").read_text())["torch"]


@pytest.mark.slow
def test_the_gpu_benchmark_runs_to_its_end(tmp_path):
    output = tmp_path / "step.json"
    command = [sys.executable, ROOT / "benchmarks" / "grpo_step_gpu.py", "--size", "tiny", "--rounds", "1"]
    command += ["--prompts", "1", "--rollouts", "2", "--image_side", "56", "--completion_length", "4", "--lora"]
    command += ["--scored_groups", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, "--output", output], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "scoring:" in done.stdout
    found = json.loads(output.read_text())
    assert found["hardware"] and found["device"] == "cpu" and found["size"] == "tiny"
    assert set(found["step"]["phases"]) == set(found["peak_memory_gib"]) == PHASES
    assert sum(found["step"]["phases"].values()) == pytest.approx(found["step"]["step"])
    assert found["matmul_flops_per_second"] > 0 and found["parameters"]["score_model"] > 0
    keys = {
        "completions",
        "tokens",
        "flops",
        "forward_seconds",
        "forward_flops_per_second",
        "forward_share_of_peak",
        "whole_seconds",
        "whole_share_of_peak",
        "completions_per_second",
    }
    assert set(found["scoring"]) == keys and found["scoring"]["completions"] == 2
