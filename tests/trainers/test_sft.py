"""Supervised fine-tuning: rows of every form, which tokens carry loss, what is trained, resuming, the command."""

import json
import os
from copy import deepcopy

import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets import Dataset, DatasetDict
from helpers import picture, warm
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from trl import SFTConfig

from rs_rlhf.cli import main as cli
from rs_rlhf.data.image_text import image_text_row
from rs_rlhf.errors import DataError, ImageError
from rs_rlhf.models.collator import GroupCollator
from rs_rlhf.trainers.data.sft import (
    LABEL_QUESTION,
    conversation_rows,
    default_split,
    holds_labelled_images,
    load_rows,
    text_rows,
)
from rs_rlhf.trainers.sft import (
    SFTCollator,
    VisionSFTConfig,
    VisionSFTTrainer,
    train_merger,
)

MERGER = {
    f"visual.merger.{name}"
    for name in ("ln_q.weight", "ln_q.bias", "mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias")
}
CONVERSATION = {
    "image": ["0.png", "1.png"],
    "conversations": [
        {"from": "system", "value": "be brief"},
        {"from": "human", "value": "<image>\nwhat is it?"},
        {"from": "gpt", "value": "a river"},
        {"from": "human", "value": "and <image> this?"},
        {"from": "gpt", "value": "a road"},
        {"from": "human", "value": "thanks"},
    ],
}
MIXED = [
    CONVERSATION,
    {"image": "2.png", "captions": ["a scene.", "trees.", "a scene."], "label": "forest"},
    {"image": "3.png", "question": "rural or urban?", "answer": "rural"},
    {"prompt": "one and one?", "completion": "two"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(8):
        picture(i).point(lambda v, i=i: v // 4 + (192 if i % 2 else 0)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    out = []
    for i in range(8):
        label = "light" if i % 2 else "dark"
        out.append({"image": str(folder / f"{i}.png"), "label": label, "captions": [f"a {label} scene.", "a scene."]})
    return out


def trainer(tiny_vlm, path, rows, peft_config=None, **options):
    defaults = dict(
        max_steps=2,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to="none",
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        per_device_train_batch_size=4,
        learning_rate=3e-3,
        seed=1,
    )
    args = VisionSFTConfig(output_dir=str(path), **(defaults | options))
    return VisionSFTTrainer(
        model=AutoModelForImageTextToText.from_pretrained(tiny_vlm),
        args=args,
        processing_class=AutoProcessor.from_pretrained(tiny_vlm),
        train_dataset=Dataset.from_list(conversation_rows(rows)),
        eval_dataset=Dataset.from_list(conversation_rows(rows, labels_only=True)),
        peft_config=peft_config,
    )


def test_a_script_for_trl_works_with_our_class(tiny_vlm, rows, tmp_path):
    """A plain config, a model by name, a tokenizer; none of the caller's objects is changed."""
    plain = {"bf16": False, "use_cpu": True, "gradient_checkpointing": False, "report_to": "none", "seed": 1}
    plain |= {"max_steps": 2, "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, "max_length": None}
    data = Dataset.from_list(conversation_rows(rows))
    losses = []
    for cls, loader in ((SFTConfig, AutoTokenizer), (VisionSFTConfig, AutoProcessor)):
        args = cls(str(tmp_path), **plain, model_init_kwargs={"dtype": "float32"})
        lora = LoraConfig(r=2, target_modules=["q_proj"])
        before = deepcopy((args, lora))
        processor = loader.from_pretrained(tiny_vlm)
        made = VisionSFTTrainer(tiny_vlm, args, None, data, processing_class=processor, peft_config=lora)
        made.train()
        assert (args, lora) == before
        losses.append([entry["loss"] for entry in made.state.log_history if "loss" in entry])
    assert len(losses[0]) == 2 and losses[0] == losses[1]
    args = VisionSFTConfig(str(tmp_path), **plain)
    own = VisionSFTTrainer(AutoModelForImageTextToText.from_pretrained(tiny_vlm), args, train_dataset=data)
    assert type(own.data_collator) is SFTCollator and own.processing_class.image_processor is not None


def test_rows_ask_for_the_class_then_for_a_caption(rows):
    made = conversation_rows(rows[:1])
    assert [len(row["completion"]) for row in made] == [3, 3] and made[0]["prompt"][0]["content"] == LABEL_QUESTION
    assert [m["content"] for m in made[1]["completion"]][0::2] == ["dark", "a scene."]
    (named,) = conversation_rows([{"image": "a.png", "label": "StorageTanks"}])
    assert named["completion"] == [{"role": "assistant", "content": "storage tanks"}]
    (told,) = conversation_rows([{"image": "a.png", "captions": ["a scene.", "a scene."]}])
    assert [told["prompt"][0]["content"], told["completion"][0]["content"]] == ["Describe the image.", "a scene."]
    (only,) = conversation_rows(rows[:1], labels_only=True)
    assert [m["content"] for m in only["completion"]] == ["dark"]


def test_labels_cover_the_answers_only(tiny_vlm, rows, tmp_path):
    made = trainer(tiny_vlm, tmp_path, rows)
    batch = made.data_collator([made.train_dataset[0], made.train_dataset[2]])
    tokenizer = made.processing_class.tokenizer
    learnt = tokenizer.decode(batch["labels"][0][batch["labels"][0] != -100])
    assert learnt == "dark<|im_end|>\na dark scene.<|im_end|>\n"  # and not the request for a description
    assert batch["pixel_values"].shape[0] == batch["image_grid_thw"].prod(1).sum()


def test_exact_match_is_what_greedy_decoding_gives(tiny_vlm, rows, tmp_path):
    made = trainer(tiny_vlm, tmp_path, rows, max_steps=60, per_device_train_batch_size=8)
    assert made.evaluate()["eval_exact_match"] == 0.0
    made.train()
    metrics = made.evaluate()
    right = 0
    for row in made.eval_dataset:
        batch = made.eval_collator([row])
        start = int((batch["labels"][0] == -100).sum())
        inputs = {
            k: v[:, :start] if k in ("input_ids", "attention_mask", "mm_token_type_ids") else v
            for k, v in batch.items()
            if k != "labels"
        }
        out = made.model.generate(**inputs, max_new_tokens=8, do_sample=False)
        answer = made.processing_class.tokenizer.decode(out[0, start:], skip_special_tokens=True).strip()
        right += answer == row["completion"][0]["content"]
    assert metrics["eval_exact_match"] == pytest.approx(right / len(made.eval_dataset)) and right > 0


@pytest.mark.parametrize("adapter", [False, True])
def test_resume_gives_the_losses_of_an_unbroken_run(adapter, tiny_vlm, rows, tmp_path):
    """transformers alone resumes a Qwen2-VL from random weights, with only a warning about the key names."""
    options = dict(lr_scheduler_type="constant", save_strategy="steps", save_steps=2, augment=True)

    def made(folder, steps):
        lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["merger"])
        return trainer(tiny_vlm, tmp_path / folder, rows, lora if adapter else None, max_steps=steps, **options)

    whole = made("whole", 5)
    whole.train()
    made("broken", 3).train()
    resumed = made("broken", 5)
    resumed.train(resume_from_checkpoint=True)
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (whole, resumed)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6) and len(losses[1]) == 5


def test_augmentation_changes_with_the_epoch_and_stays_out_of_evaluation(tiny_vlm, rows, tmp_path):
    made = trainer(tiny_vlm, tmp_path, rows, augment=True)
    row = made.train_dataset[0]
    layout = made.data_collator.groups
    seen = []
    for layout.epoch in range(6):
        seen.append(made.data_collator([row])["pixel_values"])
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(seen, seen[1:], strict=False))
    loader = made.get_eval_dataloader()
    assert loader.collate_fn is made.eval_collator and not made.eval_collator.groups.augment


# --- image-text rows ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def collator(tiny_vlm):
    return SFTCollator(GroupCollator(AutoProcessor.from_pretrained(tiny_vlm)))


def read(folder, *raw):
    """The rows as a training set has them: written by Arrow, which gives every part a `text`."""
    rows = (image_text_row(row, f"a:{i}", root=str(folder), where=f"a, row {i}") for i, row in enumerate(raw))
    return list(Dataset.from_list(list(text_rows(rows))))


def learnt(collator, rows):
    """For every row the texts that carry loss, and all of its text with a `#` for the tokens of an image."""
    batch, tokenizer = collator(rows), collator.groups.tokenizer
    out = []
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        trained = labels != -100
        assert torch.equal(labels[trained], ids[trained]) and mask[trained].all()
        runs = torch.tensor_split(ids, (trained[1:] != trained[:-1]).nonzero().flatten() + 1)
        whole = tokenizer.decode(ids[mask.bool()]).replace("<|image_pad|>" * 6, "#")
        out.append(([tokenizer.decode(run) for run in runs[1::2]], whole))
    return out


def test_only_the_assistants_turns_carry_loss(folder, collator):
    (parts, whole), *others = learnt(collator, read(folder, *MIXED))
    assert parts == ["a river<|im_end|>\n", "a road<|im_end|>\n"]
    assert whole == (
        "<|im_start|>system\nbe brief<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|>#<|vision_end|>what is it?<|im_end|>\n"
        "<|im_start|>assistant\na river<|im_end|>\n"
        "<|im_start|>user\nand <|vision_start|>#<|vision_end|> this?<|im_end|>\n"
        "<|im_start|>assistant\na road<|im_end|>\n"
    )
    assert [parts for parts, _ in others] == [[f"{t}<|im_end|>\n"] for t in ("a scene.", "trees.", "rural", "two")]
    assert all("#<|vision_end|>Describe the image.<|im_end|>" in whole for _, whole in others[:2])
    assert "#<|vision_end|>rural or urban?<|im_end|>" in others[2][1]
    assert others[3][1].startswith("<|im_start|>user\none and one?<|im_end|>")


def test_the_answers_in_a_prompt_are_context(folder, collator):
    """As in TRL: `messages` are learnt from the first answer on, of `prompt` and `completion` the completion alone."""
    turns = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, "abcd", strict=True)]
    given = {"prompt": turns[:3], "completion": turns[3:], "images": ["0.png"]}
    chat = {"messages": turns, "image": "0.png"}
    (messages, whole), (completion, same) = learnt(collator, read(folder, chat, given))
    assert messages == ["b<|im_end|>\n", "d<|im_end|>\n"] and completion == ["d<|im_end|>\n"] and whole == same


