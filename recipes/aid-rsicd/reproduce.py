"""The experiments on AID and RSICD, from raw data to tables and pictures.

    python recipes/aid-rsicd/reproduce.py --data $RS_RLHF_DATA --test $RS_RLHF_DATA/aid_rsicd:validation --jobs 2

The same command resumes. Stages, their commands and their core seconds are noted in `OUT/stages`. Repetitions are
nested: score models, each from a start, pairs and lists of its own and with a policy and a CLIP of its own beside it,
and final trainings with each. What needs no score model is trained once for each policy. `--test` may be any
captioned and labelled images of the same classes. `--choose` evaluates the same models on images that are reported on
nowhere, so that one chooses learning rates and the like there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from plan import Plan, all_stages
from results import write_results
from stages import Stage, run_stages, set_up


def main() -> None:
    """Runs what is not done yet, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds aid_rsicd")
    parser.add_argument(
        "--test", metavar="PATH[:SPLIT]", help="evaluation images (default: DATA/aid_rsicd:validation)"
    )
    parser.add_argument("--out", type=Path, default=Path("out/aid-rsicd"))
    parser.add_argument("--jobs", type=int, default=2, help="stages at a time, each on its own core")
    parser.add_argument("--score_models", type=int, default=3)
    parser.add_argument("--trainings", type=int, default=2, help="final trainings with each score model")
    parser.add_argument("--only", nargs="+", help="stages whose names begin so, and what they need")
    parser.add_argument("--choose", action="store_true", help="evaluate on the images for choosing, into OUT/choose")
    parser.add_argument("--limit", type=int, help="images of each half, two steps a training: to try the way")
    args = parser.parse_args()
    for name in ("score_models", "trainings"):
        if getattr(args, name) < 2:
            parser.error(f"--{name} is {getattr(args, name)}; an interval over repetitions needs at least 2.")
    data = args.data / "aid_rsicd"
    test = args.test or f"{data}:validation"
    plan = Plan(data, test, args.out, args.score_models, args.trainings, args.limit, args.choose)
    set_up()
    run_stages(needed(all_stages(plan), args.only), args.out, args.jobs)
    write_results(plan, args.out / plan.evaluated("results"))


def needed(stages: list[Stage], only: list[str] | None) -> list[Stage]:
    """Returns the stages whose names begin as asked, with all that they need."""
    if not only:
        return stages
    by_name = {stage.name: stage for stage in stages}
    wanted = [stage.name for stage in stages if stage.name.startswith(tuple(only))]
    kept: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name not in kept:
            kept.add(name)
            wanted += by_name[name].after
    return [stage for stage in stages if stage.name in kept]


if __name__ == "__main__":
    main()
