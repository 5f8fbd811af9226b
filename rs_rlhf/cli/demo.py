"""`rs-rlhf demo`: the whole path in minutes on a laptop, without a network.

The score model that comes with the package ranks captions of some scenes. Then one is made from nothing:
overhead scenes are generated, a tiny Qwen2-VL is trained on them from scratch as a captioner, preference pairs with
known damage are built, to which come the captioner's own wrong answers, and the score model is trained on them through
the same commands that users run. Then the captioner is trained by GRPO with the score model as its only reward. It
ends with how often the score model prefers the better text, and with the evaluation of the policy on held-out scenes:
before, after GRPO, and the best of eight answers by the score model, as tables and pictures.

Left out: anything that the commands do not do themselves; this module only calls them in order.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import declarations
from ..errors import OptionError
from ..options import option
from ..runs.files import filling_folder, replacing, write_json
from ..runs.tables import markdown_table, print_markdown
from .main import run

if TYPE_CHECKING:
    from ..scoring.scorer import Scorer

BOX = "aid-rsicd-tiny"
MARK = ".rs-rlhf-demo"  # a folder with it was made by the demo, and what the demo wrote there may be replaced
OWN = ("scenes", "init", "captioner", "start", "reward", "grpo", "demo.png", "demo.json", "grpo.png", "best_of_n.png")


@dataclass(kw_only=True)
class DemoOptions:
    """The whole path on made-up scenes."""

    output_dir: Path = option(Path("demo_output"), "folder to write to", writes="folder")
    train_scenes: int = option(1200, "training scenes")
    validation_scenes: int = option(240, "held-out scenes")
    captioner_steps: int = option(300, "steps of the captioner")
    reward_steps: int = option(600, "steps of the score model")
    grpo_steps: int = option(60, "steps of GRPO")
    batch_size: int = option(48, "samples per step")
    seed: int = option(0, "seed of everything", least=0)


def main(demo: DemoOptions) -> None:
    """Runs the demo and prints the table."""
    from ..runs.report_tables import read_evaluations

    start, out = time.monotonic(), demo.output_dir
    clear(out)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # TRL refuses several GPUs without a launcher

    _say("1/7", f"ranking captions by the score model in the box, {BOX}")
    print(rank_by_the_box(demo.seed), flush=True)
    _say("2/7", f"drawing {demo.train_scenes} training and {demo.validation_scenes} held-out scenes")
    prepare(out, demo)
    _say("3/7", "training a tiny Qwen2-VL from scratch as a captioner")
    train_captioner(out, demo)
    before = _report(out, out / "start", demo.seed)
    _say("4/7", "training the score model on preference pairs and the captioner's own mistakes")
    train_score_model(out, demo)
    _say("5/7", "scoring held-out pairs")
    after = _report(out, out / "reward", demo.seed)
    _say("6/7", "training the captioner by GRPO, rewarded by the score model alone")
    train_policy(out, demo)
    _say("7/7", "evaluating the policy before and after, and with the best of 8 answers")
    evaluate_policy(out, demo)
    evaluations = read_evaluations(out / "grpo")
    parts = [summarise(out, before, after, demo.seed), summarise_policy(out), summarise_evaluations(evaluations)]
    summary = "\n\n".join(parts)
    print()
    print_markdown(summary)
    minutes = (time.monotonic() - start) / 60
    print(f"\nTook {minutes:.1f} minutes (seed {demo.seed}).")
    pairs = {"before": before, "after": after}
    found = {"pairs": pairs, "policy": evaluations, "seed": demo.seed, "minutes": round(minutes, 1)}
    write_json(out / "demo.json", found)
    pictures = ", ".join(str(out / name) for name in ("demo.png", "grpo.png", "best_of_n.png"))
    print(f"Pictures: {pictures}; GRPO and the evaluations as a page: rs-rlhf report {out / 'grpo'}")
    print("Score your own images with")
    print(f'  Scorer.from_pretrained("{out / "reward"}").score(images=[...], completions=[[...]])')


def clear(out: Path) -> None:
    """Makes the folder; what an earlier demo wrote there is removed.

    Raises:
        OptionError: The folder holds something else.
    """
    if out.exists() and any(out.iterdir()):
        if not (out / MARK).is_file():
            raise OptionError(
                f"{out} is not empty and was not made by the demo; give another --output_dir.", "output_dir"
            )
        for path in (out / name for name in OWN):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()


def rank_by_the_box(seed: int) -> str:
    """Returns the ranking of captions by the score model in the box, of three aerial images from the data folder
    (`RS_RLHF_DATA`) if AID is in it, of drawn scenes otherwise.
    """
    from ..data.captioned_images import load_images
    from ..data.scenes.make import make_scenes
    from ..scoring.scorer import Scorer

    scorer, folder = Scorer.from_pretrained(BOX), declarations.data_root() / "aid_rsicd"
    if folder.is_dir():
        rows = load_images(folder, "validation")
        random.Random(seed).shuffle(rows)
    else:
        rows = [vars(scene) for scene in make_scenes(12, seed + 1)]
    return "\n\n".join(_ranking(scorer, rows, number)[0] for number in range(3))


def _ranking(scorer: Scorer, rows: Sequence[Mapping[str, Any]], number: int) -> tuple[str, list[tuple[str, float]]]:
    """Ranks two captions of an image, and one of an image of each of four other classes.

    Returns:
        The ranking as text, and the captions with their scores.
    """
    others = {row["label"]: row["captions"][0] for row in rows if row["label"] != rows[number]["label"]}
    own = list(dict.fromkeys(rows[number]["captions"]))[:2]
    texts = [*own, *list(others.values())[:4]]
    scores = scorer.score([rows[number]["image"]], None, [texts])[0]
    lines = [f"A held-out {rows[number]['label']} scene, its own captions marked *:\n"]
    for text, score in sorted(zip(texts, scores, strict=True), key=lambda entry: entry[1], reverse=True):
        lines.append(f"    {score:6.2f}  {'*' if text in own else ' '} {text}")
    return "\n".join(lines), list(zip(texts, scores, strict=True))


def prepare(out: Path, demo: DemoOptions) -> None:
    """Writes scenes, pairs, and the untrained tiny model."""
    from ..data.captioned_images import image_texts
    from ..data.scenes.make import write_scenes
    from ..models.tiny_vlm import save_tiny_vlm

    folder = out / "scenes"
    write_scenes(str(folder), demo.train_scenes, demo.validation_scenes, demo.seed, 112)
    for split, seed in (("train", demo.seed), ("validation", demo.seed + 1)):
        _run("data pairs", input=folder, split=split, seed=seed, output=folder / f"{split}_pairs.jsonl")
    save_tiny_vlm(
        out / "init",
        hidden_size=96,
        num_layers=2,
        vision_dim=96,
        vision_depth=3,
        seed=demo.seed,
        min_pixels=112 * 112,
        max_pixels=112 * 112,
        vocab_size=800,
        texts=image_texts(f"{folder}:train"),
    )


def _run(command: str, **options: object) -> None:
    """Runs a command with flags of these names."""
    run(command, [text for name, value in options.items() for text in (f"--{name}", str(value))])


def _train(command: str, out: Path, demo: DemoOptions, steps: int, **options: object) -> None:
    """Runs a training command with the options that all of them share, and those that are given."""
    common: dict[str, object] = {
        "output_dir": out,
        "max_steps": steps,
        "per_device_train_batch_size": demo.batch_size,
        "per_device_eval_batch_size": 2 * demo.batch_size,
        "learning_rate": 2e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": max(1, steps // 12),
        "adam_beta2": 0.99,
        "activation_checkpointing": False,
        "bf16": False,
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_steps": 50,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "seed": demo.seed,
    }
    _run(command, **common | options)


def train_captioner(out: Path, demo: DemoOptions) -> None:
    """Trains the captioner, and saves it with a new head as the score model's start."""
    import torch

    from ..models.score_model import ScoreModel
    from ..models.vlm import load_processor

    data = {"dataset_name": out / "scenes", "model_name_or_path": out / "init"}
    _train("sft", out / "captioner", demo, demo.captioner_steps, **data, augment=True)
    torch.manual_seed(demo.seed)
    with filling_folder(out / "start") as new:
        load_processor(str(out / "captioner"), {}).save_pretrained(new)
        ScoreModel.from_pretrained(out / "captioner").save_pretrained(new)


