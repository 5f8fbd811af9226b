"""VisionGRPOTrainer in one process: late images, no vision tokens, the scorer's rewards, audit, tables, resuming."""

import contextlib
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from datasets import Dataset, Image, List
from helpers import picture
from helpers.serving import Served
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from rs_rlhf import Scorer
from rs_rlhf.cli import main as cli
from rs_rlhf.errors import ImageError, OptionError, ScorerUnavailable
from rs_rlhf.imagery.raster import ImageOptions, read_image
from rs_rlhf.metrics.answers import message_text
from rs_rlhf.models.vlm import VISION_TOKENS
from rs_rlhf.rewards import ExactMatchReward, IoUReward, ScoreReward
from rs_rlhf.scoring.load import load_scorer
from rs_rlhf.trainers import grpo as grpo_trainer
from rs_rlhf.trainers.data.grpo import load_prompts
from rs_rlhf.trainers.grpo import VisionGRPOConfig, VisionGRPOTrainer

CLASSES = ("port", "river", "forest", "desert", "beach", "farm")
COUNT = 6
STRETCH = ImageOptions(stretch="percentile", bands=(3, 2, 1))  # twice applied they would give another picture


def write_images(folder):
    """`0.png` to `4.png`, and `5.tif`, a GeoTIFF of 16 bits."""
    rasterio = pytest.importorskip("rasterio")
    for i in range(COUNT - 1):
        picture(i).save(folder / f"{i}.png")
    values = np.random.default_rng(0).integers(0, 3000, (3, 56, 84), dtype=np.uint16)
    size = {"height": 56, "width": 84, "count": 3, "dtype": "uint16"}
    with rasterio.open(folder / "5.tif", "w", driver="GTiff", **size) as file:
        file.write(values)


def image_of(folder, i):
    return str(folder / (f"{i}.png" if i < COUNT - 1 else f"{i}.tif"))


