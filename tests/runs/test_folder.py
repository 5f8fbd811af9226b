"""Whether a folder may be trained into, and what `--overwrite_output_dir` removes from it: folders made by hand."""

import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from helpers import tree
from safetensors.numpy import save_file

from rs_rlhf.errors import OptionError
from rs_rlhf.runs.folder import check_output_dir, remove_run, traces_of
from rs_rlhf.runs.record import KEY, Run, write_run


def weights(folder, name="model.safetensors"):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"w": np.zeros(2, np.float32)}, folder / name)


def state(folder, step, run=None):
    folder.mkdir(parents=True, exist_ok=True)
    stamp = {"stateful_callbacks": {KEY: vars(run)}} if run else {}
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": [], **stamp}))


def table(path, column="step"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({column: [1]}), path)


def used(folder, run=None):
    """A folder as a finished training leaves it."""
    for place in (folder, folder / "checkpoint-2", folder / "checkpoint-4"):
        weights(place)
        state(place, 2 if place.name == "checkpoint-2" else 4, run)
        for name in ("config.json", "tokenizer.json", "training_args.bin"):
            (place / name).write_text("{}")
    (folder / "checkpoint-4" / "optimizer.pt").write_text("x")
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n")
    table(folder / "rollouts" / "rollouts_000002.parquet")
    if run:
        write_run(run, folder)
    return folder


STRANGERS = (
    "notes.txt",
    "data/train.jsonl",
    "checkpoint-4/notes.txt",
    "checkpoints.txt",
    "checkpoint-best/model.safetensors",
    "rollouts/mine.parquet",
    "samples/photos_0001.parquet",
    "runs/events.out",
    "eval/base/results.json",
    "embeddings.safetensors",
    "slurm-12.out",
)


def strangers(folder):
    for name in STRANGERS:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name} of somebody")
    table(folder / "samples" / "photos_0001.parquet", column="photo")


@pytest.mark.parametrize("name", ["", *STRANGERS])
def test_an_unused_folder_may_be_used_whatever_else_is_in_it(name, tmp_path):
    if name:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    check_output_dir(tmp_path, None, False, [])
    check_output_dir(tmp_path / "new", "true", False, [])
    write_run(Run.begun({}), tmp_path)  # of a run that failed before its first step
    (tmp_path / "checkpoint-3").mkdir()
    check_output_dir(tmp_path, None, False, [])


