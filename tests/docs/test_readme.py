"""Every command and snippet of the README, run in order in an empty folder.

A comment before a block says what it prints: `<!-- prints: … -->`.
"""

import os
import re
import subprocess

import pytest
from helpers import ROOT, warm

README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^(?:<!-- prints: (.+?) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(match.start(), *match.groups()) for match in BLOCK.finditer(README)]
RUN = [block for block in BLOCKS if block[2] in ("bash", "python")]


def section(start):
    """Heading and line of a block, as a test's name."""
    heading = re.findall(r"^#+ (.+)$", README[:start], re.MULTILINE)[-1]
    return f"{heading}, line {README.count(chr(10), 0, start) + 1}"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The environment of a user, whose `rs-rlhf` and `python` are children of the warm process, launched ones too."""
    env = warm.launching(tmp_path_factory.mktemp("programs"))
    programs = os.path.dirname(env["PYTHON_EXEC"])
    return {**env, "PATH": f"{programs}{os.pathsep}{env['PATH']}", "WANDB_MODE": "disabled"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, environment):
    """An empty folder in which a very short demo was run: its pictures and model are what the first snippet scores."""
    folder = tmp_path_factory.mktemp("readme")
    steps = ["--captioner_steps", "2", "--reward_steps", "2", "--grpo_steps", "2", "--batch_size", "8"]
    scenes = ["--train_scenes", "36", "--validation_scenes", "24"]
    output = warm.run(["demo", *steps, *scenes], cwd=folder, env=environment, timeout=600, check=0).stdout
    assert "| all |" in output and "image-shuffle gap" in output and "| GRPO step |" in output
    assert "| best of n, base policy: score, n = 8 |" in output
    return folder


def test_the_demo_leaves_its_picture_and_refuses_other_folders(folder, tmp_path):
    from PIL import Image

    assert Image.open(folder / "demo_output" / "demo.png").size[0] > 800
    (tmp_path / "mine.txt").write_text("keep me")
    done = warm.run(["demo", "--output_dir", str(tmp_path)], cwd=ROOT, check=1)
    assert "is not empty and was not made by the demo" in done.stderr
    assert (tmp_path / "mine.txt").exists()


def test_every_block_that_is_run_says_what_it_prints():
    assert RUN and [section(start) for start, prints, *_ in RUN if not prints] == []


def test_make_targets_exist():
    (text,) = [text for _, _, language, text in BLOCKS if not language]
    targets = re.findall(r"^make (\w+)", text, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert targets == ["demo", "test"] and all(f"\n{target}:" in makefile for target in targets)


@pytest.mark.parametrize(("start", "prints", "language", "text"), RUN, ids=[section(block[0]) for block in RUN])
def test_block_runs(start, prints, language, text, folder, environment):
    if language == "python":
        done = warm.run(["-c", text], cwd=folder, env=environment, timeout=600, check=0)
    else:
        done = subprocess.run(
            ["bash", "-e", "-c", text], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    assert prints in done.stdout


def test_linked_files_exist():
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", README)
    assert links and all((ROOT / link).is_file() for link in links)
