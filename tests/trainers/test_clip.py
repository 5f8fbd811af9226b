"""`rs-rlhf clip`: pairs of any form, learning, resuming, evaluation as `rs-rlhf eval` does it, and what is refused."""

import json
import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from helpers import picture
from PIL import Image
from transformers import AutoModel, AutoProcessor

from rs_rlhf.cli.main import main
from rs_rlhf.data.scenes.make import write_scenes
from rs_rlhf.errors import DataError, ImageError
from rs_rlhf.imagery.raster import ImageOptions
from rs_rlhf.imagery.trust import seal
from rs_rlhf.models.clip import ClipModel
from rs_rlhf.models.tiny_clip import save_tiny_clip
from rs_rlhf.trainers.clip import ClipCollator, ClipTrainer, VisionClipConfig
from rs_rlhf.trainers.data.clip import ImageTextPairs, load_pairs

RETRIEVAL = "title: t\ntask: retrieval\nlayout: images\npath: scenes\nsplit: validation\nsource: drawn\n"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder of scenes, a tiny CLIP and a tiny SigLIP, and a benchmark of retrieval."""
    folder = tmp_path_factory.mktemp("clip")
    write_scenes(folder / "scenes", 120, 40, size=64)
    texts = [text for line in open(folder / "scenes" / "train.jsonl") for text in json.loads(line)["captions"]]
    for family in ("clip", "siglip"):
        save_tiny_clip(folder / family, texts, family=family, image_size=32, max_length=24)
    siglip = AutoModel.from_pretrained(folder / "siglip")
    with torch.no_grad():  # where SigLIP starts; transformers starts from 1 and 0
        siglip.logit_scale.fill_(math.log(10))
        siglip.logit_bias.fill_(-10)
    siglip.save_pretrained(folder / "siglip")
    (folder / "found.yaml").write_text(RETRIEVAL)
    return folder


def command(work, out, *flags, model="clip", data=None):
    """The command's arguments."""
    source = [str(data)] if data else [str(work / "scenes"), "--dataset_train_split", "train"]
    return [
        "clip",
        "--model_name_or_path",
        str(work / model),
        "--dataset_name",
        *source,
        "--output_dir",
        str(out),
        "--use_cpu",
        "true",
        "--disable_tqdm",
        "true",
        "--per_device_train_batch_size",
        "24",
        "--learning_rate",
        "1e-3",
        "--logging_steps",
        "1",
        "--save_strategy",
        "no",
        *flags,
    ]


def history(out):
    return json.loads((out / "trainer_state.json").read_text())["log_history"]


def figures(out, name):
    return [entry[name] for entry in history(out) if name in entry]


def pairs_of(n, folder=None):
    rows = []
    for i in range(n):
        image = picture(i, 40, 40)
        if folder is not None:
            image.save(folder / f"{i}.png")
            image = str(folder / f"{i}.png")
        rows.append({"image": image, "texts": [f"a river {i} .", f"many trees {i}"], "where": f"row {i}"})
    return ImageTextPairs(rows)


def make_trainer(work, out, pairs, model="clip", **options):
    defaults = dict(
        max_steps=2,
        use_cpu=True,
        report_to="none",
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        seed=1,
    )
    args = VisionClipConfig(output_dir=str(out), **(defaults | options))
    return ClipTrainer(
        AutoModel.from_pretrained(work / model), args, AutoProcessor.from_pretrained(work / model), pairs
    )


def test_the_caller_s_config_is_not_changed(work, tmp_path):
    args = VisionClipConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", max_steps=1)
    before = deepcopy(args)
    path = work / "clip"
    made = ClipTrainer(AutoModel.from_pretrained(path), args, AutoProcessor.from_pretrained(path), pairs_of(8))
    made.args.seed = 5
    assert args == before


