"""`rs-rlhf eval run`, or `rs-rlhf eval --model M --task T`: a model evaluated on declared benchmarks."""

from __future__ import annotations

from ..evaluation.options import EvalOptions


def main(options: EvalOptions) -> None:
    """Evaluates the model and prints each task's table; `--list` prints the benchmarks."""
    if options.list:
        from ..evaluation.benchmark import benchmark_list

        print(benchmark_list())
        return
    from ..evaluation.evaluate import evaluate
    from ..evaluation.results import results_table
    from ..runs.tables import print_markdown

    for name, results in evaluate(options):
        print_markdown(results_table(results, [name]))
