"""The card (README.md) of what `rs-rlhf curate` keeps, by the card classes of `huggingface_hub`.

All facts are those of `curation.json`; `datasets` reads in the card's head which files hold rows. Folders are private:
of a path the card has the name. Left out: the licence, which the user states.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from ..data.image_text_dataset import ImageTexts
from ..runs.cards import CITATION, hidden
from ..runs.tables import markdown_table

TEMPLATE = Path(__file__).with_name("dataset_card.md")
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


def dataset_card(name: str, about: Mapping[str, Any], inputs: ImageTexts) -> str:
    """Returns the card of kept rows.

    Args:
        name (`str`): Of the folder.
        about (mapping): What `curation.json` says.
        inputs ([`ImageTexts`]): The data that they are of.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    written, source, saved = about["written"], Path(inputs.name.rstrip("/")).name, inputs.dataset is not None
    files = (
        {"kept_ids": ["kept_ids.parquet"]} if saved else {"rows": written["files"], "kept_ids": ["kept_ids.parquet"]}
    )
    configs: list[dict[str, Any]] = [{"config_name": key, "data_files": paths} for key, paths in files.items()]
    configs[0]["default"] = True
    head = DatasetCardData(
        pretty_name=f"{source}, the best part by score",
        configs=configs,
        size_categories=[next((label for most, label in SIZES if written["kept_rows"] < most), "n>10M")],
        tags=["rs-rlhf", "remote-sensing", "image-text", "curated"],
    )
    units = [replace(unit, rows=1) for unit in inputs.whole_units()[:1]]
    firsts = [row for unit in units for row in islice(inputs.stored_rows(unit), 1)]
    columns = [f"`{key}`" for row in firsts if isinstance(row, Mapping) for key in row]
    load = f'load_from_disk("{name}")' if saved else f'load_dataset("{name}", "rows", split="train")'
    card = DatasetCard.from_template(
        head,
        template_path=str(TEMPLATE),
        title=name,
        source=source,
        saved=saved,
        rows=f"{written['kept_rows']:,} of {written['rows']:,}",
        code=f"from datasets import {load.partition('(')[0]}\n\nrows = {load}\nprint(rows[0])",
        contents_table=markdown_table(["what", "value"], _contents(about), "ll"),
        columns=", ".join(columns),
        image_root=Path(about["image_root"]).name,
        choice_table=markdown_table(["what", "value"], _choice(about, source), "ll"),
        citation=CITATION,
    )
    return str(card)


def _contents(about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The format, and how many rows, texts and samples were kept and dropped, as rows of a table."""
    written = about["written"]
    yield "format", f"{about['format']}, {len(written['files'])} file(s)"
    yield "rows", f"{written['kept_rows']:,} of {written['rows']:,}"
    if written["shortened_rows"]:
        yield "of these, rows that lost some of their texts", f"{written['shortened_rows']:,}"
    for key in ("texts", "samples"):
        for fate, count in about["figures"].get(key, {}).items():
            if isinstance(count, int) and count:
                yield f"{key}: {fate}", f"{count:,}"


def _choice(about: Mapping[str, Any], source: str) -> Iterator[tuple[str, str]]:
    """The source, the score model and the cut, as rows of a table."""
    stamp = hashlib.sha256(json.dumps(about["stamp"]).encode()).hexdigest()[:16]
    split = f", split {about['split']}" if about.get("split") else ""
    yield "source", f"{source}{split} (names and sizes of its files: {stamp})"
    if (scorer := about.get("scorer")) is not None:
        content = scorer.get("models_hash") or scorer.get("model_stamp")
        model = f" {hidden(scorer['model'])}" if scorer.get("model") else ""
        yield "scored by", f"{scorer['kind']}{model}" + (f" (files {content})" if content else "")
    if "ids" in about:
        yield "list of rows", hidden(about["ids"])
    for key, value in about["settings"].items():
        if value not in (None, False, "none", []):
            yield key, ", ".join(map(hidden, value)) if isinstance(value, list) else hidden(value)
