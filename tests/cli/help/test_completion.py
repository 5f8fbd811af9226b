"""Shell completion: the script is valid, and completes commands, flags, names of declarations and files."""

import subprocess

import pytest

from rs_rlhf.cli.main import main

pytest.importorskip("shtab")
ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_shtab_rs_rlhf rs-rlhf "${COMP_WORDS[$COMP_CWORD]}" "${COMP_WORDS[$COMP_CWORD-1]}"
echo "${COMPREPLY[*]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    from contextlib import redirect_stdout

    path = tmp_path_factory.mktemp("completion") / "script.sh"
    with path.open("w") as file, redirect_stdout(file):
        assert main(["completion", "bash"]) == 0
    return path


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["data", "pa"], {"pairs"}),
        (["reward", "--learning_r"], {"--learning_rate"}),
        (["grpo", "--config", "aid-rsicd-tiny/g"], {"aid-rsicd-tiny/grpo"}),
        (["sft", "--lr_scheduler_type", "cosine_with_r"], {"cosine_with_restarts"}),
        (["score", "--scorer", "cl"], {"clip"}),
        (["eval", "--preferences"], set()),
    ],
)
def test_bash_completes(script, words, completed):
    done = subprocess.run(["bash", "-c", ASK, "x", str(script), "rs-rlhf", *words], capture_output=True, text=True)
    assert set(done.stdout.split()) == completed and not done.stderr
