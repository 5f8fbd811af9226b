"""Every form of rows in every command that reads it: the images reach the model.

The forms of a group say the same about the same pictures, so that a command must come to the same score or loss in
each; with other pictures, all else equal, to another one, the same for all forms again.
"""

import json
from functools import cache

import numpy as np
import pytest
import yaml
from helpers.form_files import CAPTIONED, COUNT, LABELLED, PREFERENCES, PROMPTS, TURNS

from rs_rlhf.cli.main import main
from rs_rlhf.curation.shards import read_scores
from rs_rlhf.data.group import completion_text, messages_of

TRAINING = (
    "--use_cpu true --bf16 false --gradient_checkpointing false --report_to none --disable_tqdm true --logging_steps "
    "1 --max_steps 1 --save_strategy no --seed 3 --learning_rate 0.001"
).split()
FORMS = {"captioned": CAPTIONED, "turns": TURNS, "labelled": LABELLED, "preferences": PREFERENCES, "prompts": PROMPTS}
COMMANDS = {
    "captioned": ("score", "sft", "clip"),
    "turns": ("score", "sft", "clip"),
    "labelled": ("sft", "grpo", "sample-pairs"),
    "preferences": ("reward", "eval preferences", "eval run", "grpo", "dpo", "kto"),
    "prompts": ("grpo", "sample-pairs", "eval rows"),
}
# By default one command of a kind takes all forms, and the others, which read in the same way, these.
WIDE = {"captioned": "score", "turns": "score", "labelled": "sample-pairs", "preferences": "eval preferences"}
WIDE |= {"prompts": "sample-pairs"}
FEW = ("title", "inline", "folder", "ms-swift, messages")
MATRIX = [
    pytest.param(kind, command, form, marks=() if command == WIDE[kind] or form in FEW else pytest.mark.slow)
    for kind, commands in COMMANDS.items()
    for command in commands
    for form in FORMS[kind]
]
USES = {
    "captioned": ("score", "clip"),
    "turns": ("sft",),
    "labelled": ("sft", "grpo"),
    "preferences": ("reward", "dpo", "grpo"),
    "prompts": ("grpo",),
}
CHECKED = [(kind, use, form) for kind, uses in USES.items() for use in uses for form in FORMS[kind]]


@pytest.fixture(scope="module")
def values(tmp_path_factory, tiny_vlm, score_model_path, clips):
    """A function of `(kind, command, form, seed)`: what the command says of the rows, and comes to."""

    @cache
    def run(kind, command, form, seed):
        folder, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("out") / "out"
        path, *flags = FORMS[kind][form](folder, seed)
        models = {"vlm": tiny_vlm, "score": score_model_path, "clip": str(clips["clip"])}
        return RUN[command](folder, path, flags, out, models)

    return run


def trained(command, model, key, *more):
    """A command that trains one step; its value is an entry of the log."""

    def run(folder, path, flags, out, models):
        data = ["--dataset_name", path, *flags, "--per_device_train_batch_size", str(COUNT)]
        options = [models.get(option, option) for option in more]
        argv = [command, "--model_name_or_path", models[model], *data, "--output_dir", str(out), *TRAINING, *options]
        assert main(argv) == 0
        return [json.loads((out / "trainer_state.json").read_text())["log_history"][0][key]]

    return run


def scored(folder, path, flags, out, models):
    options = ["--model", models["score"], "--num_workers", "0"]
    assert main(["score", *options, "--input", path, *flags, "--output", str(out)]) == 0
    return read_scores(out)["score"].to_pylist()


def measured(folder, path, flags, out, models):
    argv = ["eval", "preferences", "--model", models["score"], "--preferences", path, *flags, "--output", str(out)]
    assert main(argv) == 0
    return [json.loads(out.read_text())["margin"]]


def evaluated(task, layout, model, key, *more):
    """`eval run` on a benchmark of one file; its values are those of `key` in the samples."""

    def run(folder, path, flags, out, models):
        columns = dict(pair.split("=") for pair in flags[1:])
        declared = {"title": "t", "source": "drawn", "task": task, "layout": layout, "path": path.removeprefix("/")}
        (folder / "made.yaml").write_text(yaml.safe_dump(declared | {"columns": columns}))
        argv = ["eval", "run", "--model", models[model], "--task", str(folder / "made.yaml"), "--data_root", "/"]
        assert main([*argv, "--out", str(out), *(models.get(option, option) for option in more)]) == 0
        values = [json.loads(line)[key] for line in (out / "samples_made.jsonl").read_text().splitlines()]
        return np.ravel(values).tolist()

    return run


def sampled(folder, path, flags, out, models):
    """`data sample-pairs`; its values are the sampled texts."""
    argv = ["data", "sample-pairs", "--policy", models["vlm"], "--input", path, *flags, "--output", f"{out}.jsonl"]
    assert main([*argv, "-n", "2", "--max_new_tokens", "6"]) == 0
    lines = out.with_suffix(".jsonl").read_text().splitlines()
    return [completion_text(messages_of(json.loads(line)["rejected"], "rejected", "assistant")) for line in lines]


RUN = {
    "score": scored,
    "sft": trained("sft", "vlm", "loss"),
    "clip": trained("clip", "clip", "loss"),
    "reward": trained("reward", "vlm", "loss"),
    "dpo": trained("dpo", "vlm", "logps/chosen"),
    "kto": trained("kto", "vlm", "logps/chosen"),
    "grpo": trained(
        "grpo", "vlm", "score/mean", "--score_model", "score", "--num_generations", "2", "--max_completion_length", "2"
    ),
    "eval preferences": measured,
    "eval run": evaluated("preference", "preferences", "score", "scores"),
    "eval rows": evaluated("vqa", "rows", "vlm", "score", "--score_model", "score"),
    "sample-pairs": sampled,
}


@pytest.mark.parametrize(("kind", "command", "form"), MATRIX)
def test_the_images_of_every_form_reach_the_model(values, kind, command, form, capsys):
    first, *_ = FORMS[kind]
    expected = [values(kind, command, first, seed) for seed in (0, 1)]
    assert expected[0] != pytest.approx(expected[1])
    for seed in (0, 1):
        capsys.readouterr()
        assert values(kind, command, form, seed) == pytest.approx(expected[seed])
        printed = capsys.readouterr().out
        count = 2 * COUNT if command == "kto" else COUNT  # a row for each text
        assert form == first or f"{count} rows, {count} with images" in printed


@pytest.mark.parametrize(("kind", "use", "form"), CHECKED)
def test_the_check_counts_the_images_of_every_form(kind, use, form, tmp_path, capsys):
    path, *flags = FORMS[kind][form](tmp_path, 0)
    assert main(["data", "check", path, *flags, "--for", use]) == 0
    assert f"{COUNT} good rows: {COUNT} with images ({COUNT} images, {COUNT} different)" in capsys.readouterr().out