def question(i):
    return f"Question {i}: which class?"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder with `prompts.jsonl`; its prompts tell the rows apart."""
    folder = tmp_path_factory.mktemp("grpo")
    write_images(folder)
    rows = [
        {"prompt": question(i), "image": Path(image_of(folder, i)).name, "solution": CLASSES[i], "choices": CLASSES}
        for i in range(COUNT)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def arguments(output_dir, **options):
    """Options of a run of two prompts with four rollouts each per step."""
    given = {
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "per_device_eval_batch_size": 4,
        "num_generations_eval": 1,
        "max_completion_length": 4,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "max_steps": 4,
        "seed": 3,
        "save_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
    }
    return given | {"output_dir": str(output_dir)} | options


def trainer_of(data, tiny_vlm, output_dir, reward_funcs=None, peft_config=None, **options):
    prompts, root = load_prompts(str(data / "prompts.jsonl"))
    shown = {"image_root": root, "stretch": "percentile", "bands": [3, 2, 1]}
    args = VisionGRPOConfig(**arguments(output_dir, **shown | options))
    evaluated = prompts if options.get("eval_strategy") else None
    return VisionGRPOTrainer(
        tiny_vlm, reward_funcs, args=args, train_dataset=prompts, eval_dataset=evaluated, peft_config=peft_config
    )


def test_the_rewards_of_boxes_are_told_how_the_policy_writes_them(data, tiny_vlm, tmp_path):
    boxes, given = IoUReward(), IoUReward(profile="fractions")
    trainer = trainer_of(data, tiny_vlm, tmp_path, [boxes, given], reward="rs", max_pixels=9 * 28 * 28)
    mixed = trainer.reward_funcs[0].accuracy["iou"]
    assert [reward.profile.name for reward in (mixed, boxes, given)] == ["qwen2-vl", "qwen2-vl", "fractions"]
    assert boxes._budget == mixed._budget == (28, 56 * 56, 9 * 28 * 28)
    trainer = trainer_of(data, tiny_vlm, tmp_path, reward="rs", profile="geochat", solution_unit="pixel")
    mixed = trainer.reward_funcs[0].accuracy["iou"]
    assert mixed.profile.name == "geochat" and mixed.solution_unit == "pixel"
    told = trainer_of(data, tiny_vlm, tmp_path, [boxes, given], profile="geochat", pairing="order").reward_funcs
    assert [(reward.profile.name, reward.pairing) for reward in told] == [("geochat", "order"), ("fractions", "order")]
    assert (boxes.profile.name, boxes.pairing) == ("qwen2-vl", None)  # the caller's own
    unread = [
        ("profile", "geochat", [given]),
        ("solution_unit", "pixel", [ExactMatchReward()]),
        ("format_weight", 0.5, [boxes]),
    ]
    for option, value, rewards in unread:
        with pytest.raises(OptionError) as error:
            trainer_of(data, tiny_vlm, tmp_path, rewards, **{option: value})
        assert error.value.key == option


FULL = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "audit_steps": 2,
    "validation_prompts": 3,
    "log_completions": True,
    "num_completions_to_print": 0,
}


@pytest.fixture(scope="module")
def run(data, tiny_vlm, score_model_path, tmp_path_factory):
    """A run with everything on: (trainer, what it printed, sources of the images that each batch read)."""
    folder = tmp_path_factory.mktemp("run")
    batches = []
    read, original = grpo_trainer.read_image, VisionGRPOTrainer.read_images

    def noted(source, *rest):
        batches[-1].append(source["path"])
        return read(source, *rest)

    def noted_batch(self, *rows):
        batches.append([])
        return original(self, *rows)

    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(grpo_trainer, "read_image", noted)  # counts, and reads as ever
        patch.setattr(VisionGRPOTrainer, "read_images", noted_batch)
        trainer = trainer_of(data, tiny_vlm, folder, score_model=score_model_path, **FULL)
        assert batches == []  # building the data sets and the trainer opens no image
        trainer.train()
    return trainer, said.getvalue(), batches


def entries(trainer, key):
    """Step and value of a metric."""
    return [(entry["step"], entry[key]) for entry in trainer.state.log_history if key in entry]


def table(path):
    return pyarrow.parquet.read_table(path).to_pylist()


def test_images_are_read_late_and_once_per_batch(run, data):
    trainer, _, batches = run
    for i, row in enumerate(trainer.train_dataset):
        assert row["images"] == [{"bytes": None, "path": image_of(data, i)}]
    assert all(len(batch) == len(set(batch)) for batch in batches)
    assert [len(batch) for batch in batches].count(2) >= 4  # four steps of two prompts, eight rows
    assert image_of(data, 5) in {path for batch in batches for path in batch}


def test_the_reward_is_the_scorers(run, data, score_model_path):
    """Every rollout that was written is scored again, its image found by its prompt."""
    trainer, _, _ = run
    out = Path(trainer.args.output_dir)
    found = []  # (question, completion, reward, score)
    for file in sorted((out / "rollouts").glob("*.parquet")):
        found += [(row["prompt"], row["completion"], row["reward"], row["score"]) for row in table(file)]
    assert len(found) == 32  # 8 of each of the four steps
    for file in sorted((out / "completions").glob("*.parquet")):
        for row in table(file):
            asked, said = message_text(row["prompt"]), message_text(row["completion"])
            found.append((asked, said, row["score_reward"], row["score"]))
    assert len(found) > 48
    scorer = Scorer.from_pretrained(score_model_path, device="cpu", image_options=STRETCH)
    questions = [question(i) for i in range(COUNT)]
    places = [questions.index(asked) for asked, *_ in found]
    images, asked = [image_of(data, i) for i in places], [questions[i] for i in places]
    again = scorer.score(images, asked, [[completion] for _, completion, *_ in found])
    for (_, _, reward, score), (value,) in zip(found, again, strict=True):
        assert reward == pytest.approx(value, abs=1e-4) and score == pytest.approx(value, abs=1e-4)
    assert len({row[1] for row in found}) > 20 and np.std([row[2] for row in found]) > 0.1


def test_memory_is_stated(run):
    _, said, _ = run
    model = r"Score model: \d\.\d M parameters in float32\. Weights on each of 1 device\(s\): replicated \d+ MiB, "
    assert re.search(model + r"sharded \(ZeRO-3\) \d+ MiB, .*Used: replicated\.", said)


def test_the_audit_is_logged_and_its_gap_only_every_few_steps(run):
    trainer, _, _ = run
    assert [step for step, _ in entries(trainer, "audit/shuffle_gap")] == [1, 3]  # rollouts of steps 0 and 2
    assert all(value != 0 for _, value in entries(trainer, "audit/shuffle_gap"))
    assert [step for step, _ in entries(trainer, "audit/accuracy")] == [1, 2, 3, 4]
    assert [step for step, _ in entries(trainer, "eval_audit/greedy_accuracy")] == [2, 4]
    assert all(value == 0 for _, value in entries(trainer, "reward/failed_fraction"))
    rewards, means = (dict(entries(trainer, key)) for key in ("rewards/score_reward/mean", "score/mean"))
    assert rewards == pytest.approx(means, abs=1e-4)


def test_sample_tables_follow_fixed_prompts_and_hold_greedy_answers(run, tiny_vlm, score_model_path, data):
    trainer, _, _ = run
    files = sorted((Path(trainer.args.output_dir) / "samples").glob("*.parquet"))
    assert [file.name for file in files] == ["eval_000002.parquet", "eval_000004.parquet"]
    tables = [table(file) for file in files]
    for rows in tables:
        assert [row["prompt"] for row in rows] == [question(i) for i in range(3)]
        assert [row["solution"] for row in rows] == list(CLASSES[:3])
        assert all(row["image"]["bytes"][:3] == b"\xff\xd8\xff" for row in rows)
    processor = AutoProcessor.from_pretrained(tiny_vlm)
    vocabulary = processor.tokenizer.get_vocab()
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    for i, row in enumerate(tables[-1]):  # of the weights after the last step, which are still there
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question(i)}]}
        prompt = processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        batch = processor(text=[prompt], images=[read_image(image_of(data, i), STRETCH)], return_tensors="pt")
        suppressed = [vocabulary[name] for name in VISION_TOKENS]
        ids = model.generate(**batch, max_new_tokens=4, do_sample=False, suppress_tokens=suppressed)
        answer = processor.tokenizer.decode(ids[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        assert row["completion"] == answer
    model.train()


def plain_trainer(data, tiny_vlm, score_model_path, output_dir):
    prompts, _ = load_prompts(str(data / "prompts.jsonl"))
    prompts = prompts.select(range(COUNT - 1)).cast_column("images", List(Image()))  # TRL alone reads no GeoTIFF
    processor = AutoProcessor.from_pretrained(tiny_vlm, truncation_side="left", padding_side="left")
    vocabulary = processor.tokenizer.get_vocab()
    suppressed = {"suppress_tokens": sorted(vocabulary[name] for name in VISION_TOKENS)}
    args = GRPOConfig(**arguments(output_dir, generation_kwargs=suppressed, max_steps=3))
    reward = ScoreReward(score_model_path, device="cpu")
    return GRPOTrainer(tiny_vlm, reward, args=args, train_dataset=prompts, processing_class=processor)


def test_a_plain_trainer_trains_alike(data, tiny_vlm, score_model_path, tmp_path):
    """Our trainer is for comfort: TRL's own with the same reward, data and seed takes the same steps."""
    plain = plain_trainer(data, tiny_vlm, score_model_path, tmp_path / "plain")
    as_it_is = {"stretch": None, "bands": None, "max_steps": 3}
    ours = trainer_of(data, tiny_vlm, tmp_path / "ours", score_model=score_model_path, **as_it_is)
    ours.train_dataset = ours.train_dataset.select(range(COUNT - 1))
    for trainer in (plain, ours):
        torch.manual_seed(5)
        trainer.train()
    for key in ("loss", "grad_norm", "reward", "reward_std", "entropy"):
        assert len(entries(ours, key)) == 3
        assert dict(entries(ours, key)) == pytest.approx(dict(entries(plain, key)), abs=1e-4, rel=1e-3), key
    others = plain.model.state_dict()
    for name, weight in ours.model.state_dict().items():
        torch.testing.assert_close(weight, others[name], atol=1e-4, rtol=0, msg=name)


