"""Does the score model's cut win? The runs of `recipes/aid-rsicd-curation`, their table and their picture.

    python recipes/aid-rsicd-curation/curation_experiment.py --jobs 2

Everything before the trainings (models, pool, scores) is made by the commands of the recipe's README. This script cuts
the pool with `rs-rlhf curate`, trains a CLIP and a VLM on each cut with the recipe's YAML, `--jobs` at a time with one
thread each, and writes `results/curation.json`, `results/curation.png` and the tables of the README. It skips what is
done.

Arms: `full`, all rows; `random`, `clip` (CLIP score), `model` (score model) and `oracle` (undamaged rows alone), 30%
of the captions and 30% of the labels each; `clip_image` and `model_image`, as many, with the best caption of every
image first (the labels, one an image, are those of `clip` and `model`, and so are the VLMs trained on them). Same
epochs: every arm sees its rows equally often, so `full` takes more than three times the steps. Same steps: `full`
stops where the others end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from scipy import stats

from rs_rlhf.curation.shards import read_scores
from rs_rlhf.runs.charts.curves import intervals
from rs_rlhf.runs.charts.style import save

OUT = Path("out/aid-rsicd-curation")
POOL = OUT / "pool/pool.jsonl"
RECIPE = Path("recipes/aid-rsicd-curation")
RESULTS = RECIPE / "results"
ARMS = ("full", "random", "clip", "clip_image", "model", "model_image", "oracle")
NAMES = {
    "start": "before",
    "full": "all rows",
    "random": "random 30%",
    "clip": "CLIP score, top 30%",
    "model": "score model, top 30%",
    "clip_image": "CLIP score, every image",
    "model_image": "score model, every image",
    "oracle": "oracle 30%",
}
CONTROLS = {
    "mix": "clean and damaged at random, as many of each as the score model's",
    "easy": "clean, those with the highest scores",
}
KEEP = 0.3
FIGURES = {
    "clip": {
        "zero-shot accuracy": "eval_aid-rsicd_top1",
        "text R@5": "eval_aid-rsicd-retrieval_image_to_text_R@5",
        "image R@5": "eval_aid-rsicd-retrieval_text_to_image_R@5",
    },
    "vlm": {"accuracy": "eval_exact_match"},
}


def command(*arguments: str, core: int | None = None, log: Path) -> float:
    """Runs `rs-rlhf`; returns its seconds."""
    start = time.perf_counter()
    pin = [] if core is None else ["taskset", "-c", str(core)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        done = subprocess.run(
            [*pin, sys.executable, "-m", "rs_rlhf", *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    if done.returncode:
        sys.exit(f"rs-rlhf {' '.join(arguments)} failed; see {log}")
    return time.perf_counter() - start


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Reads JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def cut(arm: str, seed: int = 0) -> str:
    """Makes the data of an arm; returns where it lies."""
    if arm == "full":
        return str(POOL)
    folder = OUT / "kept" / arm
    if (folder / "curation.json").exists():
        return str(folder)
    if arm in ("oracle", *CONTROLS):
        ids = oracle_rows(seed) if arm == "oracle" else control_rows(arm)
        table = {"row_id": [f"{POOL.name}:{i}" for i in ids], "text_index": pa.array([0] * len(ids), pa.int32())}
        pq.write_table(pa.table(table), OUT / f"{arm}_ids.parquet")
        what = ["--ids", str(OUT / f"{arm}_ids.parquet"), "--input", str(POOL)]
    else:
        scorer = arm.removesuffix("_image")
        what = [str(OUT / "scores" / scorer), "--keep", str(KEEP), "--by", "source"]
        what += [] if scorer == "clip" else ["--compare", str(OUT / "scores/clip")]
        what += ["--best_of_every_image"] if scorer != arm else []
    command("curate", *what, "--output", str(folder), "--overwrite", log=OUT / f"logs/curate_{arm}.log")
    return str(folder)


def oracle_rows(seed: int) -> list[int]:
    """Draws 30% of the rows of each source from the undamaged ones."""
    ids, draw = [], random.Random(seed)
    rows = rows_of(POOL)
    for source in ("captions", "labels"):
        own = [i for i, row in enumerate(rows) if row["source"] == source]
        clean = [i for i in own if rows[i]["clean"]]
        ids += sorted(draw.sample(clean, round(KEEP * len(own))))
    return ids


def control_rows(arm: str) -> list[int]:
    """Chooses 30% of each source to tell why the score model's cut does what it does, see `CONTROLS`."""
    rows, draw, ids = rows_of(POOL), random.Random(5), []
    scores = read_scores(OUT / "scores/model", ["score"])["score"].to_pylist()
    for source in ("captions", "labels"):
        own = [i for i, row in enumerate(rows) if row["source"] == source]
        best = sorted(own, key=lambda i: -scores[i])
        clean = [i for i in best if rows[i]["clean"]]
        count = round(KEEP * len(own))
        if arm == "easy":
            ids += clean[:count]
            continue
        wanted = sum(rows[i]["clean"] for i in best[:count])
        damaged = [i for i in own if not rows[i]["clean"]]
        ids += [*draw.sample(clean, wanted), *draw.sample(damaged, count - wanted)]
    return sorted(ids)