def test_images_stand_in_the_order_of_their_places(folder, collator):
    swapped = {**CONVERSATION, "image": ["1.png", "0.png"]}
    first, second, both = (
        collator(read(folder, *rows)) for rows in ([CONVERSATION], [swapped], [CONVERSATION, swapped])
    )
    a, b = first["pixel_values"].chunk(2)
    assert not torch.equal(a, b) and torch.equal(second["pixel_values"], torch.cat([b, a]))
    assert torch.equal(both["pixel_values"], torch.cat([a, b, b, a])) and len(both["image_grid_thw"]) == 4


def test_a_template_that_rewrites_earlier_turns_is_refused(folder, tiny_vlm):
    processor = AutoProcessor.from_pretrained(tiny_vlm)
    start = "message['role'] + '\n' }}"  # of a turn, after which templates of reasoning models leave thoughts out
    mark = "{% if message['role'] == 'assistant' and not loop.last %}…{% endif %}"
    processor.chat_template = processor.chat_template.replace(start, start + mark)
    collator = SFTCollator(GroupCollator(processor))
    with pytest.raises(DataError, match="a, row 0: the chat template writes turn 3 differently when turns follow it"):
        collator(read(folder, CONVERSATION))
    assert learnt(collator, read(folder, MIXED[2]))[0][0] == ["rural<|im_end|>\n"]  # one answer needs no such place


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_a_batch_of_texts_runs_the_vision_tower_to_no_effect(family, tiny_vlm, folder, tmp_path):
    from rs_rlhf.models.tiny_vlm import save_tiny_vlm

    path = tiny_vlm if family == "qwen2_vl" else save_tiny_vlm(tmp_path, family=family)
    model = AutoModelForImageTextToText.from_pretrained(path)
    batch = SFTCollator(GroupCollator(AutoProcessor.from_pretrained(path)))(read(folder, MIXED[3], MIXED[3]))
    assert batch["image_grid_thw"].shape == (1, 3)
    plain = {name: batch[name][:, :-1] for name in ("input_ids", "attention_mask", "labels")}
    assert torch.equal(model(**batch).loss, model(**plain).loss)
    train_merger(model)
    model(**batch).loss.backward()
    gradients = [weight.grad for weight in model.parameters() if weight.requires_grad]
    assert gradients and all(gradient is not None and not gradient.any() for gradient in gradients)


