"""Cuts of the damaged pool that `rs-rlhf curate` does not make, and the class labels of a cut.

    python recipes/aid-rsicd/cut.py oracle POOL OUT [--keep 0.3] [--seed 0]
    python recipes/aid-rsicd/cut.py mean-rank POOL OUT --scores SCORES SCORES
    python recipes/aid-rsicd/cut.py labels POOL OUT [--kept FOLDER]

`oracle`: undamaged texts, drawn at random. `mean-rank`: texts with the best mean of their ranks by two scores. Both
keep the share of each source and write what `rs-rlhf curate --ids` reads. `labels`: the rows that ask for a class.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rs_rlhf.curation.shards import read_scores


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Reads JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def kept_rows(args: argparse.Namespace) -> list[int]:
    """Chooses rows of each source."""
    rows, kept = rows_of(args.pool), []
    draw = random.Random(args.seed)
    ranks = [
        np.argsort(np.argsort(np.asarray(read_scores(folder, ["score"])["score"].to_pylist(), float)))
        for folder in args.scores
    ]
    for source in ("captions", "labels"):
        own = [i for i, row in enumerate(rows) if row["source"] == source]
        count = round(args.keep * len(own))
        if args.how == "oracle":
            kept += draw.sample([i for i in own if rows[i]["clean"]], count)
        else:
            kept += sorted(own, key=lambda i: -sum(int(rank[i]) for rank in ranks))[:count]
    return sorted(kept)


def main() -> None:
    """Writes a cut."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("how", choices=("oracle", "mean-rank", "labels"))
    parser.add_argument("pool", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scores", nargs="+", default=[])
    parser.add_argument("--kept", type=Path)
    parser.add_argument("--keep", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.how == "labels":
        rows = rows_of(args.kept / args.pool.name if args.kept else args.pool)
        lines = [json.dumps(row) + "\n" for row in rows if row["source"] == "labels"]
        args.out.write_text("".join(lines), encoding="utf-8")
        return
    ids = kept_rows(args)
    table = {"row_id": [f"{args.pool.name}:{i}" for i in ids], "text_index": pa.array([0] * len(ids), pa.int32())}
    pq.write_table(pa.table(table), args.out)


if __name__ == "__main__":
    main()
