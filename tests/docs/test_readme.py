"""Every command and snippet of the README, run in order in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def run(command, folder):
    env = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "WANDB_MODE": "disabled",
    }
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An empty folder in which a very short demo was run: its pictures and model are what the first snippet scores."""
    folder = tmp_path_factory.mktemp("readme")
    steps = ["--captioner_steps", "2", "--reward_steps", "2", "--grpo_steps", "2", "--batch_size", "8"]
    scenes = ["--train_scenes", "36", "--validation_scenes", "24"]
    output = run([sys.executable, "-m", "rs_rlhf", "demo", *steps, *scenes], folder)
    assert "| all |" in output and "image-shuffle gap" in output and "| GRPO step |" in output
    assert "| best of n, base policy: score, n = 8 |" in output
    return folder


def test_the_demo_leaves_its_picture_and_refuses_other_folders(folder, tmp_path):
    from PIL import Image

    assert Image.open(folder / "demo_output" / "demo.png").size[0] > 800
    (tmp_path / "mine.txt").write_text("keep me")
    done = subprocess.run(
        [sys.executable, "-m", "rs_rlhf", "demo", "--output_dir", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 1 and "is not empty and was not made by the demo" in done.stderr
    assert (tmp_path / "mine.txt").exists()


def test_the_readme_has_the_blocks_that_are_run():
    assert [language for language, _ in BLOCKS] == [
        "",
        "python",
        "bash",
        "bash",
        "python",
        "bash",
        "python",
        "bash",
        "bash",
        "bash",
        "bash",
        "python",
        "bash",
    ]


def test_make_targets_exist():
    targets = re.findall(r"^make (\w+)", BLOCKS[0][1], re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert targets == ["demo", "test"] and all(f"\n{target}:" in makefile for target in targets)


EXPECTED = {
    1: "[[",
    2: "learning_curve.png",
    3: "| all | 20 |",
    4: "train_runtime",
    5: "report.html",
    6: "rewards/score_reward",
    7: "dpo.jsonl",
    8: '"scores":',
    9: "eval_scenes_top1",
    10: "| best score |",
    11: "of 16 samples were saved",
    12: "results_",
}


@pytest.mark.parametrize("number", range(1, len(BLOCKS)))
def test_block_runs(number, folder):
    language, text = BLOCKS[number]
    output = run([sys.executable, "-c", text] if language == "python" else ["bash", "-e", "-c", text], folder)
    assert EXPECTED[number] in output


def test_linked_files_exist():
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / "README.md").read_text())
    assert links and all((ROOT / link).is_file() for link in links)
