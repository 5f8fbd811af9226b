"""What the data check passes trains an epoch in any batches; what it refuses, training refuses with the same words."""

import json
from functools import partial

import pytest
from datasets import Dataset
from helpers import picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rs_rlhf.cli.main import run
from rs_rlhf.errors import RSRLHFError
from rs_rlhf.imagery.sources import ImageOptions
from rs_rlhf.models.row_limits import limits_for
from rs_rlhf.preferences.check import check_files
from rs_rlhf.preferences.reader import load_preferences
from rs_rlhf.trainers.data.check import Source, check_data
from rs_rlhf.trainers.data.grpo import load_prompts
from rs_rlhf.trainers.reward import VisionRewardConfig, VisionRewardTrainer

main = partial(run, "data check")

SIZES = {"wide": (300, 20), "thin": (603, 3), "long": (400, 4), "dot": (1, 1)}
SIZES |= {"square": (60, 60), "large": (400, 300)}
TEXTS = [
    "a river",
    "half \ud83d",
    "<|image_pad|>",
    "b<|im_end|>",
    "<image>",
    "",
    "é\u2028\u0000",
    "<|box_start|>(1,2)",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("check")
    for i, (name, size) in enumerate(SIZES.items()):
        picture(i, *size).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def trainer(folder, tiny_vlm):
    """A trainer whose data sets are put in its place, since a model is loaded once."""
    args = {"output_dir": str(folder / "out"), "image_root": str(folder), "max_steps": 1, "num_train_epochs": 1}
    args |= {"bf16": False, "use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    args |= {"per_device_train_batch_size": 3, "gradient_checkpointing": False, "max_length": 40}
    rows = Dataset.from_list([{"prompt": "", "chosen": "a", "rejected": "b"}])
    return VisionRewardTrainer(tiny_vlm, args=VisionRewardConfig(**args), train_dataset=rows)


odd = st.sampled_from(TEXTS) | st.text(max_size=8) | st.just("a " * 60)
plain = st.sampled_from(["a port", "two tanks .", "bare farmland", "A"])
row = st.fixed_dictionaries(
    {"prompt": st.sampled_from(["", "what?"]), "chosen": plain, "rejected": plain | odd},
    optional={"image": st.sampled_from([*(f"{name}.png" for name in SIZES), "gone.png"])},
)


@pytest.mark.parametrize("count", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_check_is_use(count, folder, trainer, tiny_vlm):
    given_rows = given(st.lists(row, min_size=1, max_size=5), st.integers(0, 100))
    options = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck), "database": None}

    @settings(max_examples=count, **options)
    @given_rows
    def check(rows, seed):
        _check_is_use(folder, trainer, tiny_vlm, rows, seed)

    check()


def _check_is_use(folder, trainer, tiny_vlm, rows, seed):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps({**row, "id": i, "source": str(i)}) + "\n" for i, row in enumerate(rows)))
    report = check_files(
        str(file), limits=lambda options: limits_for("reward", options, tiny_vlm, max_length=trainer.args.max_length)
    )
    quality = ("are equal", "a duplicate", "contradicts")  # of which training is no judge
    refused = [str(one) for one in report.problems if not any(word in one.detail for word in quality)]
    try:
        dataset = load_preferences(str(file), image_root=str(folder))
        trainer.train_dataset = trainer.keep_rows(dataset)
        trainer.args.seed = trainer.args.data_seed = seed
        trainer.args.max_steps = -(-len(rows) // 3)
        trainer.train()
    except RSRLHFError as error:
        assert str(error) in refused
    else:
        assert refused == []


def test_images_of_every_size_that_is_passed(folder, trainer, tiny_vlm):
    passed = limits_for("reward", ImageOptions(image_root=str(folder)), tiny_vlm)
    assert {name for name in SIZES if not _error(passed, f"{name}.png")} == {"dot", "square", "large", "wide"}


def _error(limits, image):
    try:
        limits.size(image)
    except RSRLHFError as error:
        return str(error)


def write(folder, name, rows):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


@pytest.mark.parametrize("use", ["grpo", "sft", "score", "clip", "kto"])
def test_each_use_is_checked_through_its_reader(folder, use, capsys):
    good = {"image": "square.png", "caption": "a river"}
    if use == "grpo":
        good = {"image": "square.png", "prompt": "what?", "solution": [1, 2, 3, 4]}
    if use == "kto":
        good = {"image": "square.png", "prompt": "what?", "completion": "a river", "label": False}
    bad = [{**good, "image": "gone.png"}, {**good, "image": "thin.png"}]
    file = write(folder, f"{use}.jsonl", [good, *bad, good])
    report = check_data(use, [Source(file)], limits_for(use, ImageOptions()))
    places = [problem.where.rpartition(" ")[2] for problem in report.problems]
    fits = use == "clip"  # which squeezes any picture into its square
    first = 2 if use in ("grpo", "kto") else 1
    assert places == [str(first), str(first + 1)][: 1 if fits else 2]
    assert report.rows == (3 if fits else 2)
    assert main([file, "--for", use]) == 1
    assert "1 problem" in capsys.readouterr().out or not fits
    assert main([write(folder, "good.jsonl", [good, good]), "--for", use]) == 0


@pytest.mark.parametrize(
    ("solution", "text"),
    [
        (3, "3"),
        (3.0, "3.0"),
        ("3", "3"),
        (0, "0"),
        ([10, 20, 30, 40], "[10, 20, 30, 40]"),
        ([[1, 2, 3, 4], [5, 6, 7, 8]], "[[1, 2, 3, 4], [5, 6, 7, 8]]"),
        ({"count": 2}, '{"count": 2}'),
        (None, None),
        (float("nan"), None),
        ("", None),
    ],
)
def test_solutions_of_any_kind_load(folder, solution, text):
    rows = [{"prompt": "How many?", "image": "square.png", "solution": given} for given in (solution, "a text")]
    data, _ = load_prompts(write(folder, "solutions.jsonl", rows))
    assert data["solution"][:] == [text, "a text"]
    assert data["where"][1].endswith("solutions.jsonl, line 2")


def test_all_bad_prompts_are_listed(folder):
    rows = [{"prompt": 3}, {"prompt": "half \ud83d"}, {"prompt": "<image>"}, {"prompt": "fine"}]
    report = check_data(
        "grpo", [Source(write(folder, "bad.jsonl", [rows[3], *rows]))], limits_for("grpo", ImageOptions())
    )
    assert [problem.where.rpartition(" ")[2] for problem in report.problems] == ["2", "3", "4"] and report.rows == 2