def train_score_model(out: Path, demo: DemoOptions) -> None:
    """Samples the captioner on the training scenes; its wrong answers, and other classes, are among the rejected."""
    scenes = out / "scenes"
    pairs, mistakes = scenes / "train_pairs.jsonl", scenes / "train_mistakes.jsonl"
    sampled = {"policy": out / "captioner", "input": scenes, "split": "train", "output": mistakes, "form": "list"}
    _run("data sample-pairs", **sampled, choices_extra=4, max_new_tokens=12, seed=demo.seed)
    data = {"dataset_name": f"{pairs},{mistakes}", "model_name_or_path": out / "start", "ranked_rejected": False}
    _train("reward", out / "reward", demo, demo.reward_steps, **data, learning_rate=1e-3)


def train_policy(out: Path, demo: DemoOptions) -> None:
    """Trains the captioner by GRPO with the score model; the scenes' classes are only looked at by the audit."""
    _train(
        "grpo",
        out / "grpo",
        demo,
        demo.grpo_steps,
        model_name_or_path=out / "captioner",
        score_model=out / "reward",
        dataset_name=out / "scenes",
        dataset_train_split="train",
        dataset_test_split="validation",
        learning_rate=2e-4,
        lr_scheduler_type="constant_with_warmup",
        logging_steps=5,
        per_device_train_batch_size=64,
        num_generations=8,
        max_completion_length=12,
        beta=0.02,
        eval_strategy="steps",
        eval_steps=max(1, demo.grpo_steps // 3),
        eval_on_start=True,
        num_generations_eval=1,
        validation_prompts=demo.validation_scenes,
        audit_steps=10,
        check_best_of_n=0,  # `evaluate_policy` makes the whole comparison
    )


def evaluate_policy(out: Path, demo: DemoOptions) -> None:
    """Evaluates on the held-out scenes with `rs-rlhf eval` and `rs-rlhf best-of-n`; the run's report shows it."""
    asked = {"task": "scenes", "data_root": out}
    for name, model in (("base policy", "captioner"), ("with GRPO", "grpo")):
        _run("eval run", model=out / model, **asked, out=out / "grpo" / "eval" / name)
    place = out / "grpo" / "eval" / "best of n, base policy"
    sampling = {"n": 8, "temperature": 1, "top_p": 1, "max_new_tokens": 12, "seeds": demo.seed}
    _run("best-of-n", policy=out / "captioner", score_model=out / "reward", **asked, **sampling, out=place)
    with replacing(out / "best_of_n.png", "wb") as file:
        file.write((place / "best_of_n.png").read_bytes())


def _report(out: Path, model: Path, seed: int) -> dict[str, Any]:
    from ..evaluation.preferences import evaluate_preferences
    from ..preferences.reader import load_preferences
    from ..preferences.schema import group_from_row

    data = load_preferences(str(out / "scenes" / "validation_pairs.jsonl"))
    return evaluate_preferences(_scorer(out, model), [group_from_row(row) for row in data], seed=seed)


def _scorer(out: Path, model: Path) -> Any:
    from ..imagery.raster import ImageOptions
    from ..scoring.load import load_scorer

    return load_scorer(str(model), ImageOptions(image_root=str(out / "scenes")))


def summarise(out: Path, before: dict[str, Any], after: dict[str, Any], seed: int) -> str:
    """Writes `demo.png`, and returns the table as Markdown."""
    from ..data.captioned_images import load_images
    from ..imagery.raster import ImageOptions, read_image
    from ..runs.plots import plot_preferences

    rows = load_images(out / "scenes", "validation")
    shown = rows[seed % len(rows)]
    ranking, scored = _ranking(_scorer(out, out / "reward"), rows, seed % len(rows))
    picture = read_image(shown["image"], ImageOptions(image_root=str(out / "scenes")))
    example = (picture, scored)
    plot_preferences({"before": before, "after": after}, out / "demo.png", example)
    table = []
    parts = {kind: (before["by_kind"][kind], part) for kind, part in after["by_kind"].items()}
    parts |= {"all": (before, after)}
    for name, (first, last) in parts.items():
        interval = "{:.1%} – {:.1%}".format(*last["interval"])
        table.append([name, last["n"], f"{first['accuracy']:.1%}", f"{last['accuracy']:.1%}", interval])
    lines = [markdown_table(["held-out pairs", "n", "before", "after", "95% interval"], table, "lrrrl")]
    lines.append(f"\nWith another scene's image accuracy falls by {after['shuffled']['gap']:.1%} (image-shuffle gap).")
    return "\n".join([*lines, "", ranking])


def summarise_policy(out: Path) -> str:
    """Draws the reward beside the accuracy, and returns what GRPO did as Markdown."""
    from ..runs.plots import history, plot_grpo

    log = history(out / "grpo")
    points = [(entry["step"], entry) for entry in log if "eval_audit/greedy_accuracy" in entry]
    plot_grpo(out / "grpo", out / "grpo.png")
    rows = []
    rewards = {entry["step"]: entry["eval_reward"] for entry in log if entry.get("eval_reward") is not None}
    for step, entry in points:
        right, odd = entry["eval_audit/greedy_accuracy"], entry["eval_audit/greedy_unparseable"]
        rows.append([step, f"{rewards.get(step, float('nan')):.2f}", f"{right:.1%}", f"{odd:.1%}"])
    header = ["GRPO step", "reward of sampled answers", "held-out scenes named right", "not a class"]
    return markdown_table(header, rows, "r")


def summarise_evaluations(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """Returns the policy's evaluations as Markdown."""
    rows = []
    for row in evaluations:
        interval = "{:.1%} – {:.1%}".format(*row["interval"])
        rows.append([row["what"], row["n"], f"{row['accuracy']:.1%}", interval])
    return markdown_table(["policy on held-out scenes", "n", "named right", "95% interval"], rows, "lrrl")


def _say(step: str, what: str) -> None:
    print(f"\n[{step}] {what}", flush=True)
