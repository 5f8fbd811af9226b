"""The start of a run: what is refused when it is resumed, what may change, and which run a used folder shows."""

import json

import pytest
from helpers import picture
from peft import LoraConfig

from rs_rlhf import VisionRewardConfig, VisionRewardTrainer
from rs_rlhf.errors import OptionError
from rs_rlhf.models.tiny_vlm import save_tiny_vlm
from rs_rlhf.preferences.reader import load_preferences
from rs_rlhf.runs.plots import run_state
from rs_rlhf.runs.record import KEY, read_run, run_of
from rs_rlhf.runs.report import page_data
from rs_rlhf.runs.tables import table_part


def made(folder, change=lambda rows: rows):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"image": f"{i}.png", "chosen": f"a river {i}.", "rejected": "many trees."} for i in range(4)]
    for i in range(4):
        picture(i).save(folder / f"{i}.png")
    rows = [{**row, "image": str(folder / row["image"])} for row in change(rows)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_preferences(str(folder / "pairs.jsonl"))


def arguments(out, **options):
    quick = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "logging_steps": 1}
    quick |= {"per_device_train_batch_size": 2, "gradient_checkpointing": False, "trainable": "head", "max_steps": 2}
    return VisionRewardConfig(str(out), **quick | {"save_steps": 1, "seed": 3, "worst_pairs": 2} | options)


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_vlm):
    """A folder with a finished run of two steps in `out`, and one of an adapter in `adapted`."""
    folder = tmp_path_factory.mktemp("runs")
    data = made(folder / "data")
    VisionRewardTrainer(tiny_vlm, arguments(folder / "out"), train_dataset=data).train()
    lora = {"peft_config": LoraConfig(r=4, target_modules=["q_proj"])}
    VisionRewardTrainer(
        tiny_vlm, arguments(folder / "adapted", trainable="all", max_steps=1), train_dataset=data, **lora
    ).train()
    return folder


def resumed(place, model, data=None, out="out", peft_config=None, **options):
    given = {"train_dataset": made(place / "data") if data is None else data, "peft_config": peft_config}
    trainer = VisionRewardTrainer(str(model), arguments(place / out, **options), **given)
    trainer.train(resume_from_checkpoint=True)
    return trainer


def other_text(rows):
    return [{**rows[0], "chosen": "a lake."}, *rows[1:]]


@pytest.mark.parametrize(
    ("key", "told", "options"),
    [
        ("seed", "seed was 3, now 4", {"seed": 4}),
        ("data_seed", "data_seed was None, now 4", {"data_seed": 4}),
        ("trainable", "trainable was 'head', now 'language'", {"trainable": "language"}),
        ("image_blind", "image_blind was False, now True", {"image_blind": True}),
        ("reading.stretch", "reading.stretch was None, now 'percentile'", {"stretch": "percentile"}),
    ],
)
def test_another_option_of_the_run_is_named_with_the_way_out(key, told, options, place, tiny_vlm):
    with pytest.raises(OptionError) as error:
        resumed(place, tiny_vlm, **options)
    assert (error.value.key, error.value.where) == (key, str(place / "out" / "checkpoint-2"))
    assert error.value.detail == (
        f"holds weights of another run: {told}; set that back, choose another --output_dir, or pass "
        "--overwrite_output_dir in place of --resume_from_checkpoint to start anew."
    )


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("text", other_text),
        ("order", lambda rows: rows[::-1]),
        ("fewer", lambda rows: rows[:3]),
        ("image", lambda rows: [{**rows[0], "image": "1.png"}, *rows[1:]]),
    ],
)
def test_other_rows_are_refused(name, change, place, tiny_vlm, tmp_path):
    with pytest.raises(OptionError) as error:
        resumed(place, tiny_vlm, made(tmp_path, change))
    rows = 3 if name == "fewer" else 4
    assert error.value.key == "data" and f"now '{rows} rows" in error.value.detail and "seed" not in error.value.detail


def test_a_picture_of_another_size_in_bytes_is_another_row(place, tiny_vlm, tmp_path):
    data = made(tmp_path)
    picture(7, width=112).save(tmp_path / "2.png")
    with pytest.raises(OptionError) as error:
        resumed(place, tiny_vlm, data)
    assert error.value.key == "data"


def test_another_model_is_refused_and_the_same_files_elsewhere_are_not(place, tiny_vlm, tmp_path):
    other = save_tiny_vlm(tmp_path / "other", min_pixels=56 * 56, max_pixels=12 * 28 * 28, seed=9)
    with pytest.raises(OptionError) as error:
        resumed(place, other)
    assert error.value.key == "model" and f"now '{other}'" in error.value.detail
    same = tmp_path / "same"
    same.symlink_to(tiny_vlm)
    assert resumed(place, same).state.global_step == 2


def test_another_adapter_is_refused(place, tiny_vlm):
    lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj"])
    with pytest.raises(OptionError) as error:
        resumed(place, tiny_vlm, out="adapted", trainable="all", peft_config=lora)
    detail = error.value.detail
    assert "lora.r was 4, now 8" in detail and "lora.target_modules was ['q_proj'], now ['q_proj', 'v_proj']" in detail
    with pytest.raises(OptionError) as error:
        resumed(place, tiny_vlm, peft_config=LoraConfig(r=4, target_modules=["q_proj"]), trainable="all")
    assert "lora was None, now {" in error.value.detail


