"""`python -m rs_rlhf` is `rs-rlhf`; `accelerate launch -m rs_rlhf` starts its training commands."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
