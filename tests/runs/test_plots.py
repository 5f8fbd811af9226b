"""Pictures of what was measured: they are written, have a size, and follow the numbers."""

import json

import numpy as np
import pytest
from helpers import picture
from PIL import Image

from rs_rlhf.cli import main as cli
from rs_rlhf.errors import DataError
from rs_rlhf.runs.plots import plot_grpo, plot_preferences, plot_run, smoothed


def write_state(folder, last_loss=0.3, step=20):
    """A `trainer_state.json` as the trainer writes it: training logs, and evaluations beside them."""
    history = [
        {"step": 10, "loss": 0.7, "score/accuracy": 0.5},
        {"step": 10, "eval_loss": 0.69, "eval_score/accuracy": 0.55, "eval_score/accuracy_kind/wrong_class": 0.6},
        {"step": 20, "loss": last_loss, "score/accuracy": 0.8},
        {"step": 20, "eval_loss": 0.5, "eval_score/accuracy": 0.7, "eval_score/accuracy_kind/wrong_class": 0.9},
        {"step": 20, "train_runtime": 3.0},
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": history}))
    return folder


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width > 500 and image.height > 300
        shown = np.asarray(image.convert("RGB"))
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 10, "an empty picture"
    return shown


def test_the_learning_curve_follows_the_numbers(tmp_path, capsys):
    run = write_state(tmp_path / "run")
    assert cli.main(["plot", str(run)]) == 0
    assert f"Learning curve -> {run / 'learning_curve.png'}" in capsys.readouterr().out
    first = pixels(run / "learning_curve.png")
    plot_run(run, tmp_path / "again.png")
    assert np.array_equal(pixels(tmp_path / "again.png"), first)
    write_state(run, last_loss=0.1)
    assert cli.main(["plot", str(run), "--output", str(tmp_path / "deep" / "other.png")]) == 0
    assert not np.array_equal(pixels(tmp_path / "deep" / "other.png"), first)


def test_several_runs_share_a_picture_in_every_format(tmp_path, capsys):
    runs = [write_state(tmp_path / name / "run", last_loss=loss) for name, loss in (("a", 0.3), ("b", 0.1))]
    output = tmp_path / "both.png"
    assert cli.main(["plot", *map(str, runs), "--output", str(output), "--format", "svg,pdf"]) == 0
    assert f"-> {tmp_path / 'both.svg'}, {tmp_path / 'both.pdf'}" in capsys.readouterr().out and not output.exists()
    drawn = (tmp_path / "both.svg").read_text()
    for name in ("a/run, training", "a/run, evaluation", "b/run, training", "b/run, evaluation"):
        assert drawn.count(f">{name}</text>") == 2  # of loss and of accuracy
    assert ">100%</text>" in drawn and "wrong class" not in drawn
    for wrong, key in ((["--smoothing", "1"], "smoothing"), (["--format", "gif"], "format")):
        assert cli.main(["plot", str(runs[0]), *wrong]) == 1
        assert f"--{key}" in capsys.readouterr().err
    assert cli.main(["plot", str(runs[0]), str(runs[0])]) == 1


def test_smoothing_is_a_mean_of_what_came_before():
    points = [(1, 1.0), (2, 0.0), (3, 1.0)]
    assert smoothed(points, 0) == points
    assert smoothed(points, 0.5) == [(1, 1.0), (2, pytest.approx(1 / 3)), (3, pytest.approx(5 / 7))]
    assert smoothed([(i, 2.0) for i in range(9)], 0.9)[-1] == (8, pytest.approx(2.0))


def test_values_that_are_not_finite_and_single_points_are_no_obstacle(tmp_path):
    log = [{"step": 3, "loss": float("nan"), "score/accuracy": 0.5}, {"epoch": 1.0}, {"step": 3, "loss": "?"}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 3, "log_history": log}))
    (drawn,) = plot_run(tmp_path, tmp_path / "x.svg")
    assert ">3</text>" in drawn.read_text() and ">Loss</text>" in drawn.read_text()


def test_the_newest_checkpoint_is_drawn(tmp_path):
    write_state(tmp_path / "run" / "checkpoint-9", last_loss=0.6, step=9)
    write_state(tmp_path / "run" / "checkpoint-10", last_loss=0.1, step=10)
    newest = write_state(tmp_path / "alone" / "run", last_loss=0.1, step=10)
    plot_run(tmp_path / "run", tmp_path / "run.png")
    plot_run(newest, tmp_path / "newest.png")
    assert np.array_equal(pixels(tmp_path / "run.png"), pixels(tmp_path / "newest.png"))
    finished = write_state(tmp_path / "run", last_loss=0.2, step=12)  # the run's own state, saved at its end
    plot_run(finished, tmp_path / "finished.png")
    assert not np.array_equal(pixels(tmp_path / "finished.png"), pixels(tmp_path / "newest.png"))


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    with pytest.raises(DataError, match="no trainer_state.json; give the output_dir"):
        plot_run(tmp_path, tmp_path / "x.png")
    assert cli.main(["plot", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"rs-rlhf plot: {tmp_path}: no trainer_state.json")
    assert cli.main(["plot", str(tmp_path / "nowhere")]) == 1
    assert not list(tmp_path.iterdir())


def report(accuracy):
    part = {"n": 40, "accuracy": accuracy, "interval": [accuracy - 0.1, accuracy + 0.1]}
    return {**part, "by_kind": {"wrong_class": part, "truncated": part, "": part}}


def test_preferences_with_and_without_an_example(tmp_path):
    reports = {"before": report(0.5), "after": report(0.8)}
    plot_preferences(reports, tmp_path / "plain.png")
    texts = [("many planes are parked beside a long runway of the airport .", 1.5), ("a river .", -0.5)]
    plot_preferences(reports, tmp_path / "example.png", (picture(0), texts))
    plain, example = pixels(tmp_path / "plain.png"), pixels(tmp_path / "example.png")
    assert example.shape[1] > 1.5 * plain.shape[1]
    plot_preferences({**reports, "after": report(0.7)}, tmp_path / "other.png")
    assert not np.array_equal(pixels(tmp_path / "other.png"), plain)


def test_the_grpo_curve_follows_the_numbers(tmp_path):
    def drawn(name, accuracy):
        log = [{"step": 0, "eval_audit/greedy_accuracy": 0.3, "eval_score/greedy_mean": 4.0}]
        log += [{"step": step, "reward": 4 + step / 10, "audit/accuracy": 0.2} for step in (5, 10)]
        log += [{"step": 10, "eval_audit/greedy_accuracy": accuracy, "eval_score/greedy_mean": 5.0}]
        run = tmp_path / name
        run.mkdir()
        (run / "trainer_state.json").write_text(json.dumps({"global_step": 10, "log_history": log}))
        plot_grpo(run, run / "grpo.png")
        return pixels(run / "grpo.png")

    up, down = drawn("up", 0.4), drawn("down", 0.1)
    assert up.shape == down.shape and (up != down).any()
