"""DPO and KTO: TRL's losses on our rows, what a pair is shown, resuming, refusals, and the commands."""

import json
from copy import deepcopy

import pytest
import torch
from datasets import Dataset
from helpers import picture
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from rs_rlhf.cli import main as cli
from rs_rlhf.cli.dpo import balance
from rs_rlhf.errors import DataError, OptionError
from rs_rlhf.models.collator import GroupCollator
from rs_rlhf.preferences.dpo import labelled_rows, load_dpo
from rs_rlhf.preferences.reader import load_preferences
from rs_rlhf.runs.report import page_data
from rs_rlhf.trainers.dpo import (
    LabelledCollator,
    PairCollator,
    VisionDPOConfig,
    VisionDPOTrainer,
    VisionKTOConfig,
    VisionKTOTrainer,
)

QUICK = "--use_cpu true --bf16 false --report_to none --disable_tqdm true --logging_steps 1 --save_steps 1".split()
METHODS = {
    "dpo": (VisionDPOTrainer, VisionDPOConfig, DPOTrainer, DPOConfig),
    "kto": (VisionKTOTrainer, VisionKTOConfig, KTOTrainer, KTOConfig),
}


def written(folder, count=6, more=()):
    """What `rs-rlhf data dpo` writes, in both forms: paths of `dpo.jsonl` and `kto.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = []
    for i in range(count):
        picture(i, 56 + 28 * (i % 2), 56).save(folder / f"{i}.png")
        turns = [
            [{"role": "assistant", "content": [{"type": "text", "text": t}]}] for t in (f"a river {i}.", "trees.")
        ]
        asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f"What is it, {i}?"}]}
        pairs.append({"prompt": [asked], "chosen": turns[0], "rejected": turns[1], "images": [f"{i}.png"]})
    scores = {"chosen_score": 1.0, "rejected_score": 0.0, "source": "made"}
    pairs = [{**pair, **scores, "id": str(i)} for i, pair in enumerate([*pairs, *more])]
    for name, rows in (("dpo", pairs), ("kto", [row for pair in pairs for row in labelled_rows(pair)])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return written(tmp_path_factory.mktemp("data"))


def options(out, **more):
    given = {"max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "logging_steps": 1, "seed": 1}
    given |= {"lr_scheduler_type": "constant", "save_strategy": "no", "gradient_checkpointing": False, "beta": 0.5}
    given |= {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "max_length": None}
    return {"output_dir": str(out), **given, **more}


def ours(method, model, folder, out, peft_config=None, data=None, **more):
    trainer_class, config_class, *_ = METHODS[method]
    if data is None:
        data = load_preferences(folder / "dpo.jsonl", None, folder, form="pairs" if method == "dpo" else "labelled")
    return trainer_class(model, args=config_class(**options(out, **more)), train_dataset=data, peft_config=peft_config)


def logged(trainer, *names):
    return [[entry[name] for name in names] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("method", METHODS)
def test_losses_and_gradients_are_trls(method, folder, tiny_vlm, tmp_path):
    """TRL reads the same file with its own reader and collator."""
    *_, trainer_class, config_class = METHODS[method]
    theirs = trainer_class(
        AutoModelForImageTextToText.from_pretrained(tiny_vlm),
        args=config_class(**options(tmp_path)),
        train_dataset=load_dpo(folder / f"{method}.jsonl"),
        processing_class=AutoProcessor.from_pretrained(tiny_vlm),
    )
    theirs.train()
    mine = ours(method, tiny_vlm, folder, tmp_path)
    mine.train()
    names = [
        "loss",
        "grad_norm",
        "rewards/margins",
        "logps/chosen",
        "num_tokens",
        *(["kl"] if method == "kto" else []),
    ]
    for one, two in zip(logged(mine, *names), logged(theirs, *names), strict=True):
        assert one == pytest.approx(two, rel=1e-3, abs=1e-5)
    assert logged(mine, "rewards/margins")[0] == [0.0] and logged(mine, "rewards/margins")[2][0] > 0


@pytest.fixture(scope="module")
def layout(tiny_vlm):
    return GroupCollator(AutoProcessor.from_pretrained(tiny_vlm))


def shown(batch, tokenizer, prefix=""):
    """For every row its whole text, an image as `#`, and the text that carries loss."""
    rows = []
    for ids, mask, trained in zip(
        *(batch[f"{prefix}{name}"] for name in ("input_ids", "attention_mask", "completion_mask")), strict=True
    ):
        assert not (trained.bool() & ~mask.bool()).any()
        rows.append((tokenizer.decode(ids[mask.bool()]), tokenizer.decode(ids[trained.bool()])))
    return rows


def test_a_batch_of_pairs_has_the_chosen_rows_first(folder, layout):
    data = load_preferences(folder / "dpo.jsonl", None, folder, form="pairs")
    batch = PairCollator(layout)([data[0], data[1]])
    rows = shown(batch, layout.tokenizer)
    assert [trained for _, trained in rows] == [
        f"{text}<|im_end|>\n" for text in ("a river 0.", "a river 1.", "trees.", "trees.")
    ]
    assert all(f"What is it, {i % 2}?" in whole for i, (whole, _) in enumerate(rows))
    images = batch["pixel_values"].split(batch["image_grid_thw"].prod(1).tolist())
    assert len(images) == 4 and torch.equal(images[0], images[2]) and torch.equal(images[1], images[3])
    assert batch["mm_token_type_ids"].sum() == batch["image_grid_thw"].prod(1).sum() // 4


def test_both_texts_of_a_pair_are_shown_the_same_turned_image(folder, layout):
    turning = GroupCollator(layout.processor, augment=True)
    row = load_preferences(folder / "dpo.jsonl", None, folder, form="pairs")[0]
    seen = []
    for turning.epoch in range(8):
        one, two = PairCollator(turning)([row])["pixel_values"].chunk(2)
        assert torch.equal(one, two)
        seen.append(one)
    assert not all(torch.equal(seen[0], other) for other in seen[1:])
    left = [{"role": "assistant", "content": "on the left"}]  # of which the chosen text does not speak
    for turning.epoch in range(8):
        fixed = PairCollator(turning)([{**row, "rejected": left}])["pixel_values"]
        assert torch.equal(fixed, PairCollator(layout)([row])["pixel_values"])


def test_labelled_rows_are_laid_out_with_their_own_answer_and_with_the_one_before(folder, layout):
    data = load_preferences(folder / "kto.jsonl", None, folder, form="labelled")
    assert (
        data.to_list()
        == load_preferences(folder / "dpo.jsonl", None, folder, form="labelled")
        .remove_columns(["row", "where"])
        .add_column("row", data["row"][:])
        .add_column("where", data["where"][:])
        .select_columns(data.column_names)
        .to_list()
    )
    rows = [data[0], data[2], data[5]]
    limited = GroupCollator(
        layout.processor, max_length=max(len(r) for r in LabelledCollator(layout)(rows)["input_ids"])
    )
    batch = LabelledCollator(limited)(rows)
    assert batch["label"].tolist() == [True, True, False]
    assert [trained for _, trained in shown(batch, layout.tokenizer)] == [
        f"{text}<|im_end|>\n" for text in ("a river 0.", "a river 1.", "trees.")
    ]
    others = shown(batch, layout.tokenizer, "KL_")
    assert [trained for _, trained in others] == [
        f"{text}<|im_end|>\n" for text in ("trees.", "a river 0.", "a river 1.")
    ]
    assert [whole.split("What is it, ")[1][0] for whole, _ in others] == ["0", "1", "2"]


TEXT_ONLY = {"prompt": "one and one?", "chosen": "two", "rejected": "three"}


@pytest.mark.parametrize("method", METHODS)
def test_texts_alone_train_the_vision_tower_with_zeros_and_mixed_rows_train(
    method, folder, layout, tiny_vlm, tmp_path
):
    rows = [TEXT_ONLY, {**TEXT_ONLY, "prompt": "two and two?"}]
    if method == "kto":
        rows = [{"prompt": row["prompt"], "completion": row["chosen"], "label": bool(i)} for i, row in enumerate(rows)]
    made = ours(method, tiny_vlm, folder, tmp_path, data=Dataset.from_list(rows), max_steps=1)
    batch = made.data_collator(rows)
    loss = made.compute_loss(made.model, batch)
    loss.backward()
    tower = [weight for name, weight in made.model.named_parameters() if "visual" in name]
    assert tower and all(weight.grad is not None and not weight.grad.any() for weight in tower)
    made.train()
    data = load_preferences(folder / f"{method}.jsonl", None, folder, form="pairs" if method == "dpo" else "labelled")
    mixed = made.data_collator([rows[0], data[0]])
    alone = made.data_collator([data[0]])
    assert len(mixed["pixel_values"]) == len(alone["pixel_values"])


@pytest.mark.parametrize(
    ("method", "adapter"), [("dpo", False), pytest.param("dpo", True, marks=pytest.mark.slow), ("kto", True)]
)
def test_resume_gives_the_losses_of_an_unbroken_run(method, adapter, folder, tiny_vlm, tmp_path):
    """The reference stays the model of the start, of which a checkpoint holds nothing."""

    def made(name, steps):
        lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"]) if adapter else None
        more = {"max_steps": steps, "save_strategy": "steps", "save_steps": 2}
        return ours(method, tiny_vlm, folder, tmp_path / name, peft_config=lora, **more)

    whole = made("whole", 4)
    whole.train()
    made("broken", 2).train()
    resumed = made("broken", 4)
    resumed.train(resume_from_checkpoint=True)
    names = ("loss", "rewards/margins")
    assert logged(resumed, *names) == [pytest.approx(one, abs=1e-6) for one in logged(whole, *names)]
    assert logged(whole, *names)[-1] != logged(whole, *names)[0]


def test_a_script_for_trl_works_with_our_class(folder, tiny_vlm, tmp_path):
    """A plain config, a loaded model, decoded images; none of the caller's objects is changed."""
    given = options(tmp_path, max_steps=1)
    args, lora = DPOConfig(**given), LoraConfig(r=2, target_modules=["q_proj"])
    before = deepcopy((args, lora))
    model = AutoModelForImageTextToText.from_pretrained(tiny_vlm)
    made = VisionDPOTrainer(model, args=args, train_dataset=load_dpo(folder / "dpo.jsonl"), peft_config=lora)
    made.train()
    assert (args, lora) == before and logged(made, "loss")[0] == pytest.approx([0.6931], abs=1e-3)
    assert made.train_dataset[0]["images"][0]["path"].endswith("0.png")  # read when its batch is due