def why(steps: int) -> None:
    """Trains CLIP on the controls, one seed, and writes `results/curation_why.json`."""
    told = {"model": "the score model's", **CONTROLS, "oracle": "clean, at random (oracle)"}
    runs = []
    for arm, texts in told.items():
        data = cut(arm)
        run = train("clip", arm, data, 0, steps if arm in CONTROLS else None, 0)
        share = kept({arm: data})[arm]["captions"]["clean"]
        runs.append({"texts": texts, "clean captions": round(share, 4), **run})
    (RESULTS / "curation_why.json").write_text(json.dumps({"runs": runs}, indent=1) + "\n")


def labels_of(arm: str, data: str) -> str:
    """Writes the class labels of an arm's rows, which the VLM is trained on; returns their folder."""
    folder = OUT / "labels" / arm
    rows = (Path(data) / POOL.name if arm != "full" else POOL).read_text(encoding="utf-8").splitlines()
    folder.mkdir(parents=True, exist_ok=True)
    own = [row + "\n" for row in rows if json.loads(row)["source"] == "labels"]
    (folder / "labels.jsonl").write_text("".join(own), encoding="utf-8")
    about = {"version": 1, "image_root": str(POOL.parent.resolve())}
    (folder / "curation.json").write_text(json.dumps(about), encoding="utf-8")
    return str(folder)


def kept(data: dict[str, str]) -> dict[str, Any]:
    """Counts what each arm keeps: rows, images, and the share that is clean, per source and kind of damage."""
    pool = rows_of(POOL)
    figures = {}
    for arm, path in data.items():
        rows = rows_of(Path(path) / POOL.name if arm != "full" else POOL)
        kinds = {row["damage"] or "clean" for row in pool}
        figures[arm] = {"rows": len(rows), "images": len({row["image"] for row in rows})}
        for source in ("captions", "labels"):
            own = [row for row in rows if row["source"] == source]
            figures[arm][source] = {"rows": len(own), "clean": sum(row["clean"] for row in own) / len(own)}
        figures[arm]["share_kept"] = {
            kind: sum((row["damage"] or "clean") == kind for row in rows)
            / sum((row["damage"] or "clean") == kind for row in pool)
            for kind in sorted(kinds)
        }
    return figures


def train(kind: str, arm: str, data: str, seed: int, steps: int | None, core: int) -> dict[str, Any]:
    """Trains one model, or reads what it gave."""
    name = f"{kind}_{arm}_{'epochs' if steps is None else 'steps'}_{seed}"
    folder = OUT / "runs" / name
    if not (folder / "trainer_state.json").exists():
        limit = [] if steps is None else ["--max_steps", str(steps)]
        what = "clip" if kind == "clip" else "sft"
        data = data if kind == "clip" else labels_of(arm, data)
        options = [
            "--dataset_name",
            data,
            "--seed",
            str(seed),
            "--output_dir",
            str(folder),
            "--overwrite_output_dir",
            *limit,
        ]
        config = str(RECIPE / f"{kind}.yaml")
        seconds = command(what, "--config", config, *options, core=core, log=OUT / f"logs/{name}.log")
        (folder / "seconds.json").write_text(json.dumps(round(seconds)))
        for weights in folder.glob("*.safetensors"):
            weights.unlink()
    state = json.loads((folder / "trainer_state.json").read_text())
    logged = {key: value for entry in state["log_history"] for key, value in entry.items()}
    figures = {name: logged[key] for name, key in FIGURES[kind].items()}
    seconds = json.loads((folder / "seconds.json").read_text())
    return {"kind": kind, "arm": arm, "seed": seed, "steps": state["global_step"], "seconds": seconds, **figures}


def start_figures() -> dict[str, dict[str, float]]:
    """What the models say before: of the last evaluation of the runs that made them."""
    found = {}
    for kind, folder in (("clip", "clip_start"), ("vlm", "captioner")):
        history = json.loads((OUT / folder / "trainer_state.json").read_text())["log_history"]
        logged = {key: value for entry in history for key, value in entry.items()}
        found[kind] = {name: logged[key] for name, key in FIGURES[kind].items()}
    return found


