"""Two real processes under `accelerate launch` train as one does, with and without gradient caching, and evaluate."""

import json
from functools import cache

import pytest
import torch
from helpers import warm
from safetensors.torch import load_file

from rs_rlhf.cli.main import main
from rs_rlhf.data.scenes.make import write_scenes
from rs_rlhf.models.tiny_clip import save_tiny_clip

# Plain gradient descent: Adam would hide gradients of the wrong scale.
FLAGS = [
    "--max_steps",
    "3",
    "--optim",
    "sgd",
    "--learning_rate",
    "0.05",
    "--lr_scheduler_type",
    "constant",
    "--logging_steps",
    "1",
    "--save_strategy",
    "no",
    "--use_cpu",
    "true",
    "--seed",
    "5",
    "--disable_tqdm",
    "true",
]


def command(work, family, name, *flags):
    return [
        "clip",
        "--model_name_or_path",
        str(work / family),
        "--dataset_name",
        str(work / "scenes"),
        "--dataset_train_split",
        "train",
        "--output_dir",
        str(work / name),
        *FLAGS,
        *flags,
    ]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Scenes with captions, so that captions of one image meet in a batch, and a tiny model of either family."""
    folder = tmp_path_factory.mktemp("clip_distributed")
    write_scenes(folder / "scenes", 10, 13, size=64)
    texts = [text for line in open(folder / "scenes" / "train.jsonl") for text in json.loads(line)["captions"]]
    for family in ("clip", "siglip"):
        save_tiny_clip(folder / family, texts, family=family, image_size=32, max_length=24)
    return folder


@pytest.fixture(scope="module")
def trained(work):
    """Returns the folder of a run: of one process on batches of 16, or of two processes on batches of 8 each."""
    (work / "found.yaml").write_text(
        "title: t\ntask: retrieval\nlayout: images\npath: scenes\nsplit: validation\nsource: drawn\n"
    )
    tasks = ["--eval_tasks", "scenes", str(work / "found.yaml"), "--eval_data_root", str(work)]
    tasks += ["--eval_strategy", "steps", "--eval_steps", "2", "--per_device_eval_batch_size", "3"]
    batch, cached, twice = "--per_device_train_batch_size", "--grad_cache_chunk_size", "--gradient_accumulation_steps"
    runs = {
        "clip-one": ["clip", batch, "16", *tasks],
        "siglip-one": ["siglip", batch, "16"],
        "accumulated-one": ["clip", batch, "8", twice, "2"],
        "clip-two": ["clip", batch, "8", *tasks],
        "clip-cached": ["clip", batch, "8", cached, "3"],
        "siglip-two": ["siglip", batch, "8"],
        "siglip-cached": ["siglip", batch, "8", cached, "3"],
        "accumulated-cached": ["clip", batch, "4", twice, "2", cached, "3"],
    }

    @cache
    def run(name):
        family, *flags = runs[name]
        argv = command(work, family, name, *flags)
        if name.endswith("-one"):
            assert main(argv) == 0
        else:
            warm.launched([*argv, "--accelerate_config", "cpu_2proc"], work)
        return work / name

    return run


def history(folder):
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


@pytest.mark.parametrize(
    ("start", "one", "two"),
    [
        ("clip", "clip-one", "clip-two"),
        ("siglip", "siglip-one", "siglip-cached"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("clip", "clip-one", "clip-cached"),
                ("siglip", "siglip-one", "siglip-two"),
                ("clip", "accumulated-one", "accumulated-cached"),
            ]
        ),
    ],
)
def test_two_processes_train_as_one(work, trained, start, one, two):
    folders = work / start, trained(one), trained(two)
    before, expected, weights = (load_file(folder / "model.safetensors") for folder in folders)
    logged = [[entry for entry in history(trained(name)) if "loss" in entry] for name in (one, two)]
    assert len(logged[0]) == 3
    for key in ("loss", "grad_norm", "logit_scale"):
        values = [[entry[key] for entry in entries] for entries in logged]
        assert values[1] == pytest.approx(values[0], rel=1e-4), key
    assert (expected["logit_scale"] - before["logit_scale"]).abs().item() > 1e-4
    assert max((expected[name] - before[name]).abs().max().item() for name in before) > 1e-3
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_two_processes_share_the_evaluation(trained):
    found = [
        [
            {k: v for k, v in entry.items() if k.startswith("eval_")}
            for entry in history(trained(name))
            if "eval_scenes_top1" in entry
        ]
        for name in ("clip-one", "clip-two")
    ]
    assert [len(entries) for entries in found] == [2, 2]  # at step 2, and at the end
    assert "eval_found_image_to_text_R@1" in found[0][0]
    for one, two in zip(*found, strict=True):
        assert two == pytest.approx(one, abs=1e-6)


def test_deepspeed_is_refused_in_one_sentence(work):
    flags = ["--per_device_train_batch_size", "8", "--accelerate_config", "cpu_zero2"]
    told = warm.launched(command(work, "clip", "zero", *flags), work, expect=1)
    assert "rs-rlhf clip: DeepSpeed and FSDP are not supported" in told