@pytest.mark.parametrize(
    ("method", "change", "key"),
    [
        ("dpo", {"rejected": ["trees.", "a lake."]}, "rejected"),
        ("dpo", {"chosen": ""}, "chosen"),
        ("dpo", {"chosen": "a <|image_pad|>."}, "chosen"),
        ("dpo", {"tools": "[]"}, "tools"),
        ("kto", {"label": None}, "label"),
        ("kto", {"completion": None}, "completion"),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_named_before_the_first_step(
    method, change, key, folder, tiny_vlm, tmp_path
):
    row = {"prompt": "What?", "image": str(folder / "0.png"), "where": "mine, line 7"}
    row |= (
        {"chosen": "a river.", "rejected": "trees."} if method == "dpo" else {"completion": "a river.", "label": True}
    )
    data = Dataset.from_list([{**row, **change}])
    with pytest.raises(DataError) as error:
        ours(method, tiny_vlm, folder, tmp_path, data=data).train()
    assert (error.value.key, error.value.where) == (key, "mine, line 7")


@pytest.mark.parametrize(
    ("method", "given", "key"),
    [
        ("dpo", {"precompute_ref_log_probs": True}, "precompute_ref_log_probs"),
        ("dpo", {"loss_type": ["exo_pair"]}, ""),
        ("dpo", {"truncation_mode": "keep_end", "max_length": 64}, "truncation_mode"),
        ("kto", {"per_device_train_batch_size": 1}, ""),
        ("kto", {"train_sampling_strategy": "random"}, "train_sampling_strategy"),
    ],
)
def test_options_that_trl_refuses_are_a_sentence(method, given, key, folder, tiny_vlm, tmp_path):
    with pytest.raises(OptionError) as error:
        ours(method, tiny_vlm, folder, tmp_path, **given)
    assert error.value.key == key or not key


def test_other_faults_keep_their_traceback(folder, tiny_vlm, tmp_path):
    with pytest.raises(OptionError) as error:
        ours("dpo", tiny_vlm, folder, tmp_path, sync_ref_model=True).train(resume_from_checkpoint=True)
    assert error.value.key == "sync_ref_model"
    with pytest.raises(ValueError, match="mine") as error:
        VisionDPOTrainer(
            tiny_vlm,
            args=VisionDPOConfig(**options(tmp_path)),
            train_dataset=load_dpo(folder / "dpo.jsonl"),
            callbacks=[Broken],
        )
    assert not isinstance(error.value, OptionError)


class Broken:
    """A callback of the caller's that fails."""

    def __init__(self):
        raise ValueError("mine")


def command(method, data, model, out, *flags):
    argv = [method, "--dataset_name", data, "--model_name_or_path", model, "--output_dir", out, *QUICK, *flags]
    return cli.main([*map(str, argv), "--per_device_train_batch_size", "2", "--max_steps", "2"])


@pytest.mark.parametrize(
    ("method", "form"), [("dpo", "dpo"), ("kto", "kto"), pytest.param("kto", "dpo", marks=pytest.mark.slow)]
)
def test_the_commands_train_on_what_data_dpo_writes(method, form, folder, tiny_vlm, tmp_path, capsys):
    file, out = folder / f"{form}.jsonl", tmp_path / "out"
    evaluated = ["--eval_dataset_name", file, "--eval_strategy", "steps", "--eval_steps", "1"]
    assert command(method, file, tiny_vlm, out, *evaluated, "--learning_rate", "1e-3", "--beta", "0.5") == 0
    assert f"Policy saved to {out}" in capsys.readouterr().out
    results = json.loads((out / "eval_results.json").read_text())
    assert results["eval_rewards/margins"] > 0 and results["eval_loss"] < (0.693 if method == "dpo" else 0.5)
    start = AutoModelForImageTextToText.from_pretrained(tiny_vlm).state_dict()
    end = AutoModelForImageTextToText.from_pretrained(out).state_dict()
    assert any(not torch.equal(weight, start[name]) for name, weight in end.items())
    page = page_data([out])
    assert dict(page["facts"])["Steps"] == "2 of 2" and "rewards/margins" in json.dumps(page["groups"])
    assert bool(page["headline"]) is (method == "dpo")  # KTO has no accuracies
    assert cli.main(["plot", str(out)]) == 0


def test_dpo_takes_every_rejected_text_of_a_list(folder, tiny_vlm, tmp_path):
    rows = [{"image": "0.png", "prompt": "What?", "chosen": "a", "rejected": ["b", "c", "d"]}]
    (folder / "lists.jsonl").write_text(json.dumps(rows[0]) + "\n")
    data = load_preferences(folder / "lists.jsonl", None, folder, form="pairs")
    assert [row["rejected"][0]["content"][0]["text"] for row in data] == ["b", "c", "d"]
    labelled = load_preferences(folder / "lists.jsonl", None, folder, form="labelled")
    assert [(row["completion"][0]["content"][0]["text"], row["label"]) for row in labelled] == [
        ("a", True),
        ("b", False),
        ("c", False),
        ("d", False),
    ]
    assert command("dpo", folder / "lists.jsonl", tiny_vlm, tmp_path / "out", "--max_length", "4") == 1


def test_kto_shuffles_so_that_the_answers_of_a_pair_are_apart(folder, tiny_vlm, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(VisionKTOTrainer, "train", lambda self, **_: seen.append(self.train_dataset["label"][:]))
    monkeypatch.setattr(VisionKTOTrainer, "save_model", lambda self, *_: None)
    for seed in (1, 1, 2):
        assert command("kto", folder / "dpo.jsonl", tiny_vlm, tmp_path / f"{len(seen)}", "--seed", seed) == 0
    assert seen[0] == seen[1] != seen[2] and sorted(seen[0]) == [False] * 6 + [True] * 6 != seen[0]


@pytest.mark.parametrize(
    ("good", "count", "desirable", "advised"),
    [(6, 12, 1.0, ""), (4, 7, 1.0, ""), (1, 4, 1.0, "3.00 to 4.00"), (1, 4, 3.5, ""), (9, 12, 1.0, "0.33 to 0.44")],
)
def test_kto_says_which_weights_the_counts_ask_for(good, count, desirable, advised, tmp_path):
    args = VisionKTOConfig(**options(tmp_path, desirable_weight=desirable))
    line = balance(good, count, args)
    assert line.startswith(f"{good} good answers, {count - good} bad ones") and line.endswith(
        f"--desirable_weight {advised} is advised" if advised else "bad ones"
    )
