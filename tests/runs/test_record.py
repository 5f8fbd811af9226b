"""The record of a run: which files are of it, after resuming, branching and starting anew; fast cases by hand."""

import json

import pytest

from rs_rlhf.errors import DataError
from rs_rlhf.runs.record import FILE, HIDDEN, KEY, Run, command_line, read_run, run_of, write_run


def part(run):
    return run.stamp["part"]


def test_a_resumed_run_holds_what_its_earlier_parts_wrote_up_to_where_it_was_resumed():
    first = Run.begun({})
    second = Run.begun({}, first, 4)
    third = Run.begun({}, second, 6)
    assert {run.id for run in (first, second, third)} == {first.id} and len({*map(part, (first, second, third))}) == 3
    held = {(part(first), 4): True, (part(first), 5): False, (part(second), 6): True, (part(second), 7): False}
    for (name, step), expected in held.items():
        assert third.holds(name, step) == expected, (name, step)
    assert third.holds(part(third), 100) and not third.holds("another", 2)


def test_a_branch_that_was_given_up_is_not_of_the_run():
    first = Run.begun({})
    given_up = Run.begun({}, first, 4)
    branch = Run.begun({}, first, 2)
    assert branch.id == given_up.id and branch.holds(part(first), 2)
    assert not branch.holds(part(first), 4) and not branch.holds(part(given_up), 5)
    assert not Run.begun({}).holds(part(first), 0), "another run"


def test_files_of_before_the_record_are_of_a_run_that_was_resumed_from_them():
    resumed = Run.begun({}, None, 4)
    assert resumed.holds(None, 4) and not resumed.holds(None, 6)
    later = Run.begun({}, resumed, 6)
    assert later.holds(None, 4) and not later.holds(None, 6) and later.holds(part(resumed), 6)
    assert not Run.begun({}).holds(None, 0), "a new run in a used folder"


def test_it_is_read_back_from_the_folder_and_from_a_state(tmp_path):
    assert read_run(tmp_path) is None
    run = Run.begun({"seed": 3, "lora": {"r": 8}}, Run.begun({}), 2, {"command": ["rs-rlhf", "reward"]})
    write_run(run, tmp_path)
    assert read_run(tmp_path) == run
    state = json.loads(json.dumps({"global_step": 3, "stateful_callbacks": {KEY: vars(run)}}, sort_keys=True))
    assert run_of(state) == run and run.holds_state(state)
    assert run_of({}) is run_of({"stateful_callbacks": {"TrainerControl": {}}}) is None
    (tmp_path / FILE).write_text('{"id": "a"')
    with pytest.raises(DataError) as error:
        read_run(tmp_path)
    assert str(tmp_path / FILE) in error.value.where


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["/opt/bin/rs-rlhf", "sft", "--max_steps", "3"], ["rs-rlhf", "sft", "--max_steps", "3"]),
        (["/a/rs_rlhf/__main__.py", "kto"], ["rs-rlhf", "kto"]),
        (["train.py", "--hub-token=abc"], ["python", "train.py", f"--hub-token={HIDDEN}"]),
        (
            ["rs-rlhf", "grpo", "--hub_token", "abc", "--seed", "1"],
            ["rs-rlhf", "grpo", "--hub_token", HIDDEN, "--seed", "1"],
        ),
        (["rs-rlhf", "--note", "a hf_abcdefgh1 b"], ["rs-rlhf", "--note", f"a {HIDDEN} b"]),
        (
            ["rs-rlhf", "--score_model", "http://me:pw@host:80"],
            ["rs-rlhf", "--score_model", f"http://{HIDDEN}@host:80"],
        ),
        (["rs-rlhf", "--eos_token", "<|im_end|>"], ["rs-rlhf", "--eos_token", "<|im_end|>"]),
        (["/x/ipykernel_launcher.py", "-f", "kernel.json"], []),
        (["-c", "1"], []),
        (["/usr/bin/pytest"], []),
    ],
)
def test_the_command_is_kept_without_secrets(argv, shown):
    assert command_line(argv) == shown


def test_a_record_of_an_earlier_version_tells_nothing(tmp_path):
    (tmp_path / FILE).write_text('{"id": "a", "parts": [["a", 0]], "settings": {}}')
    assert read_run(tmp_path).about == {}
