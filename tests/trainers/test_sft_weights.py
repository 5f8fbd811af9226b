"""Weights of training rows: what they do to loss and gradient, and values that are no weights."""

import json
from contextlib import nullcontext

import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets import Dataset
from helpers import WORDS, picture
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl.trainer import utils as trl_utils

from rs_rlhf.cli import main as cli
from rs_rlhf.errors import DataError, OptionError
from rs_rlhf.trainers import sft
from rs_rlhf.trainers.data.sft import load_rows
from rs_rlhf.trainers.sft import SFTCollator, VisionSFTConfig, VisionSFTTrainer

QUICK = {"bf16": False, "use_cpu": True, "gradient_checkpointing": False, "report_to": "none", "disable_tqdm": True}
QUICK |= {"max_steps": 2, "logging_steps": 1, "save_strategy": "no", "per_device_train_batch_size": 4, "seed": 1}
BAD = [-0.5, float("nan"), float("inf"), "much", "", None, True, [1.0], {"a": 1}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weighted")
    for i in range(4):
        picture(i).save(folder / f"{i}.png")
    return folder


def rows(folder, weights):
    asked = {"prompt": [{"role": "user", "content": "What is it?"}]}
    return [
        {
            **asked,
            "completion": [{"role": "assistant", "content": f"a {WORDS[i]}."}],
            "image": str(folder / f"{i}.png"),
        }
        | ({} if weights is None else {"w": weights[i]})
        for i in range(4)
    ]


def trainer(tiny_vlm, path, data, **given):
    weighted = {"weight_column": "w"} if "w" in data[0] else {}
    return VisionSFTTrainer(
        model=AutoModelForImageTextToText.from_pretrained(tiny_vlm),
        args=VisionSFTConfig(str(path), **QUICK | weighted | given),
        processing_class=AutoProcessor.from_pretrained(tiny_vlm),
        train_dataset=Dataset.from_list(data),
    )


def step(made):
    """The loss of one batch of all rows, and its gradients."""
    made.model.train().zero_grad()
    loss = made.compute_loss(made.model, made.data_collator(list(made.train_dataset)))
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in made.model.named_parameters() if p.grad is not None}


def test_a_weight_multiplies_the_loss_and_the_gradient_of_its_row(tiny_vlm, folder, tmp_path):
    made = {}
    for weights in (None, (1, 1, 1, 1), (0, 0, 0, 0), (2, 0, 0, 0), (1, 0, 0, 0), (0, 1, 1, 1)):
        made[weights] = step(trainer(tiny_vlm, tmp_path, rows(folder, weights)))
    loss, gradients = made[None]
    assert made[1, 1, 1, 1][0] == pytest.approx(loss, abs=1e-6)
    assert made[0, 0, 0, 0][0] == 0 and all((g == 0).all() for g in made[0, 0, 0, 0][1].values())
    assert made[2, 0, 0, 0][0] == pytest.approx(2 * made[1, 0, 0, 0][0], rel=1e-5)
    assert made[1, 0, 0, 0][0] + made[0, 1, 1, 1][0] == pytest.approx(loss, rel=1e-5)
    for name, gradient in gradients.items():
        first, others = made[1, 0, 0, 0][1][name], made[0, 1, 1, 1][1][name]
        torch.testing.assert_close(first + others, gradient, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(made[1, 1, 1, 1][1][name], gradient, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(made[2, 0, 0, 0][1][name], 2 * first, rtol=1e-4, atol=1e-7)


def test_accumulated_batches_count_tokens_as_without_weights(tiny_vlm, folder, tmp_path):
    told = []
    for weights, size, parts in ((None, 4, 1), ((1, 1, 1, 1), 2, 2), ((1, 1, 1, 1), 4, 1)):
        made = trainer(
            tiny_vlm,
            tmp_path / f"{size}{weights is None}",
            rows(folder, weights),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
        )
        made.train()
        told.append([entry["loss"] for entry in made.state.log_history if "loss" in entry])
    assert told[1] == pytest.approx(told[0], abs=1e-4) and told[2] == pytest.approx(told[0], abs=1e-6)


def test_the_command_reads_the_column_of_the_training_rows_alone(tiny_vlm, folder, tmp_path):
    """Weights all 1 give the loss of none, weights of 0 train nothing; evaluation rows need no column."""
    plain = rows(folder, None)
    names = {"none": None, "ones": [1, "1", 1.0, "1.0"], "zeros": [0, 0.0, "0", "-0"]}  # texts, as in CSV
    lost = {}
    for name, weights in names.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows(folder, weights)))
        held = folder / "held.jsonl"
        held.write_text("".join(json.dumps(row) + "\n" for row in plain))
        flags = {
            "dataset_name": data,
            "eval_dataset_name": held,
            "eval_strategy": "epoch",
            "output_dir": tmp_path / name,
        }
        flags |= {"model_name_or_path": tiny_vlm, **QUICK} | ({"weight_column": "w"} if weights else {})
        argv = [text for key, value in flags.items() for text in (f"--{key}", str(value))]
        assert cli.main(["sft", *argv]) == 0
        log = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        lost[name] = [[entry[key] for entry in log if key in entry] for key in ("loss", "eval_loss")]
    for ones, none in zip(lost["ones"], lost["none"], strict=True):
        assert ones == pytest.approx(none, abs=1e-6) and len(ones) == 2
    assert lost["zeros"][0] == [0, 0] and lost["zeros"][1][0] == lost["zeros"][1][1] > 0