# --- reading -----------------------------------------------------------------------------------------------------


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("rows", "labelled"),
    [
        ([{"image": "a", "label": "x"}], True),
        ([{"image": "a", "captions": ["b"]}, {"image": "a", "label": "x"}], True),
        ([{"image": "a", "caption": "b", "answer": None, "label": "x"}], True),
        ([{"image": "a", "captions": ["b"]}], False),
        ([{"image": "a", "label": "x"}, {"question": "b", "answer": "c"}], False),
        ([{"image": "a", "label": "x", "text": "b"}], False),
        ([CONVERSATION], False),
    ],
)
def test_labelled_images_are_told_from_other_data(rows, labelled, tmp_path):
    file = write(tmp_path / "train.jsonl", *rows)
    assert holds_labelled_images(str(file)) == holds_labelled_images(str(tmp_path), "train") == labelled
    assert not holds_labelled_images(str(file), None, {"image"})  # a column is named: as it stands
    (tmp_path / "curation.json").write_text("{}")
    assert not holds_labelled_images(str(tmp_path), "train")


def test_the_columns_of_a_table_tell_labelled_images(tmp_path):
    for columns, labelled in (
        ("image,label", True),
        ("image,caption,label", True),
        ("image,label,answer", False),
        ("image,caption", False),
        ("filepath,title", False),
    ):
        (tmp_path / "a.csv").write_text(f"{columns}\n")
        table = pyarrow.table({name: pyarrow.nulls(1, pyarrow.string()) for name in columns.split(",")})
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
        for file in ("a.csv", "a.parquet"):
            assert holds_labelled_images(str(tmp_path / file)) == labelled


