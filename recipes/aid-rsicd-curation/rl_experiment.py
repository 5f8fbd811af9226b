"""Does GRPO with the score model make a VLM answer better? The RL runs of `recipes/aid-rsicd-curation` and controls.

    python recipes/aid-rsicd-curation/rl_experiment.py --jobs 2

The models that it starts from (`spoiled`, `captioner`, `reward_lists4`) and the labels are made by the commands of the
recipe's README. Each arm is trained with the recipe's YAML, `--jobs` at a time with one thread each; then every policy
answers the held-out images with `rs-rlhf eval`, greedily and sampled. What is done is not done again. It writes
`results/grpo.json`, `results/grpo.png` and the table of the README.

Arms, all from the VLM that wrong labels have spoiled: `grpo`, the score model is the only reward and no label is read;
`shuffled`, the same with another image shown to the score model; `wrong`, more fine-tuning on the labels that spoiled
it, for about as long as GRPO takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

from curation_experiment import OUT, RECIPE, RESULTS, command, rows_of

from rs_rlhf.metrics.intervals import paired_bootstrap
from rs_rlhf.runs.charts.curves import intervals, lines
from rs_rlhf.runs.charts.style import SERIES, save

BEFORE = ("captioner", "spoiled")
GRPO = ["grpo", "--config", str(RECIPE / "grpo.yaml")]
ARMS = {
    "grpo": GRPO,
    "shuffled": [*GRPO, "--shuffle_reward_images", "true"],
    "wrong": [
        "sft",
        "--config",
        str(RECIPE / "vlm.yaml"),
        "--model_name_or_path",
        str(OUT / "spoiled"),
        "--max_steps",
        "440",
        "--dataset_name",
        str(OUT / "labels/full"),
    ],
}
NAMES = {
    "captioner": "before the wrong labels",
    "spoiled": "after them, where all arms start",
    "grpo": "GRPO, the score model alone",
    "shuffled": "control: GRPO, another image in the reward",
    "wrong": "control: more of the same labels",
}
WAYS = {"greedy": [], "sampled": ["--temperature", "1"]}


def answers(name: str, model: Path, seed: int, core: int) -> dict[str, list[bool]]:
    """Has a model answer the held-out images, or reads what it said: right or not, in the order of their names."""
    found = {}
    for way, options in WAYS.items():
        folder = OUT / "rl/answers" / f"{name}_{way}"
        if not (folder / "results.json").exists():
            what = ["--model", str(model), "--task", "aid-rsicd", "--seed", str(seed), *options]
            command("eval", *what, "--out", str(folder), core=core, log=OUT / f"logs/rl_{name}_{way}.log")
        rows = sorted(rows_of(folder / "samples_aid-rsicd.jsonl"), key=lambda row: row["id"])
        found[way] = [row["strict"] for row in rows]
    return found


def logged(folder: Path) -> dict[str, Any]:
    """What a training wrote down: its steps and their seconds, and for GRPO the score and accuracy of its rollouts."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    steps = max(entry["step"] for entry in history)
    times = [entry["step_time"] for entry in history if "step_time" in entry]
    last = {key: value for entry in history for key, value in entry.items()}
    seconds = statistics.mean(times) * steps if times else last["train_runtime"] - last["eval_runtime"]
    keys = {"score": "score/mean", "accuracy": "audit/accuracy"}
    curve = [
        {"step": entry["step"]} | {name: round(entry[key], 4) for name, key in keys.items()}
        for entry in history
        if all(key in entry for key in keys.values())
    ]
    return {"steps": steps, "seconds": round(seconds), "rollouts": curve}


def job(arm: str, seed: int, cores: Queue[int]) -> dict[str, Any]:
    """Trains one policy and has it answer."""
    core = cores.get()
    try:
        folder = OUT / "rl" / f"{arm}_{seed}"
        if not (folder / "trainer_state.json").exists():
            options = ["--seed", str(seed), "--output_dir", str(folder), "--overwrite_output_dir"]
            command(*ARMS[arm], *options, core=core, log=OUT / f"logs/rl_{arm}_{seed}.log")
        run = {"arm": arm, "seed": seed, **logged(folder), "right": answers(f"{arm}_{seed}", folder, seed, core)}
    finally:
        cores.put(core)
    print(arm, seed, {way: f"{statistics.mean(right):.1%}" for way, right in run["right"].items()}, flush=True)
    return run


