"""A policy's own answers as its training data, chosen without a score model: the controls of RAFT.

    python recipes/aid-rsicd/self_training.py POLICY IMAGES OUT --choices FILE --choose majority|random --seed 0

Each image gets one of N well-formed answers: the most frequent one (of equals the first), or one drawn at random. Rows
are those of `rs-rlhf data best`, for `rs-rlhf sft`.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from pathlib import Path

from rs_rlhf.data.questions import placed_images, read_questions
from rs_rlhf.models.policies.load import load_policy
from rs_rlhf.models.policies.sampling import SamplingOptions
from rs_rlhf.preferences.best import normal_form
from rs_rlhf.preferences.candidates import listed_choices


def main() -> None:
    """Samples, chooses and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy")
    parser.add_argument("images")
    parser.add_argument("out", type=Path)
    parser.add_argument("--choices", required=True)
    parser.add_argument("--choose", choices=("majority", "random"), required=True)
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--max_new_tokens", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows, choices, draw = read_questions(args.images), listed_choices(args.choices), random.Random(args.seed)
    sampling = SamplingOptions(n=args.n, max_new_tokens=args.max_new_tokens, seed=args.seed)
    answers: dict[int, list[str]] = {}
    for batch, texts in load_policy(args.policy, seed=args.seed).sample_batches([row.group for row in rows], sampling):
        answers |= dict(zip(batch, texts, strict=True))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    images, _ = placed_images(rows, args.out.parent, args.out.parent / "images", True)
    with args.out.open("w", encoding="utf-8") as file:
        for i, row in enumerate(rows):
            forms = [form for text in answers[i] if (form := normal_form(text, choices=choices))]
            if forms:
                form = draw.choice(forms) if args.choose == "random" else Counter(forms).most_common(1)[0][0]
                file.write(json.dumps({"prompt": row.prompt, "completion": form, "image": images[i][0]}) + "\n")


if __name__ == "__main__":
    main()
