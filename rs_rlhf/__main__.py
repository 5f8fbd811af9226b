"""`python -m rs_rlhf` is `rs-rlhf`; `accelerate launch -m rs_rlhf` starts its training commands."""

import sys


def start() -> int:
    """Runs `rs-rlhf`; Ctrl-C before a command has begun is a sentence too."""
    try:
        from .cli.main import main

        return main()
    except KeyboardInterrupt:
        print("\nrs-rlhf: interrupted; nothing was begun.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(start())
