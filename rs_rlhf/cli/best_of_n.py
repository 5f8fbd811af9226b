"""`rs-rlhf best-of-n`: N answers sampled for every question, and ways of choosing one of them compared."""

from __future__ import annotations

from ..evaluation.options import BestOfNOptions


def main(options: BestOfNOptions) -> None:
    """Writes `best_of_n.json`, `.md` and `.png`, and prints the table."""
    from ..evaluation.best_of_n import markdown, run_best_of_n, write
    from ..runs.tables import print_markdown

    results = run_best_of_n(options)
    write(results, options.out)
    print_markdown(markdown(results))
    print(f"\nBest of n -> {options.out / 'best_of_n.json'}, .md, .png")