def test_several_score_models_reward_together(data, tiny_vlm, score_models, tmp_path):
    names = ",".join(str(score_models / name) for name in "ac")
    combined = {"score_combine": "min", "score_calibration": str(score_models / "calibration.jsonl")}
    options = FULL | {"max_steps": 2, "score_model": names, **combined}
    trainer = trainer_of(data, tiny_vlm, tmp_path, **options)
    trainer.train()
    # The images of the calibration file are read as the run's are.
    scorer = load_scorer(names, STRETCH, "cpu", **combined)
    assert trainer.score_reward.scorer.standards == scorer.standards
    spreads = []
    for file in sorted((tmp_path / "rollouts").glob("*.parquet")):
        rows = table(file)
        images = [image_of(data, int(re.search(r"\d", row["prompt"])[0])) for row in rows]
        scores = scorer.score(images, [row["prompt"] for row in rows], [[row["completion"]] for row in rows])
        assert [row["reward"] for row in rows] == pytest.approx([one for (one,) in scores], abs=1e-4)
        spreads.append(np.mean([one.std for (one,) in scores]))
    assert [value for _, value in entries(trainer, "audit/disagreement")] == pytest.approx(spreads, abs=1e-4)
    assert len(spreads) == 2 and len(entries(trainer, "eval_audit/greedy_disagreement")) == 1
    assert len(list(tmp_path.glob("score_standards_*.json"))) == 1
    for other in ({"score_combine": "mean"}, {"score_model": f"{names},{score_models / 'b'}"}):
        resumed = trainer_of(data, tiny_vlm, tmp_path, **options | other)
        with pytest.raises(OptionError) as error:
            resumed.train(resume_from_checkpoint=True)
        assert error.value.key == next(iter(other))
    with pytest.raises(OptionError) as error:
        trainer_of(data, tiny_vlm, tmp_path, score_model=names)
    assert error.value.key == "score_calibration"