def table(runs: list[dict[str, Any]], start: dict[str, dict[str, float]], same: str) -> list[str]:
    """One table of the README: mean ± sd over the seeds, and the score model's lead over each arm, paired by seed."""
    columns = [(kind, name) for kind, names in FIGURES.items() for name in names]
    head = [f"{'CLIP' if kind == 'clip' else 'VLM'} {name}" for kind, name in columns]
    lines = [f"| same {same} | " + " | ".join(head) + " |", "|---|" + "---|" * len(columns)]

    def values(arm: str, kind: str, name: str) -> dict[int, float]:
        wanted = f"{arm}_steps" if arm == "full" and same == "steps" else arm
        return {run["seed"]: run[name] for run in runs if run["table_arm"] == wanted and run["kind"] == kind}

    lines.append("| before | " + " | ".join(f"{start[kind][name]:.1%}" for kind, name in columns) + " |")
    for arm in ARMS:
        cells = [list(values(arm, *column).values()) for column in columns]
        told = " | ".join(f"{statistics.mean(own):.1%} ± {statistics.stdev(own):.1%}" for own in cells)
        lines.append(f"| {NAMES[arm]} | {told} |")
    for leader, arm in itertools.product(("model", "model_image"), ("full", "random", "clip")):
        told = []
        for column in columns:
            ours, theirs = values(leader, *column), values(arm, *column)
            gaps = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
            half = stats.t.ppf(0.975, len(gaps) - 1) * statistics.stdev(gaps) / len(gaps) ** 0.5
            told.append(f"{100 * statistics.mean(gaps):+.1f} ± {100 * half:.1f}")
        lines.append(f"| *{NAMES[leader]} − {NAMES[arm]}, points, 95%* | " + " | ".join(told) + " |")
    return lines


def draw(runs: list[dict[str, Any]], figures: dict[str, Any], start: dict[str, Any], same: str, path: Path) -> None:
    """Draws the share of clean rows kept, and what CLIP and VLM learned from each arm."""
    rows = [
        {"label": NAMES[arm], "group": source, "value": figures[arm][source]["clean"]}
        for arm in ARMS
        for source in ("captions", "labels")
    ]
    charts = [intervals("share of undamaged texts", rows, "undamaged")]
    for kind, name in (("clip", "zero-shot accuracy"), ("clip", "text R@5"), ("vlm", "accuracy")):
        rows = []
        for arm in ARMS:
            table_arm = "full_steps" if arm == "full" and same == "steps" else arm
            own = [run[name] for run in runs if run["kind"] == kind and run["table_arm"] == table_arm]
            middle, spread = statistics.mean(own), statistics.stdev(own)
            rows.append({"label": NAMES[arm], "value": middle, "low": middle - spread, "high": middle + spread})
        title = f"{'CLIP' if kind == 'clip' else 'VLM'} {name}, same {same} (dashed: before; lines: one deviation)"
        charts.append(intervals(title, rows, name, mark=start[kind][name]))
    save({"concat": charts, "columns": 2, "resolve": {"scale": {"color": "independent"}}}, path)


def main() -> None:
    """Makes the cuts, trains what is not trained yet, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, each on its own core")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--same",
        nargs="+",
        choices=("steps", "epochs"),
        default=["steps", "epochs"],
        help="which comparisons to make; `epochs` takes more than 3 times the steps",
    )
    parser.add_argument("--why", action="store_true", help="also train CLIP on controls, seed 0: curation_why.json")
    args = parser.parse_args()
    data = {arm: cut(arm) for arm in ARMS}
    figures = kept(data)
    print(json.dumps(figures, indent=2))
    cores: Queue[int] = Queue()
    for core in range(args.jobs):
        cores.put(core)

    def job(kind: str, arm: str, seed: int, steps: int | None) -> dict[str, Any]:
        core = cores.get()
        try:
            run = train(kind, arm, data[arm], seed, steps, core)
        finally:
            cores.put(core)
        print(json.dumps(run), flush=True)
        return {**run, "table_arm": arm if steps is None else f"{arm}_steps"}

    with ThreadPoolExecutor(args.jobs) as pool:
        todo = [(kind, arm, seed, None) for seed in args.seeds for kind in FIGURES for arm in ARMS if arm != "full"]
        todo = [one for one in todo if one[0] == "clip" or not one[1].endswith("_image")]
        runs = list(pool.map(lambda one: job(*one), todo))
        labels = [run for run in runs if run["kind"] == "vlm" and run["arm"] in ("clip", "model")]
        runs += [{**run, "table_arm": f"{run['arm']}_image"} for run in labels]  # their labels are the same rows
        steps = {
            kind: next(run["steps"] for run in runs if run["kind"] == kind and run["arm"] == "model")
            for kind in FIGURES
        }
        limits = {kind: [steps[kind] if same == "steps" else None for same in args.same] for kind in FIGURES}
        full = [(kind, "full", seed, limit) for seed in args.seeds for kind in FIGURES for limit in limits[kind]]
        runs += list(pool.map(lambda one: job(*one), full))
    if args.why:
        why(steps["clip"])
    start = start_figures()
    lines = [line for same in args.same for line in (*table(runs, start, same), "")]
    results = {"kept": figures, "start": start, "runs": runs, "tables": lines}
    (RESULTS / "curation.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(runs, figures, start, args.same[0], RESULTS / "curation.png")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
