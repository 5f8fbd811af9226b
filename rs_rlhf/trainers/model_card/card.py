"""The model card (README.md) beside a trained model, by the card classes of `huggingface_hub`.

All facts are what the run has recorded: its record (`runs.record`), the log of its `trainer_state.json`, the tables of
its worst pairs. The text is `model_card.md`. Folders and addresses are private: of a path the card has the name.

Left out: the licence, which the user states, and a description of what the data show.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ...runs.cards import CITATION, hidden
from ...runs.files import FILLING, write_text
from ...runs.folder import CARD
from ...runs.record import Run
from ...runs.tables import markdown_table, step_tables, table_part
from .figures import GAP, eval_results, figures, figures_table

FILE = "README.md"
METHODS = {
    "reward": "the Plackett-Luce loss on preference pairs",
    "SFT": "supervised fine-tuning (SFT)",
    "CLIP": "a contrastive loss on image-text pairs",
}
TEMPLATE = Path(__file__).with_name("model_card.md")
TEXT = 160  # characters of a text of the worst pairs
PAIRS = 8


@dataclass(frozen=True)
class Made:
    """What a training makes: what the card calls it, its library and task on the hub, and what it takes and gives."""

    title: str
    library: str
    task: str
    takes: str


MADE = {
    "score model": Made(
        "score model",
        "rs-rlhf",
        "preference-ranking",
        "It takes an image, a question or none, and texts, and gives each text a score: the better the text fits the "
        "image, the higher.",
    ),
    "policy": Made(
        "vision-language model",
        "transformers",
        "image-text-to-text",
        "It takes images and a question and answers with a text.",
    ),
    "dual encoder": Made(
        "dual encoder",
        "transformers",
        "zero-shot-image-classification",
        "It takes images and texts and gives vectors of length 1, whose products are similarities.",
    ),
    "language model": Made(
        "language model", "transformers", "text-generation", "It takes a text and goes on with it; it sees no images."
    ),
    "text classifier": Made(
        "text classifier",
        "transformers",
        "text-classification",
        "It takes a text and gives it a reward; it sees no images.",
    ),
}


def write_model_card(
    folder: Path,
    run: Run,
    state: Mapping[str, Any],
    name: str,
    *,
    run_dir: Path,
    repo: str | None = None,
    tags: Sequence[str] = (),
    dataset: str | None = None,
    citation: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes the card of the model in a folder; one that no training has written there stays as it is.

    Args:
        folder (`Path`): Of the model: an `output_dir`, a checkpoint in it, or what will be moved to one of these (see
            [`filling_folder`]).
        run ([`Run`]): The run that it is of.
        state (mapping): What a `trainer_state.json` holds: `global_step`, `log_history`, …
        name (`str`): Of the model.
        run_dir (`Path`): The `output_dir`, which has the tables of worst pairs.
        repo (`str`, *optional*): Its repository on the hub, which the code in the card loads; by default the folder.
        tags (sequence of `str`): Beside those of the method.
        dataset (`str`, *optional*): Hub id or name of the data; by default what the run names.
        citation (`str`, *optional*): BibTeX entry of the method.
        metadata (mapping, *optional*): Further fields of `ModelCardData`, such as `license`.
    """
    place = folder.parent if folder.name == FILLING else folder
    stated: dict[str, Any] = {}
    if (place / FILE).is_file():
        text = (place / FILE).read_text("utf-8", "replace")
        if not CARD.search(text):
            if place != folder:  # peft has written one, which would take its place
                (folder / FILE).unlink(missing_ok=True)
            return
        stated = _stated(text)
    metadata = stated | {key: value for key, value in (metadata or {}).items() if value is not None}
    model = repo or place.resolve().name
    facts = {
        "pairs": _worst_pairs(run_dir, run, state.get("global_step", 0)),
        "code": _code(run, model),
        "command_line": _evaluation(run, model),
        "citation": citation,
    }
    card = model_card(run, state, name, facts, tags=tags, dataset=dataset, metadata=metadata)
    write_text(folder / FILE, str(card))


def _stated(text: str) -> dict[str, Any]:
    """The licence that a user has stated in the head of an earlier card."""
    try:
        data = ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    except ValueError:  # yaml's errors are no subclass, but a head that is no mapping is
        return {}
    return {key: data[key] for key in ("license", "license_name", "license_link", "language") if data.get(key)}


