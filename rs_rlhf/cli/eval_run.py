"""`rs-rlhf eval run`, or `rs-rlhf eval --model M --task T`: a model evaluated on declared benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

from ..evaluation.options import EvalOptions
from ..options import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates the model and prints each task's table; `--list` prints the benchmarks."""
    options = parse(EvalOptions, argv, "rs-rlhf eval run")
    if options.list:
        from ..evaluation.benchmark import benchmark_list

        print(benchmark_list())
        return 0

    from ..evaluation.evaluate import evaluate
    from ..evaluation.results import ALIGN, HEADER, table_rows
    from ..runs.tables import print_table

    for name, results in evaluate(options):
        print_table(HEADER, table_rows(results, [name]), ALIGN)
    return 0