def test_what_a_user_of_trainer_changes_is_resumed(place, tiny_vlm, tmp_path):
    """Also the same rows in another folder, with evaluation rows that the first part had not."""
    data = made(tmp_path / "moved")
    changed = {"max_steps": 3, "save_steps": 3, "learning_rate": 1e-4, "lr_scheduler_type": "cosine"}
    changed |= {"per_device_train_batch_size": 1, "logging_steps": 3, "anchor_coefficient": 0.0, "augment": True}
    args = arguments(place / "out", eval_strategy="steps", eval_steps=1, **changed)
    trainer = VisionRewardTrainer(tiny_vlm, args, train_dataset=data, eval_dataset=data)
    trainer.train(resume_from_checkpoint=str(place / "out" / "checkpoint-2"))
    run = read_run(place / "out")
    assert trainer.state.global_step == 3 and [step for _, step in run.parts][-1] == 2
    assert run_of(run_state(place / "out")).id == run.id == run.parts[0][0]
    table = place / "out" / "worst_pairs" / "eval_000003.parquet"
    assert table_part(table) == run.stamp["part"]
    with pytest.raises(OptionError) as error:
        rows = made(tmp_path / "other", other_text)
        args = arguments(place / "out", eval_strategy="steps", eval_steps=1, **changed)
        VisionRewardTrainer(tiny_vlm, args, train_dataset=data, eval_dataset=rows).train(resume_from_checkpoint=True)
    assert error.value.key == "eval_data"


def test_a_checkpoint_of_before_the_record_is_resumed_with_one_note(place, tiny_vlm, tmp_path, capfd):
    out = tmp_path / "old"
    VisionRewardTrainer(tiny_vlm, arguments(out), train_dataset=made(tmp_path)).train()
    for file in out.glob("**/trainer_state.json"):
        state = json.loads(file.read_text())
        del state["stateful_callbacks"][KEY]
        file.write_text(json.dumps(state))
    (out / "rs_rlhf_run.json").unlink()
    trainer = VisionRewardTrainer(tiny_vlm, arguments(out, seed=5, max_steps=3), train_dataset=made(tmp_path))
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3
    assert capfd.readouterr().err.count("does not say of which seed, data and model it is") == 1
    assert run_state(out)["global_step"] == 3
    with pytest.raises(OptionError):
        resumed(tmp_path, tiny_vlm, made(tmp_path), out="old")


def test_a_second_run_in_a_used_folder_is_shown_and_resumed_alone(tiny_vlm, tmp_path):
    """As transformers' users expect, nothing is refused in Python."""
    data = made(tmp_path)
    evaluated = {"train_dataset": data, "eval_dataset": data}
    options = {"eval_strategy": "steps", "eval_steps": 2}
    VisionRewardTrainer(tiny_vlm, arguments(tmp_path, max_steps=4, **options), **evaluated).train()
    second = VisionRewardTrainer(tiny_vlm, arguments(tmp_path, seed=5, save_steps=2, **options), **evaluated)
    second.train()
    second.save_state()
    page = page_data([tmp_path])
    assert dict(page["facts"])["Steps"] == "2 of 2" and page["tables"][0]["steps"][-1]["step"] == 2
    assert max(step for _, curve in page_curves(page) for step, _ in curve) == 2
    again = VisionRewardTrainer(tiny_vlm, arguments(tmp_path, seed=5, max_steps=3, save_strategy="no"), **evaluated)
    with pytest.warns(UserWarning, match="checkpoint-4 is not of the run that was begun here last"):
        again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3


def page_curves(page):
    curves = [curve for group in page["groups"] for chart in group["charts"] for curve in chart["curves"]]
    return [(curve["name"], curve["points"]) for curve in curves]


def test_overwriting_in_python_removes_the_earlier_run(tiny_vlm, tmp_path):
    data = made(tmp_path / "data")
    out = tmp_path / "out"
    VisionRewardTrainer(tiny_vlm, arguments(out), train_dataset=data).train()
    (out / "notes.txt").write_text("mine")
    args = arguments(out, max_steps=1, overwrite_output_dir=True)
    VisionRewardTrainer(tiny_vlm, args, train_dataset=data).train()
    assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-1"} and (out / "notes.txt").exists()
    with pytest.raises(OptionError):
        VisionRewardTrainer(tiny_vlm, args, train_dataset=data).train(resume_from_checkpoint=True)
    assert (out / "checkpoint-1" / "model.safetensors").exists()


def test_a_run_says_what_it_was_made_of(place):
    about = read_run(place / "adapted").about
    assert about["trainer"] == "VisionRewardTrainer" and about["processes"] == 1
    assert about["positions"] == "mrope" and about["pixel_budget"] == [56 * 56, 12 * 28 * 28]
    config = about["config"]
    assert (config["seed"], config["max_steps"], config["trainable"]) == (3, 1, "all")
    assert "weight_decay" in config, "a default that matters"
    assert not {"output_dir", "shuffle_gap_samples", "hub_token"} & config.keys(), "no defaults, no places, no secrets"
    assert {"trl", "rs-rlhf"} <= about["versions"].keys()
    assert run_of(json.loads((place / "adapted" / "checkpoint-1" / "trainer_state.json").read_text())).about == about