@pytest.mark.parametrize("model", ["clip", pytest.param("siglip", marks=pytest.mark.slow)])
def test_a_tiny_model_learns_scenes_and_is_evaluated_as_by_rs_rlhf_eval(work, tmp_path, model, capsys):
    out = tmp_path / "out"
    flags = [
        "--eval_tasks",
        "scenes",
        str(work / "found.yaml"),
        "--eval_data_root",
        str(work),
        "--eval_on_start",
        "true",
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "40",
        "--max_steps",
        "80",
        "--warmup_steps",
        "5",
        "--save_strategy",
        "steps",
        "--save_steps",
        "40",
    ]
    assert main(command(work, out, *flags, model=model)) == 0
    told = capsys.readouterr().out
    assert "600 pairs of 120 images" in told and f"rs-rlhf eval --model {out} --model-type clip" in told
    losses = figures(out, "loss")
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:3])
    for name in ("eval_scenes_top1", "eval_found_text_to_image_R@10"):
        values = figures(out, name)
        assert len(values) == 3 and values[-1] > values[0] + 0.15, (name, values)
    # A checkpoint is a whole model: with its processor, and the figures of the training are those of the command.
    for folder, at in ((out / "checkpoint-40", 1), (out, 2)):
        assert (
            main(
                [
                    "eval",
                    "--model",
                    str(folder),
                    "--task",
                    f"scenes,{work / 'found.yaml'}",
                    "--model_type",
                    "clip",
                    "--data_root",
                    str(work),
                    "--out",
                    str(tmp_path / f"eval{at}"),
                ]
            )
            == 0
        )
        tasks = json.loads((tmp_path / f"eval{at}" / "results.json").read_text())["tasks"]
        for task in ("scenes", "found"):
            for name, value in tasks[task]["metrics"].items():
                assert figures(out, f"eval_{task}_{name}")[at] == pytest.approx(value, abs=1e-6), (task, name)
    saved = json.loads((out / "eval_results.json").read_text())
    assert saved["eval_scenes_top1"] == figures(out, "eval_scenes_top1")[-1]


@pytest.mark.parametrize("chunk", [[], ["--grad_cache_chunk_size", "10"]])
def test_resumed_is_as_uninterrupted(work, tmp_path, chunk):
    """Over the end of an epoch (25 steps of 24 pairs), with augmentation, whose draws depend on the epoch."""
    flags = [
        "--augment",
        "true",
        "--lr_scheduler_type",
        "constant",
        "--max_train_samples",
        "30",
        "--dataloader_num_workers",
        "1",
        *chunk,
    ]
    saved = ["--save_strategy", "steps", "--save_steps", "5"]
    assert main(command(work, tmp_path / "whole", *flags, "--max_steps", "9")) == 0
    assert main(command(work, tmp_path / "broken", *flags, *saved, "--max_steps", "5")) == 0
    assert (
        main(
            command(work, tmp_path / "broken", *flags, *saved, "--max_steps", "9", "--resume_from_checkpoint", "true")
        )
        == 0
    )
    losses = figures(tmp_path / "whole", "loss")
    assert len(losses) == 9 and len(set(losses)) == 9
    assert figures(tmp_path / "broken", "loss") == pytest.approx(losses, abs=1e-6)
    whole, broken = (AutoModel.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "broken"))
    for name, weight in whole.items():
        torch.testing.assert_close(broken[name], weight, atol=1e-6, rtol=0)


def test_every_text_is_a_pair_with_its_image(tmp_path):
    picture(0).save(tmp_path / "a.png")
    picture(1).save(tmp_path / "b.png")
    rows = [
        {"image": "a.png", "captions": ["a river .", "many trees ."]},
        {
            "image": "b.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": "a port"},
                {"from": "human", "value": "Where?"},
                {"from": "gpt", "value": "at sea"},
            ],
        },
        {"image": "a.png", "caption": "a bridge ."},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = load_pairs(str(tmp_path / "rows.jsonl"))
    assert [pairs[i]["text"] for i in range(len(pairs))] == [
        "a river .",
        "many trees .",
        "a port",
        "at sea",
        "a bridge .",
    ]
    assert [pairs[i]["image"]["path"][-5:] for i in range(5)] == ["a.png", "a.png", "b.png", "b.png", "a.png"]
    assert [pairs[i]["pair"] for i in range(5)] == list(range(5))
    assert len(load_pairs(str(tmp_path / "rows.jsonl"), limit=2).rows) == 2
    # A file that changes without changing its size is read anew.
    (tmp_path / "rows.jsonl").write_text((tmp_path / "rows.jsonl").read_text().replace("a river .", "a rover ."))
    assert load_pairs(str(tmp_path / "rows.jsonl"))[0]["text"] == "a rover ."


def test_a_curated_folder_works_as_it_is(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "input").mkdir()
    picture(0).save(tmp_path / "input" / "a.png")
    (tmp_path / "kept" / "train.jsonl").write_text(json.dumps({"image": "a.png", "captions": ["a river ."]}) + "\n")
    with pytest.raises(DataError, match=r"a\.png"):
        load_pairs(str(tmp_path / "kept"))
    root = str(tmp_path / "input")
    told = {"version": 1, "image_root": root, "image_root_seal": seal(root)}
    (tmp_path / "kept" / "curation.json").write_text(json.dumps(told))
    assert load_pairs(str(tmp_path / "kept"))[0]["image"]["path"] == str(tmp_path / "input" / "a.png")


def test_a_folder_with_held_out_files_needs_a_split(work):
    with pytest.raises(DataError, match=r"train\.jsonl.*validation\.jsonl.*--dataset_train_split train"):
        load_pairs(str(work / "scenes"))