def table(before: dict[str, dict[str, list[bool]]], runs: list[dict[str, Any]]) -> list[str]:
    """The README's table: each seed, mean ± sd over the seeds, and the gain when images are redrawn."""
    lines = [
        "| held-out images | right, greedy: seeds | mean ± sd | gain in points (95%) | right, sampled: seeds |"
        " mean ± sd | seconds of training |",
        "|---|---|---:|---:|---|---:|---:|",
    ]
    for start in BEFORE:
        greedy, sampled = (f"{statistics.mean(before[start][way]):.1%}" for way in WAYS)
        lines.append(f"| {NAMES[start]} | | {greedy} | | | {sampled} | |")
    for arm in ARMS:
        own = [run for run in runs if run["arm"] == arm]
        cells = []
        for way in WAYS:
            shares = [statistics.mean(run["right"][way]) for run in own]
            cells += [
                " / ".join(f"{share:.1%}" for share in shares),
                f"{statistics.mean(shares):.1%} ± {statistics.stdev(shares):.1%}",
            ]
        after = [statistics.mean(values) for values in zip(*(run["right"]["greedy"] for run in own), strict=True)]
        gain, (low, high), _ = paired_bootstrap(before["spoiled"]["greedy"], after)
        cells.insert(2, f"{100 * gain:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})")
        seconds = [run["seconds"] for run in own]
        lines.append(f"| {NAMES[arm]} | {' | '.join(cells)} | {min(seconds)}–{max(seconds)} |")
    return lines


def draw(before: dict[str, dict[str, list[bool]]], runs: list[dict[str, Any]], path: Path) -> None:
    """Draws score and accuracy of the rollouts over the steps, and the greedy answers before and after."""
    colours = dict(zip(ARMS, SERIES, strict=False))
    panels: list[dict[str, Any]] = []
    for name, title in (("score", "score of the rollouts"), ("accuracy", "share of the rollouts that are right")):
        curves = [
            {
                "name": f"{run['arm']}, seed {run['seed']}",
                "points": [(one["step"], one[name]) for one in run["rollouts"]],
                "colour": colours[run["arm"]],
            }
            for run in runs
            if run["rollouts"]
        ]
        panels.append(lines(title, curves, name, share=name == "accuracy"))
    rows = []
    for arm in ARMS:
        shares = [statistics.mean(run["right"]["greedy"]) for run in runs if run["arm"] == arm]
        rows.append({"label": NAMES[arm], "value": statistics.mean(shares), "low": min(shares), "high": max(shares)})
    start = statistics.mean(before["spoiled"]["greedy"])
    title = "right on held-out images, greedy (dashed: before; lines: range of the seeds)"
    save({"hconcat": [*panels, intervals(title, rows, "share right", mark=start)]}, path)


def packed(right: dict[str, list[bool]]) -> dict[str, str]:
    """The answers as text of 0 and 1, an image each."""
    return {way: "".join("01"[one] for one in values) for way, values in right.items()}


def main() -> None:
    """Trains what is not trained yet, has every policy answer, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, each on its own core")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    cores: Queue[int] = Queue()
    for core in range(args.jobs):
        cores.put(core)
    before = {name: answers(name, OUT / name, 0, 0) for name in BEFORE}
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = list(
            pool.map(lambda one: job(one[0], one[1], cores), [(arm, seed) for arm in ARMS for seed in args.seeds])
        )
    lines = table(before, runs)
    results = {
        "images": len(before["spoiled"]["greedy"]),
        "before": {name: packed(right) for name, right in before.items()},
        "runs": [{**run, "right": packed(run["right"])} for run in runs],
        "table": lines,
    }
    (RESULTS / "grpo.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(before, runs, RESULTS / "grpo.png")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