def model_card(
    run: Run,
    state: Mapping[str, Any],
    name: str,
    facts: Mapping[str, Any],
    *,
    tags: Sequence[str] = (),
    dataset: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> ModelCard:
    """Returns the card of a model, see [`write_model_card`].

    `facts` are the texts of `pairs`, `code`, `command_line` and `citation`.
    """
    about, settings = run.about, run.settings
    made, method = MADE[about["makes"]], str(about["method"])
    base, adapted = str(settings["model"]), settings.get("lora") is not None
    on_hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", base) is not None and not os.path.isdir(base)
    data = _data(run, dataset)
    found, step = figures(run, state)
    results = list(eval_results(found, data, made.task))
    own: dict[str, Any] = {
        "base_model": base if on_hub else None,
        "library_name": "peft" if adapted and made.library == "transformers" else made.library,
        "datasets": [row["name"] for row in data.values() if row["hub"]] or None,
        "tags": sorted({"generated_from_trainer", "rs-rlhf", "remote-sensing", method.lower(), *tags}),
        "pipeline_tag": made.task if made.library == "transformers" else None,
    }
    head = ModelCardData(model_name=name, eval_results=results or None, **{**own, **(metadata or {})})
    values = {
        "title": name,
        "made": made,
        "method": METHODS.get(method, method),
        "adapted": adapted,
        "base": base if on_hub else hidden(base),
        "base_hash": settings.get("model_hash"),
        "stated": (metadata or {}).get("license"),
        "data_table": markdown_table(
            ["set", "data", "rows", "fingerprint"],
            [[k, r["shown"], r["rows"], r["hash"]] for k, r in data.items()],
            "llrl",
        ),
        "command": shlex.join(hidden(part) for part in about["command"]),
        "settings_table": markdown_table(["option", "value"], _options(run), "ll"),
        "figures_table": figures_table(found),
        "evaluated": bool(found),
        "evaluated_at": step,
        "step": state.get("global_step", 0),
        "gap": GAP if any(row["key"].endswith("shuffle_gap") for row in found) else "",
        "versions": about["versions"],
        "run": run,
        "scorers": CITATION,
        "resumed": ", ".join(str(begun) for _, begun in run.parts if begun),
        **facts,
    }
    return ModelCard.from_template(head, template_path=str(TEMPLATE), **values)


def _data(run: Run, dataset: str | None) -> dict[str, dict[str, Any]]:
    """The data sets of a run by `training` and `evaluation`: `name`, whether it is of the `hub`, `rows`, `hash`."""
    named, sets = run.about["data"], {}
    for key, fingerprint in run.settings.items():
        if not (key == "data" or key.startswith("eval_data")) or not isinstance(fingerprint, str):
            continue
        given = named.get("data" if key == "data" else "eval_data", "") or (dataset or "" if key == "data" else "")
        given = ", ".join(given) if isinstance(given, list) else given
        split = named.get("split" if key == "data" else "eval_split")
        rows, _, content = fingerprint.partition(", ")
        on_hub = re.fullmatch(r"[\w-]+/[\w.-]+", given) is not None and not os.path.exists(given)
        label = "training" if key == "data" else f"evaluation {key.removeprefix('eval_data').lstrip('_')}".strip()
        name = given if on_hub else ", ".join(hidden(part.strip()) for part in given.split(","))
        shown = (name or "rows given in Python") + (f", split {split}" if split else "")
        sets[label] = {
            **{"name": name, "shown": shown, "hub": on_hub, "split": split},
            **{"rows": rows.removesuffix(" rows"), "hash": content},
        }
    if "eval_data" not in run.settings and (tasks := named.get("eval_data")) and isinstance(tasks, list):
        for task in tasks:
            name = Path(task).stem if task.endswith((".yaml", ".yml")) else task
            sets[f"evaluation {name}"] = {
                "name": name,
                "shown": name,
                "hub": False,
                "split": None,
                "rows": "",
                "hash": "",
            }
    return sets


def _options(run: Run) -> Iterator[tuple[str, str]]:
    """The options of a training, and how images are read, as rows of a table."""
    about, settings = run.about, run.settings
    if "positions" in about:
        yield "position mode", about["positions"]
    if "pixel_budget" in about:
        low, high = about["pixel_budget"]
        yield "pixel budget of an image", f"{low:,} to {high:,} pixels"
    reading = {key: value for key, value in (settings.get("reading") or {}).items() if value is not None}
    if reading:
        yield "reading of images", ", ".join(f"{key} {value}" for key, value in reading.items())
    for name in ("score_model", "policy"):
        if (given := settings.get(name)) is not None:
            content = settings.get(f"{name}_hash")
            yield name, hidden(given) + (f" (files {content})" if content else "")
    if settings.get("lora"):
        yield "LoRA", ", ".join(f"{key} {value}" for key, value in settings["lora"].items())
    if "trained_parameters" in settings:
        yield "trained parameters", f"{settings['trained_parameters']:,}"
    yield "processes", str(about["processes"])
    for key, value in sorted(about["config"].items()):
        if key not in ("score_model", "image_root", "min_pixels", "max_pixels", "hub_model_id") and value not in (
            [],
            "",
        ):
            yield key, hidden(value)


# The pairs, and how to use the model


def _worst_pairs(folder: Path, run: Run, step: int) -> str:
    """The worst pairs of the last evaluation up to a step, as Markdown; empty without any."""
    import pyarrow.parquet

    tables = [table for table in step_tables(folder / "worst_pairs") if table.step <= step]
    tables = [table for table in tables if run.holds(table_part(table.path), table.step)]
    rows: list[dict[str, Any]] = []
    for table in tables:
        if table.step == max(each.step for each in tables):
            columns = ["chosen_score", "rejected_score", "where", "prompt", "chosen", "rejected"]
            rows += pyarrow.parquet.read_table(table.path, columns=columns, partitioning=None).to_pylist()
    if not rows:
        return ""
    rows.sort(key=lambda row: row["chosen_score"] - row["rejected_score"])

    def cells(row: Mapping[str, Any]) -> list[str]:
        texts = [row[key] or "" for key in ("prompt", "chosen", "rejected")]
        short = [text if len(text) <= TEXT else text[: TEXT - 1] + "…" for text in texts]
        scores = [f"{row[key]:.3f}" for key in ("chosen_score", "rejected_score")]
        return [hidden(row["where"]), short[0], f"{short[1]} ({scores[0]})", f"{short[2]} ({scores[1]})"]

    header = ["row", "question", "chosen (score)", "rejected (score)"]
    return markdown_table(header, map(cells, rows[:PAIRS]), "l")


def _code(run: Run, model: str) -> str:
    """Python that uses the model."""
    makes = run.about["makes"]
    if makes == "score model":
        form = f'scorer = Scorer.from_pretrained("{model}")'
        call = 'print(scorer.score(images=["scene.png"], completions=[["a river.", "a forest beside a road."]]))'
        return "\n".join(["from rs_rlhf import Scorer", "", form, call])
    if makes == "policy":
        form = f'policy = Policy.from_pretrained("{model}")'
        call = 'print(policy.sample([("What is in this image?", "scene.png")], temperature=0))'
        return "\n".join(["from rs_rlhf import Policy", "", form, call])
    if makes == "dual encoder":
        lines = [f'clip = ClipModel.from_pretrained("{model}")', 'images = clip.image_features(["scene.png"])']
        lines += ['texts = clip.text_features(["a river.", "a forest beside a road."])', "print(images @ texts.T)"]
        return "\n".join(["from rs_rlhf.models.clip import ClipModel", "", *lines])
    if makes == "language model":
        lines = [f'generate = pipeline("text-generation", model="{model}")', 'print(generate("A river is"))']
        return "\n".join(["from transformers import pipeline", "", *lines])
    lines = [f'classifier = pipeline("text-classification", model="{model}", function_to_apply="none")']
    return "\n".join(["from transformers import pipeline", "", *lines, 'print(classifier("a river."))'])


def _evaluation(run: Run, model: str) -> str:
    """The commands that use the model; empty for a model that they do not take."""
    model = shlex.quote(model)
    return {
        "score model": f"rs-rlhf eval --model {model} --preferences pairs.jsonl\n"
        f"rs-rlhf score --model {model} --input captions.jsonl --output scores",
        "policy": f"rs-rlhf eval --model {model} --task rsvqa-lr --out out/eval",
        "dual encoder": f"rs-rlhf eval --model {model} --model-type clip --task aid --out out/eval",
    }.get(run.about["makes"], "")