def test_images_inside_parquet_stay_bytes_until_they_are_read(work, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    picture(3, 40, 40).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    table = pa.table({"image": [{"bytes": content, "path": "x.png"}], "caption": ["a river ."]})
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet")
    pairs = load_pairs(str(tmp_path / "data"))
    assert pairs[0]["image"]["bytes"] == content
    clip = ClipModel(AutoModel.from_pretrained(work / "clip"), AutoProcessor.from_pretrained(work / "clip"))
    batch = ClipCollator(clip, ImageOptions())([pairs[0]])
    torch.testing.assert_close(
        batch["pixel_values"],
        clip.processor.image_processor(images=[picture(3, 40, 40)], return_tensors="pt")["pixel_values"],
    )


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"image": "gone.png", "caption": "a river ."}, "gone.png"),
        ({"image": "a.png", "caption": " "}, "empty text"),
        ({"caption": "a river ."}, "0 images, expected one"),
        ({"images": ["a.png", "a.png"], "captions": ["a river ."]}, "2 images, expected one"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(work, tmp_path, capsys, row, told):
    picture(0).save(tmp_path / "a.png")
    rows = [{"image": "a.png", "caption": "fine"}, row]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert main(command(work, tmp_path / "out", data=tmp_path / "rows.jsonl")) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("rs-rlhf clip: ") and "rows.jsonl" in said and told in said


def test_an_image_that_cannot_be_decoded_is_named_when_it_is_read(work, tmp_path):
    pairs = pairs_of(8, tmp_path)
    (tmp_path / "5.png").write_bytes((tmp_path / "5.png").read_bytes()[:100])
    with pytest.raises(ImageError, match=r"row 5.*5\.png"):
        make_trainer(work, tmp_path / "out", pairs, max_steps=4).train()


def test_the_same_picture_or_text_is_known_whatever_its_file_and_case(work, tmp_path):
    picture(0, 40, 40).save(tmp_path / "a.png")
    picture(0, 40, 40).save(tmp_path / "b.bmp")
    rows = [
        {"image": str(tmp_path / "a.png"), "text": "A river .", "where": "", "pair": 0},
        {"image": str(tmp_path / "b.bmp"), "text": "a port", "where": "", "pair": 1},
        {"image": picture(1, 40, 40), "text": "a  River .", "where": "", "pair": 2},
    ]
    clip = ClipModel(AutoModel.from_pretrained(work / "clip"), AutoProcessor.from_pretrained(work / "clip"))
    keys = ClipCollator(clip, ImageOptions())(rows)["keys"]
    assert keys[0, 0] == keys[1, 0] != keys[2, 0] and keys[0, 1] == keys[2, 1] != keys[1, 1]
    assert torch.equal(ClipCollator(clip, ImageOptions(), augment=True)(rows)["keys"], keys)
    assert "keys" not in ClipCollator(clip, ImageOptions(), keys=False)(rows)


def test_masking_takes_the_same_pairs_out_of_the_loss_of_the_trainer(work, tmp_path):
    rows = [
        {"image": picture(0, 40, 40), "texts": ["a river .", "a port"], "where": ""},
        {"image": picture(1, 40, 40), "texts": ["many trees"], "where": ""},
    ]
    pairs = ImageTextPairs(rows)
    losses = []
    for masked in (True, False):
        trainer = make_trainer(work, tmp_path, pairs, per_device_train_batch_size=3, mask_duplicates=masked)
        trainer.model.eval()
        batch = trainer.data_collator([pairs[i] for i in range(3)])
        losses.append(trainer.compute_loss(trainer.model, dict(batch)).item())
    assert losses[1] == pytest.approx(trainer.model(**batch, return_loss=True).loss.item(), abs=1e-5)
    assert losses[0] < losses[1] - 0.1


@pytest.mark.parametrize("model", ["clip", "siglip"])
def test_only_matrices_decay(work, tmp_path, model):
    trainer = make_trainer(work, tmp_path, pairs_of(8), model=model, weight_decay=1.0)
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    assert "text_model.encoder.layers.0.mlp.fc1.weight" in decayed
    rest = {name for name, _ in trainer.model.named_parameters()} - decayed
    assert {"logit_scale", "text_model.encoder.layers.0.layer_norm1.weight"} <= rest
    assert not any("bias" in name or "norm" in name for name in decayed)
    optimizer = trainer.create_optimizer()
    sizes = {group["weight_decay"]: sum(one.numel() for one in group["params"]) for group in optimizer.param_groups}
    assert sizes[1.0] == sum(one.numel() for name, one in trainer.model.named_parameters() if name in decayed)


@pytest.mark.parametrize(("model", "limited"), [("clip", True), ("siglip", False)])
def test_clip_scales_its_cosines_by_100_at_most(work, tmp_path, model, limited):
    trainer = make_trainer(work, tmp_path, pairs_of(8), model=model)
    with torch.no_grad():
        trainer.model.logit_scale.fill_(5.0)
    trainer.train()
    scales = [entry["logit_scale"] for entry in trainer.state.log_history if "loss" in entry]
    assert (max(scales) <= 100.001) == limited and trainer.model.logit_scale.item() > 4.5


def test_a_trained_siglip_moves_its_bias_and_logs_its_scale(work, tmp_path):
    trainer = make_trainer(work, tmp_path, pairs_of(8), model="siglip")
    before = trainer.model.logit_bias.item()
    trainer.train()
    assert trainer.model.logit_bias.item() != before
    logged = [entry["logit_scale"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged[-1] == pytest.approx(trainer.model.logit_scale.exp().item(), rel=1e-5)


def test_long_texts_are_told_of(work, tmp_path, recwarn):
    picture(0).save(tmp_path / "a.png")
    rows = [{"image": "a.png", "captions": ["river " * 60, "a port", "a lake", "trees"]}]
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]) + "\n")
    flags = ["--per_device_train_batch_size", "4", "--max_steps", "1"]
    assert main(command(work, tmp_path / "out", *flags, data=tmp_path / "rows.jsonl")) == 0
    assert any(
        "25.0% of the texts (of 4 looked at) are longer than the model's 24 tokens" in str(one.message)
        for one in recwarn
    )


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--per_device_train_batch_size", "601"], "600 pairs do not fill one batch of 601"),
        (["--eval_strategy", "epoch"], "give --eval_tasks, or set it to no"),
        (["--min_pixels", "100"], "min_pixels and max_pixels are not read"),
        (["--grad_cache_chunk_size", "0"], "grad_cache_chunk_size is 0"),
        (["--use_peft"], "use_peft, load_in_4bit and load_in_8bit are not supported"),
        (["--max_train_samples", "0"], "max_train_samples is 0"),
        (["--eval_tasks", "scene"], "did you mean 'scenes'"),
        (["--eval_tasks", "rsvqa-lr"], "for models of type vlm, not clip"),
        (["--eval_tasks", "aid"], "no data"),
        (["--grad_cache_chunks", "8"], "did you mean --grad_cache_chunk_size"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_sentence(work, tmp_path, capsys, flags, told):
    data = ["--eval_data_root", str(work)]
    assert main(command(work, tmp_path / "out", *data, *flags)) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("rs-rlhf clip: ") and told in said
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_models_that_are_no_dual_encoder_are_refused(work, tmp_path, capsys, tiny_vlm):
    assert main(command(work, tmp_path / "out", "--model_name_or_path", str(tiny_vlm))) == 1
    assert "is no dual encoder" in capsys.readouterr().err
    assert main(command(work, tmp_path / "out", "--model_name_or_path", str(tmp_path / "none"))) == 1
    assert "none is neither a folder nor named as a model of the hub" in capsys.readouterr().err
    clip = AutoModel.from_pretrained(work / "clip")
    del clip.logit_scale
    with pytest.raises(ValueError, match="no logit_scale"):
        ClipTrainer(
            clip,
            VisionClipConfig(output_dir=str(tmp_path), use_cpu=True),
            AutoProcessor.from_pretrained(work / "clip"),
        )


def test_augmentation_turns_what_speaks_of_no_direction_and_changes_with_the_epoch(work, tmp_path):
    trainer = make_trainer(work, tmp_path, pairs_of(8), augment=True)
    collator = trainer.data_collator
    image = Image.fromarray(np.arange(40 * 40 * 3, dtype=np.uint8).reshape(40, 40, 3))
    seen = {}
    for text in ("a river .", "a river on the left ."):
        row = {"image": image, "text": text, "where": "", "pair": 3}
        seen[text] = []
        for collator.epoch in range(6):
            seen[text].append(collator([row])["pixel_values"])
    assert len({one.numpy().tobytes() for one in seen["a river ."]}) > 2
    assert len({one.numpy().tobytes() for one in seen["a river on the left ."]}) == 1


def test_too_few_pairs_are_allowed_where_the_last_batch_is_kept(work, tmp_path):
    with pytest.raises(DataError, match="16 pairs do not fill one batch of 20"):
        make_trainer(work, tmp_path, pairs_of(8), per_device_train_batch_size=20)
    trainer = make_trainer(work, tmp_path, pairs_of(8), per_device_train_batch_size=20, dataloader_drop_last=False)
    trainer.train()
    assert trainer.state.global_step == 2