class Ends(TrainerCallback):
    """Ends the reward server after a step."""

    def __init__(self, server, step):
        self.server, self.step = server, step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.server.kill()


def test_a_run_whose_reward_server_is_gone_is_saved_and_can_be_resumed(data, tiny_vlm, tmp_path, score_model_path):
    options = {**FULL, "save_strategy": "no", "score_server_wait": 0.5}
    with Served(score_model_path) as server:
        trainer = trainer_of(data, tiny_vlm, tmp_path, score_model=server.url, **options)
        trainer.add_callback(Ends(server, 2))
        with pytest.raises(ScorerUnavailable) as error:
            trainer.train()
    saved = tmp_path / "checkpoint-2"
    assert "for 0.5 seconds" in error.value.detail and f"Step 2 is saved in {saved};" in error.value.detail
    assert load_file(saved / "model.safetensors")
    assert json.loads((saved / "trainer_state.json").read_text())["global_step"] == 2
    with Served(score_model_path, port=server.port):
        resumed = trainer_of(data, tiny_vlm, tmp_path, score_model=server.url, **options)
        resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    assert all(value == 0 for _, value in entries(resumed, "reward/failed_fraction"))
    lost = trainer_of(data, tiny_vlm, tmp_path / "none", score_model=server.url, **options)
    with pytest.raises(ScorerUnavailable, match="No step was trained, so that nothing is saved"):
        lost.train()
    assert not (tmp_path / "none" / "checkpoint-0").exists()