def test_a_folder_of_images_by_class_is_labelled_whatever_else_it_holds(tmp_path):
    (tmp_path / "train" / "river").mkdir(parents=True)
    picture(0).save(tmp_path / "train" / "river" / "0.png")
    (tmp_path / "dataset_info.json").write_text("{}")
    assert holds_labelled_images(str(tmp_path)) and default_split(str(tmp_path)) is None
    (tmp_path / "dataset_info.json").unlink()
    assert default_split(str(tmp_path)) == "train"
    (row,) = load_rows(str(tmp_path), "train")
    assert row["completion"][0]["content"] == "river"
    (tmp_path / "llava.json").write_text(json.dumps([CONVERSATION]))
    assert not holds_labelled_images(str(tmp_path)) and default_split(str(tmp_path)) is None
    write(tmp_path / "train-0.jsonl", CONVERSATION)
    assert default_split(str(tmp_path)) == "train"


def test_rows_of_every_form_are_read_from_one_file(folder, tmp_path):
    file = write(folder / "mixed.jsonl", *MIXED)
    rows = load_rows(str(file))
    assert rows["row"][:] == [0, 1, 1, 2, 3] and rows["where"][4] == f"{file}, row 3"
    assert [len(images) for images in rows["images"]] == [2, 1, 1, 1, 0]
    assert load_rows(str(file), limit=2, seed=3)["row"][:] in ([0, 1, 1], [0, 2], [0, 3], [1, 1, 2], [1, 1, 3], [2, 3])
    assert len(load_rows(str(file), limit=9)) == 5
    captions = load_rows(str(write(folder / "labelled.jsonl", MIXED[1])), columns={"text": "captions"})
    assert [row["completion"][0]["content"][0]["text"] for row in captions] == ["a scene.", "trees."]


