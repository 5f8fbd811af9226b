"""Accuracies of closed answers from sample records, overall and by question type, with Wilson's intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from ..errors import OptionError
from .intervals import proportion


def accuracy_figures(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of right and wrong answers, overall and by question type.

    Args:
        records (sequence of `dict`): `strict` (`bool`), `upstream_compat` (`bool` or `None`), `answer` (`None`
            where it is unparseable), `types` (`list[str]`); a record of several types counts in each.

    Returns:
        `dict`: `n`, `accuracy` (share of strictly right answers; RSVQA's OA), `interval` (Wilson, 95%),
        `upstream_compat` (share; `None` where the records have no such verdict), `parse_failures` (share), and, where
        records have types, `average_accuracy` (the mean of the types' accuracies, unweighted; RSVQA's AA, Lobry et al.
        2020) and `types` (`{type: the same figures}`).

    Raises:
        OptionError: No records.
    """
    figures = _accuracy(records)
    types: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        for name in dict.fromkeys(record.get("types") or []):
            types[name].append(record)
    if types:
        figures["types"] = {name: _accuracy(part) for name, part in sorted(types.items())}
        figures["average_accuracy"] = fmean([part["accuracy"] for part in figures["types"].values()])
    return figures


def _accuracy(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not records:
        raise OptionError("no sample records, expected at least one; there is nothing to report.")
    n, lenient = len(records), [record.get("upstream_compat") for record in records]
    return {
        **proportion(sum(bool(record["strict"]) for record in records), n),
        "upstream_compat": None if None in lenient else sum(map(bool, lenient)) / n,
        "parse_failures": sum(record["answer"] is None for record in records) / n,
    }