@pytest.mark.parametrize("options", [{"score_model": "m"}, {}])
def test_waiting_for_a_server_needs_one(data, tiny_vlm, tmp_path, options):
    with pytest.raises(OptionError) as error:
        trainer_of(data, tiny_vlm, tmp_path, score_server_wait=5.0, **options)
    assert error.value.key == "score_server_wait"


def test_resuming_is_the_unbroken_run(run, data, tiny_vlm, score_model_path, tmp_path):
    """Weights, optimizer, place in the data and the random state come back: the steps that follow are the same."""
    whole, _, _ = run
    checkpoint = Path(whole.args.output_dir) / "checkpoint-2"
    resumed = trainer_of(data, tiny_vlm, tmp_path, score_model=score_model_path, **FULL)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == 4
    for key in ("loss", "grad_norm", "reward", "score/mean", "num_tokens", "eval_score/greedy_mean"):
        assert len(entries(whole, key)) in (2, 4)
        assert entries(resumed, key) == [(step, pytest.approx(v, abs=1e-5)) for step, v in entries(whole, key)], key
    ends = [load_file(Path(t.args.output_dir) / "checkpoint-4" / "model.safetensors") for t in (whole, resumed)]
    for name, weight in ends[0].items():
        torch.testing.assert_close(ends[1][name], weight, atol=1e-5, rtol=0, msg=name)


@pytest.fixture(scope="module")
def biased_vlm(tiny_vlm, tmp_path_factory):
    """The tiny model, made to say vision tokens: their output rows point where its hidden states do."""
    model = AutoModelForImageTextToText.from_pretrained(tiny_vlm)
    processor = AutoProcessor.from_pretrained(tiny_vlm)
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question(0)}]}
    prompt = processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    batch = processor(text=[prompt], images=[picture(0)], return_tensors="pt")
    with torch.no_grad():
        hidden = model.model(**batch).last_hidden_state[0, -1]
        names = ("<|image_pad|>", "<|video_pad|>", "<|vision_pad|>")  # none is an input: images stand for the first
        for name in names:
            token = processor.tokenizer.convert_tokens_to_ids(name)
            model.get_output_embeddings().weight[token] = 60 * hidden / hidden.norm() ** 2
    path = tmp_path_factory.mktemp("biased") / "vlm"
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)


class Noted:
    """A reward that keeps the token ids."""

    __name__ = "noted"

    def __init__(self):
        self.ids = []

    def __call__(self, completion_ids, **_):
        self.ids += completion_ids
        return [float(i) for i in range(len(completion_ids))]


def test_vision_tokens_are_never_sampled(data, biased_vlm, tmp_path):
    processor = AutoProcessor.from_pretrained(biased_vlm)
    forbidden = {processor.tokenizer.convert_tokens_to_ids(name) for name in VISION_TOKENS}
    reward = Noted()
    trainer = trainer_of(data, biased_vlm, tmp_path, [reward], max_steps=1, learning_rate=0.0)
    trainer.train()
    rows = trainer.read_images([trainer.train_dataset[i] for i in range(3)])
    greedy = trainer.generated(rows)
    assert len(reward.ids) == 8 and len(greedy) == 3
    assert not forbidden & {token for ids in [*reward.ids, *greedy] for token in ids}
    trainer.generation_config.suppress_tokens = trainer.generation_kwargs["suppress_tokens"] = None
    assert forbidden & {token for ids in trainer.generated(rows) for token in ids}  # without it they are