def test_images_in_parquet_are_not_read_into_memory(folder, tmp_path):
    images = [{"bytes": (folder / f"{i}.png").read_bytes(), "path": None} for i in range(2)]
    rows = [{"image": image, "text": "a scene."} for image in images]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train-0.parquet")
    read = load_rows(str(tmp_path), "train")
    assert read[1]["images"][0]["bytes"] == images[1]["bytes"]
    assert read.cache_files and read.cache_files[0]["filename"].endswith(".arrow")


def test_a_changed_file_is_read_again(tmp_path):
    file = write(tmp_path / "a.jsonl", {"prompt": "q", "completion": "one"})
    assert load_rows(str(file))[0]["completion"][0]["content"][0]["text"] == "one"
    stat = os.stat(file)
    write(file, {"prompt": "q", "completion": "two"})
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    assert load_rows(str(file))[0]["completion"][0]["content"][0]["text"] == "two"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "image": "0.png"}, "bad.jsonl, row 1: no text column; the columns are question, image"),
        ({"conversations": [{"from": "human", "value": "q"}]}, "bad.jsonl, row 1: .* no assistant turn"),
        ({**MIXED[2], "image": "gone.png"}, "bad.jsonl, row 1: .*gone.png"),
        ({**CONVERSATION, "image": "0.png"}, "bad.jsonl, row 1: 2 image placeholders .* but 1 image"),
        ({"image": "0.png", "label": "x"}, "bad.jsonl, row 1: no text column"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(row, message, folder):
    with pytest.raises((DataError, ImageError), match=message):
        load_rows(str(write(folder / "bad.jsonl", MIXED[2], row)))


def test_a_saved_dataset_dict_is_no_folder_of_classes(folder, tmp_path):
    rows = [{"image": str(folder / f"{i}.png"), "caption": f"scene {i}"} for i in range(2)]
    DatasetDict({"train": Dataset.from_list(rows[:1]), "test": Dataset.from_list(rows)}).save_to_disk(tmp_path / "d")
    assert not holds_labelled_images(str(tmp_path / "d"), "train")
    for split, count in (("train", 1), ("test", 2)):
        data = load_rows(str(tmp_path / "d"), split, image_root=str(folder))
        assert [row["completion"][0]["content"][0]["text"] for row in data] == [f"scene {i}" for i in range(count)]


# --- the command -------------------------------------------------------------------------------------------------

QUICK = "--use_cpu true --bf16 false --report_to none --save_strategy no --gradient_checkpointing false".split()
QUICK += "--per_device_train_batch_size 2 --learning_rate 1e-2 --warmup_steps 0 --logging_steps 1".split()


def changed(before, after):
    """Names of the weights that differ; a tied head is saved by some versions and not by others."""
    assert set(before) ^ set(after) <= {"lm_head.weight"}
    return {name for name in set(before) & set(after) if not torch.equal(before[name], after[name])}


def test_the_merger_alone_is_trained_on_what_curate_has_kept(tiny_vlm, folder, rows, tmp_path, capsys):
    """A folder as `rs-rlhf curate` writes it: its images are elsewhere, and labels of the pool are not asked for."""
    kept = tmp_path / "kept"
    kept.mkdir()
    write(kept / "pool.jsonl", *MIXED)
    (kept / "curation.json").write_text(json.dumps({"version": 1, "image_root": str(folder)}))
    pyarrow.parquet.write_table(pyarrow.table({"row_id": ["pool.jsonl:0"]}), kept / "kept_ids.parquet")
    flags = ["--dataset_name", kept, "--model_name_or_path", tiny_vlm, "--output_dir", tmp_path / "out"]
    flags += ["--eval_dataset_name", write(folder / "val.jsonl", *rows[:3]), "--eval_strategy", "epoch"]
    flags += ["--image_root", folder]  # which `curate` itself seals
    assert cli.main(["sft", *map(str, flags), "--num_train_epochs", "1", "--trainable", "merger", *QUICK]) == 0
    assert changed(load_file(f"{tiny_vlm}/model.safetensors"), load_file(tmp_path / "out/model.safetensors")) == MERGER
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == 3 and "eval_exact_match" in state["log_history"][-2]
    assert AutoProcessor.from_pretrained(tmp_path / "out").tokenizer.eos_token == "<|im_end|>"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trainable", "merger", "--use_peft"], "trainable cannot be combined with LoRA"),
        (["--trainable", "head"], "--trainable: invalid choice: 'head'"),
        (["--eval_strategy", "epoch", "--eval_dataset_name", "gone.jsonl"], "gone.jsonl: no such file or folder"),
        (["--image_column", "photo"], "row 0: no column `photo`, which is named for `image`"),
    ],
)
def test_mistakes_are_told_in_one_sentence(flags, message, folder, capsys):
    data = ["--dataset_name", str(write(folder / "some.jsonl", MIXED[2])), "--model_name_or_path", "none"]
    assert cli.main(["sft", *data, *QUICK, *flags]) == 1
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_model_without_a_merger_is_refused():
    with pytest.raises(ValueError, match="trainable is merger, but Linear has none"):
        train_merger(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("launched", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_published_stages_run_on_a_tiny_model(launched, tiny_vlm, folder, collator, tmp_path, monkeypatch):
    """recipes/qwen2-vl-7b-sft: what each stage changes, and that the adapter with its merger loads again."""
    for name, rows in {
        "rs_captions": [{"image": "0.png", "caption": "a scene."}, MIXED[2]],
        "rs_instructions": [CONVERSATION, MIXED[3]],
    }.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        write(tmp_path / "data" / name / "train.jsonl", *rows)
    flags = "--max_steps 2 --dtype float32 --dataloader_num_workers 0 --gradient_accumulation_steps 1".split()
    flags += [*QUICK, "--image_root", str(folder)]
    monkeypatch.setenv("RS_RLHF_DATA", str(tmp_path / "data"))
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # as if launched: trains in this process
        start = ["--model_name_or_path", tiny_vlm]
        assert cli.main(["sft", "--config", "qwen2-vl-7b-sft/projector", *start, *flags]) == 0
        second = ["sft", "--config", "qwen2-vl-7b-sft/lora", *flags, "--accelerate_config", "cpu_zero2"]
        assert launched or cli.main(second) == 0
    if launched:
        warm.launched([*second, "--num_processes", "2"], tmp_path, cwd=tmp_path)
    out = tmp_path / "out" / "qwen2-vl-7b-sft"
    projector = load_file(out / "projector" / "model.safetensors")
    assert changed(load_file(f"{tiny_vlm}/model.safetensors"), projector) == MERGER

    adapter = load_file(out / "lora" / "adapter_model.safetensors")
    merger = {name.partition("model.model.")[2]: weight for name, weight in adapter.items() if "lora_" not in name}
    assert set(merger) == {f"model.{name}" for name in MERGER} or set(merger) == MERGER
    for name, weight in merger.items():
        assert not torch.equal(weight, projector[name.removeprefix("model.")])
    assert all("language_model" in name for name in adapter if "lora_" in name)
    assert any(weight.any() for name, weight in adapter.items() if "lora_B" in name)

    base = AutoModelForImageTextToText.from_pretrained(out / "projector")
    batch = collator(read(folder, CONVERSATION))
    with torch.no_grad():
        before = base(**batch).logits
        trained = PeftModel.from_pretrained(base, out / "lora").merge_and_unload()
        after = trained(**batch).logits
    assert not torch.allclose(before, after, atol=1e-3)
    own = trained.model.visual.merger.state_dict()
    for name, weight in merger.items():
        assert torch.equal(own[name.partition("merger.")[2]], weight)