@pytest.mark.parametrize("value", BAD, ids=repr)
def test_what_is_no_weight_is_told_with_file_and_row(value, folder):
    data = folder / "bad.jsonl"
    good = {"question": "what?", "answer": "a river", "image": "0.png", "w": 1}
    data.write_text(json.dumps(good) + "\n" + json.dumps({**good, "w": value}) + "\n")
    with pytest.raises(DataError) as error:
        load_rows(str(data), columns={"weight": "w"})
    assert error.value.key == "w" and error.value.where == f"{data}, row 1"


def test_what_is_no_weight_in_tables(folder):
    table = {"question": ["what?"] * 2, "answer": ["a river"] * 2, "image": ["0.png"] * 2, "w": [1.0, float("nan")]}
    pyarrow.parquet.write_table(pyarrow.table(table), folder / "bad.parquet")
    (folder / "bad.csv").write_text("question,answer,image,w\nwhat?,a river,0.png,0.5\nwhat?,a river,0.png,half\n")
    for name in ("bad.parquet", "bad.csv"):
        with pytest.raises(DataError) as error:
            load_rows(str(folder / name), columns={"weight": "w"})
        assert (error.value.key, error.value.where) == ("w", f"{folder / name}, row 1")
    (folder / "good.csv").write_text("question,answer,image,w\nwhat?,a river,0.png,0.5\nwhat?,a road,0.png,0\n")
    assert load_rows(str(folder / "good.csv"), columns={"weight": "w"})["weight"] == [0.5, 0.0]
    assert "weight" not in load_rows(str(folder / "good.csv")).column_names


def test_weights_that_would_not_be_read_are_refused(tiny_vlm, folder, tmp_path):
    data = rows(folder, (1, 1, 1, 1))
    for given, key in (
        ({"loss_type": "dft"}, "loss_type"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"weight_column": "weight"}, "weight_column"),
    ):
        with pytest.raises(OptionError) as error:
            trainer(tiny_vlm, tmp_path, data, **given)
        assert error.value.key == key
    with pytest.raises(OptionError) as error:
        args = VisionSFTConfig(str(tmp_path), weight_column="w", **QUICK)
        VisionSFTTrainer(tiny_vlm, args, data_collator=SFTCollator, train_dataset=Dataset.from_list(data))
    assert error.value.key == "weight_column"
    labelled = folder / "labelled.jsonl"
    labelled.write_text(json.dumps({"image": "0.png", "label": "river", "captions": ["a river."], "w": 2}) + "\n")
    with pytest.raises(DataError) as error:
        load_rows(str(labelled), columns={"weight": "w"})
    assert error.value.key == "weight"
    assert load_rows(str(labelled), columns={"weight": "w", "text": "captions"})["weight"] == [2.0]
    bad = trainer(tiny_vlm, tmp_path, rows(folder, (1, 1, -1, 1)))
    with pytest.raises(DataError) as error:
        bad.train()
    assert (error.value.key, error.value.where) == ("w", "row 2")


def test_the_head_computes_labelled_positions_alone_to_the_same_loss(tiny_vlm, folder, tmp_path, monkeypatch):
    made, counts, head = trainer(tiny_vlm, tmp_path, rows(folder, None)), [], trl_utils._ChunkedLogProbFunction.apply
    monkeypatch.setattr(
        trl_utils._ChunkedLogProbFunction, "apply", lambda *a: counts.append(len(a[0])) or head(*a), raising=False
    )
    loss, gradients = step(made)
    monkeypatch.setattr(sft, "head_at_labels", nullcontext)
    expected, theirs = step(made)
    labels = made.data_collator(list(made.train_dataset))["labels"][:, 1:]
    assert counts == [(labels != -100).sum(), labels.numel()]
    assert loss == pytest.approx(expected, abs=1e-6) and gradients.keys() == theirs.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-7)


def test_a_batch_without_a_label_has_a_loss_of_zero_with_a_gradient(tiny_vlm, folder, tmp_path):
    made = trainer(tiny_vlm, tmp_path, rows(folder, None))
    batch = made.data_collator(list(made.train_dataset))
    batch["labels"].fill_(-100)
    made.model.train().zero_grad()
    loss = made.compute_loss(made.model, batch)
    loss.backward()
    assert loss == 0 and all((p.grad == 0).all() for p in made.model.parameters() if p.grad is not None)
    assert any(p.grad is not None for p in made.model.parameters())