def test_lora(data, tiny_vlm, score_model_path, tmp_path):
    from peft import LoraConfig, PeftModel

    lora = LoraConfig(target_modules="all-linear", r=4, task_type="CAUSAL_LM")
    options = {**FULL, "max_steps": 2}
    trainer = trainer_of(data, tiny_vlm, tmp_path, peft_config=lora, score_model=score_model_path, **options)
    core = trainer.accelerator.unwrap_model(trainer.model).get_base_model().model
    assert core.get_image_features.shared
    trainer.train()
    norms = [value for _, value in entries(trainer, "grad_norm")]
    assert len(norms) == 2 and all(math.isfinite(norm) and norm > 0 for norm in norms)
    base = AutoModelForImageTextToText.from_pretrained(tiny_vlm)
    loaded = PeftModel.from_pretrained(base, tmp_path / "checkpoint-2")
    moved = [p for name, p in loaded.named_parameters() if "lora_B" in name]
    assert moved and any(p.abs().max() > 0 for p in moved)
    resumed = trainer_of(
        data, tiny_vlm, tmp_path, peft_config=lora, score_model=score_model_path, **options | {"max_steps": 3}
    )
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 3


def test_an_unreadable_image_stops_the_run_by_name(data, tiny_vlm, score_model_path, tmp_path):
    """The policy cannot see it either, so there is no row to leave out."""
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "Which?", "image": "broken.png"}) + "\n" * 2)
    prompts, root = load_prompts(str(tmp_path / "prompts.jsonl"))
    args = VisionGRPOConfig(**arguments(tmp_path / "out", image_root=root, score_model=score_model_path))
    prompts = Dataset.from_list([prompts[0]] * 2, features=prompts.features)
    trainer = VisionGRPOTrainer(tiny_vlm, args=args, train_dataset=prompts)
    with pytest.raises(ImageError, match=r"broken\.png"):
        trainer.train()


def command(capsys, *arguments):
    """Runs `rs-rlhf grpo`; returns the exit code and the one line that it says."""
    code = cli.main(["grpo", *map(str, arguments)])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rs-rlhf grpo: ")]
    return code, lines[-1] if lines else ""


@pytest.mark.parametrize(
    ("drop", "more", "says"),
    [
        ("--model_name_or_path", [], "no model_name_or_path; give --model_name_or_path"),
        ("--dataset_name", [], "no dataset_name; give --dataset_name"),
        ("--score_model", [], "no reward; give --score_model, or --reward_funcs."),
        ("--score_model", ["--reward_funcs", "rs_rlhf.rewards.rules.Nothing"], "cannot be imported"),
        ("--score_model", ["--reward_funcs", "len"], "cannot be imported"),
        ("", ["--eval_strategy", "steps", "--eval_steps", 1], "give --eval_dataset_name or --dataset_test_split"),
        ("", ["--score_modle", "x"], "did you mean --score_model?"),
        ("", ["--reward", "sore"], "argument --reward: invalid choice: 'sore'"),
        ("", ["--load_in_4bit", "true"], "use LoRA in bf16"),
        ("", ["--max_train_samples", 0], "expected at least 1"),
        ("", ["--score_model_placement", "sharded"], "needs DeepSpeed ZeRO-3"),
        ("", ["--score_model", "nowhere-at-all"], "neither a folder nor a reward model"),
    ],
)
def test_mistakes_are_told_in_one_sentence(data, tiny_vlm, score_model_path, tmp_path, capsys, drop, more, says):
    flags = {
        "--model_name_or_path": tiny_vlm,
        "--dataset_name": data / "prompts.jsonl",
        "--score_model": score_model_path,
        "--output_dir": tmp_path,
        "--use_cpu": "true",
        "--bf16": "false",
        "--report_to": "none",
        "--max_steps": 1,
        "--per_device_train_batch_size": 4,
        "--num_generations": 4,
    }
    flags.pop(drop, None)
    code, line = command(capsys, *[x for pair in flags.items() for x in pair], *more)
    assert code == 1 and says in line
