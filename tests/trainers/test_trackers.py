"""Trackers on this machine: a training logs to trackio, where that is installed (`pip install trackio`)."""

import os
import sqlite3
import subprocess
import sys

import pytest
from helpers import ROOT, picture


def test_a_training_logs_to_trackio(tiny_vlm, tmp_path):
    pytest.importorskip("trackio")
    for number in range(4):
        picture(number).save(tmp_path / f"{number}.png")
    rows = "".join(
        f'{{"image": "{number}.png", "prompt": "What?", "chosen": "a road .", "rejected": "a cat ."}}\n'
        for number in range(4)
    )
    (tmp_path / "pairs.jsonl").write_text(rows)
    flags = "--use_cpu --bf16 false --max_steps 2 --logging_steps 1 --save_strategy no --report_to trackio"
    data = ["--dataset_name", "pairs.jsonl", "--model_name_or_path", str(tiny_vlm), "--output_dir", "out"]
    env = {**os.environ, "TRACKIO_DIR": str(tmp_path / "tracked"), "PYTHONPATH": str(ROOT)}  # read at import
    command = [sys.executable, "-m", "rs_rlhf", "reward", *data, *flags.split()]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "tracked").glob("*.db")
    with sqlite3.connect(file) as database:
        logged = "".join(str(row) for row in database.execute("select metrics from metrics"))
    assert "score/accuracy" in logged