@pytest.mark.parametrize(
    "leave",
    [
        lambda folder: weights(folder),
        lambda folder: weights(folder, "adapter_model.safetensors"),
        lambda folder: weights(folder, "model-00001-of-00002.safetensors"),
        lambda folder: state(folder, 3),
        lambda folder: state(folder / "checkpoint-3", 3),
        lambda folder: weights(folder / "checkpoint-3"),  # killed while it saved
        lambda folder: table(folder / "worst_pairs" / "eval_000002.parquet"),
        lambda folder: table(folder / "completions" / "completions_00002.parquet"),
    ],
)
def test_what_a_run_has_left_is_refused(leave, tmp_path):
    leave(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(OptionError) as error:
        check_output_dir(tmp_path, "false", False, [])
    assert (error.value.key, error.value.where) == ("output_dir", str(tmp_path))
    assert next(traces_of(tmp_path)) in error.value.detail and tree(tmp_path) == before


def test_the_ways_out_are_named(tmp_path):
    with pytest.raises(OptionError) as error:
        check_output_dir(used(tmp_path), None, False, [])
    assert error.value.detail == (
        "holds files of another run: checkpoint-4, checkpoint-2, model.safetensors, …; choose another --output_dir, "
        "resume with --resume_from_checkpoint true, or pass --overwrite_output_dir to start anew."
    )


def test_only_the_run_that_is_there_is_resumed(tmp_path):
    run = Run.begun({})
    out, elsewhere = used(tmp_path / "out", run), used(tmp_path / "other", Run.begun({}))
    copy = tmp_path / "copy" / "checkpoint-4"
    state(copy, 4, run)
    for resume in (True, "true", str(out / "checkpoint-2"), f"{out}/../out/checkpoint-2", str(copy)):
        check_output_dir(out, resume, False, [])
    with pytest.raises(OptionError, match="holds files of another run"):
        check_output_dir(out, str(elsewhere / "checkpoint-4"), False, [])
    check_output_dir(tmp_path / "fresh", str(elsewhere / "checkpoint-4"), False, [])
    with pytest.raises(OptionError) as error:
        check_output_dir(out, True, True, [])
    assert error.value.key == "overwrite_output_dir"


def test_resuming_without_a_whole_checkpoint_starts_anew_but_not_over_a_model(tmp_path):
    weights(tmp_path / "checkpoint-2")  # killed while it saved
    table(tmp_path / "rollouts" / "rollouts_000001.parquet")
    check_output_dir(tmp_path, "true", False, [])
    weights(tmp_path)
    with pytest.raises(OptionError) as error:
        check_output_dir(tmp_path, "true", False, [])
    assert error.value.key == "resume_from_checkpoint" and "no checkpoint to resume from" in error.value.detail


def test_overwriting_removes_the_runs_own_files_alone(tmp_path):
    used(tmp_path, Run.begun({}))
    strangers(tmp_path)
    expected = {name: content for name, content in tree(tmp_path).items() if name in STRANGERS}
    check_output_dir(tmp_path, None, True, [])
    remove_run(tmp_path)
    assert tree(tmp_path) == expected and len(expected) == len(STRANGERS)
    assert not (tmp_path / "checkpoint-2").exists(), "an empty folder"
    remove_run(tmp_path)
    remove_run(tmp_path / "nowhere")
    assert tree(tmp_path) == expected


def test_overwriting_follows_no_link(tmp_path):
    outside, out = tmp_path / "outside", used(tmp_path / "out", Run.begun({}))
    used(outside)
    kept = tree(outside)
    (out / "checkpoint-9").symlink_to(outside)
    (out / "samples").symlink_to(outside / "rollouts")
    (out / "checkpoint-4" / "global_step4").symlink_to(outside)
    (out / "model.safetensors").unlink()
    (out / "model.safetensors").symlink_to(outside / "model.safetensors")
    through = tmp_path / "link"
    through.symlink_to(out)
    check_output_dir(through, None, True, [])
    remove_run(through)
    assert tree(outside) == kept and through.is_symlink()
    left = {path.name for path in out.iterdir()}
    assert left == {"samples", "rollouts"}, "a link to a folder of tables is the user's own"


def test_a_model_that_no_training_has_written_there_is_never_removed(tmp_path):
    weights(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    before = tree(tmp_path)
    with pytest.raises(OptionError, match="which no training has written there"):
        check_output_dir(tmp_path, None, True, [])
    remove_run(tmp_path)
    assert tree(tmp_path) == before


def test_a_model_card_of_the_users_own_is_kept(tmp_path):
    used(tmp_path)
    (tmp_path / "README.md").write_text("# What I tried\n")
    remove_run(tmp_path)
    assert {*tree(tmp_path)} == {"README.md"}


@pytest.mark.parametrize("read", ["", "checkpoint-4", "checkpoint-2/model.safetensors", "rollouts"])
def test_what_is_read_is_not_removed(read, tmp_path):
    used(tmp_path)
    with pytest.raises(OptionError) as error:
        check_output_dir(tmp_path, None, True, [str(tmp_path / read)])
    assert error.value.key == "overwrite_output_dir" and str(tmp_path / read) in error.value.detail


def test_data_beside_the_run_may_be_read(tmp_path):
    used(tmp_path / "out")
    strangers(tmp_path / "out")
    check_output_dir(tmp_path / "out", None, True, [str(tmp_path / "out" / "data"), str(tmp_path), str(Path.cwd())])
