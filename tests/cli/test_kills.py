"""Every command that writes, killed at random moments and started again: it leaves no half-written file that another
command would take, changes nobody else's file, and ends with what it writes undisturbed.

`RS_RLHF_KILLS=100 pytest -m slow tests/cli/test_kills.py` tries each command a hundred times. It is a campaign by
hand: the moments depend on the machine.
"""

import io
import json
import os
import shutil
import signal
import tarfile

import pytest
from helpers import WORDS, picture
from helpers.kills import Case, Killed

from rs_rlhf.data.scenes.make import write_scenes

TRIES = int(os.environ.get("RS_RLHF_KILLS", "3"))
FIRST = int(os.environ.get("RS_RLHF_FIRST_SEED", "0"))
TRAINING = {
    **{"use_cpu": "true", "bf16": "false", "report_to": "none", "disable_tqdm": "true"},
    **{"per_device_train_batch_size": 2, "max_steps": 3, "save_steps": 1, "save_total_limit": 2, "logging_steps": 1},
    **{"output_dir": "out", "seed": 3},
}
RESUME = ["--resume_from_checkpoint", "true"]


def flags(**given):
    return [str(part) for key, value in given.items() for part in (f"--{key}", value)]


def training(command, **given):
    return Case([command, *flags(**TRAINING | given)], again=RESUME, training=True)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_inputs(folder):
    """Inputs of all commands, and files of somebody else beside what they write."""
    write_scenes(folder / "scenes", 12, 6, size=56)
    scenes = [json.loads(line) for line in (folder / "scenes" / "train.jsonl").read_text().splitlines()]
    with tarfile.open(folder / "scenes.tar", "w") as tar:
        for i, row in enumerate(scenes):
            caption = json.dumps({"captions": row["captions"]}).encode()
            parts = {"png": (folder / "scenes" / row["image"]).read_bytes(), "json": caption}
            for suffix, data in parts.items():
                info = tarfile.TarInfo(f"{i:06d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (folder / "given").mkdir()
    for i in range(8):
        picture(i).save(folder / "given" / f"{i}.png")
    pairs = [
        {"image": f"{i}.png", "chosen": WORDS[i % 4], "rejected": WORDS[(i + 1) % 4], "kind": "k"} for i in range(8)
    ]
    write(folder / "given" / "pairs.jsonl", pairs)
    asked = [{"id": f"q{i}", "prompt": "What is it?", "image": f"{i}.png", "solution": WORDS[i % 4]} for i in range(8)]
    write(folder / "given" / "rows.jsonl", asked)
    write(
        folder / "given" / "candidates.jsonl",
        [{**row, "completions": WORDS[: 2 + i % 3]} for i, row in enumerate(asked)],
    )
    declared = "title: Test\nsource: drawn here\nlayout: rows\npath: rows.jsonl\ntask: vqa\n"
    (folder / "given" / "asked.yaml").write_text(declared)
    (folder / "made").mkdir()
    for name in ("notes.txt", "made/notes.txt", "made/out.jsonl.partial.txt"):
        (folder / name).write_text("somebody else's")


def cases_of(tiny_vlm, policy_path, score_model_path, clip):
    policy, model, n_tokens = ["--policy", policy_path], ["--model", score_model_path], ["--max_new_tokens", "4"]
    scores = ["score", "--input", "scenes", "--scorer", "random", "--rows_per_shard", "2", "--output", "scores"]
    asked = [*flags(data_root="given", task="given/asked.yaml", token_budget=300, dtype="float32"), *n_tokens]
    evaluated = ["eval", "run", *flags(model=policy_path, out="run"), *asked]
    judged = flags(model=score_model_path, input="given/candidates.jsonl")
    scenes = flags(input="scenes", split="train")
    trained = ["reward", *flags(**TRAINING | {"dataset_name": "given/pairs.jsonl", "model_name_or_path": tiny_vlm})]
    return {
        "score": Case(scores),
        "score model": Case(["score", "--input", "scenes", *model, *flags(rows_per_shard=6, output="scores")]),
        "score tar": Case(["score", *flags(input="scenes.tar", scorer="length", rows_per_shard=2, output="scores")]),
        "curate": Case(["curate", "scores", *flags(keep=0.5, output="kept", dedup="near")], before=[scores]),
        "curate tar": Case(
            ["curate", "scores", *flags(keep=0.5, output="kept")],
            before=[["score", *flags(input="scenes.tar", scorer="random", output="scores")]],
        ),
        "best-of-n": Case(
            ["best-of-n", *policy, *flags(**{"score-model": score_model_path, "out": "best"}), "-n", "4", *asked]
        ),
        "eval run": Case(evaluated),
        "eval compare": Case(
            ["eval", "compare", "run", "other", "--out", "compared"],
            before=[evaluated, [*evaluated, "--out", "other", "--seed", "1"]],
        ),
        "eval export": Case(["eval", "export", "run", "--format", "lm-eval"], before=[evaluated]),
        "eval preferences": Case(
            ["eval", "preferences", *model, *flags(preferences="given/pairs.jsonl", output="made/report.json")]
        ),
        "report": Case(["report", "out"], before=[trained]),
        "plot": Case(["plot", "out"], before=[trained]),
        "data convert": Case(["data", "convert", "scenes", "made/out.jsonl", *flags(to="trl", split="train")]),
        "data convert llava": Case(["data", "convert", "scenes.tar", "made/out.json", *flags(to="llava")]),
        "data convert parquet": Case(["data", "convert", "scenes.tar", "made/out.parquet", *flags(to="parquet")]),
        "data pairs": Case(["data", "pairs", *scenes, *flags(output="made/out.jsonl")]),
        "data damage": Case(["data", "damage", *scenes, *flags(output="made/out.jsonl")]),
        "data scenes": Case(["data", "scenes", "made/drawn", *flags(n_train=8, n_validation=4, size=56)]),
        "data sample-pairs": Case(
            [
                "data",
                "sample-pairs",
                *policy,
                *flags(input="given/rows.jsonl", output="made/out.jsonl"),
                "-n",
                "4",
                *n_tokens,
            ]
        ),
        "data best": Case(["data", "best", *judged, *flags(keep="softmax", output="made/out.jsonl")]),
        "data best policy": Case(
            [
                "data",
                "best",
                *flags(model=score_model_path, input="given/rows.jsonl", output="made/out.jsonl"),
                *policy,
            ]
            + ["-n", "4", *n_tokens]
        ),
        "data dpo": Case(["data", "dpo", *judged, *flags(output="made/out.jsonl")]),
        "data dpo parquet": Case(["data", "dpo", *judged, *flags(output="made/out.parquet")]),
        "data dpo policy": Case(
            ["data", "dpo", *flags(model=score_model_path, input="given/rows.jsonl", output="made/out.jsonl"), *policy]
            + ["-n", "4", *n_tokens]
        ),
        "tiny-clip": Case(["tiny-clip", "made/model"], varies=("tokenizer.json", "model.safetensors")),
        "tiny-vlm": Case(["tiny-vlm", "made/model"]),
        "reward": training("reward", dataset_name="given/pairs.jsonl", model_name_or_path=tiny_vlm),
        "reward evaluated": training(
            "reward",
            dataset_name="given/pairs.jsonl",
            eval_dataset_name="given/pairs.jsonl",
            model_name_or_path=tiny_vlm,
            eval_strategy="steps",
            eval_steps=2,
            save_steps=2,
            worst_pairs=2,
        ),
        "reward lora": training(
            "reward",
            dataset_name="given/pairs.jsonl",
            model_name_or_path=tiny_vlm,
            use_peft="true",
            lora_r=4,
        ),
        "sft": training("sft", dataset_name="scenes", model_name_or_path=tiny_vlm),
        "dpo": training("dpo", dataset_name="given/pairs.jsonl", model_name_or_path=tiny_vlm),
        "kto": training("kto", dataset_name="given/pairs.jsonl", model_name_or_path=tiny_vlm),
        "grpo": training(
            "grpo",
            dataset_name="given/rows.jsonl",
            model_name_or_path=policy_path,
            score_model=score_model_path,
            num_generations=2,
            max_completion_length=4,
            log_completions="true",
            num_completions_to_print=0,
        ),
        "clip": training("clip", dataset_name="scenes", dataset_train_split="train", model_name_or_path=clip),
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def killed(base, tiny_vlm, policy_path, score_model_path, clips, tmp_path_factory):
    made = {}
    cases = cases_of(tiny_vlm, policy_path, score_model_path, clips["clip"])
    assert list(cases) == NAMES

    def of(name):
        if name not in made:
            made[name] = Killed(cases[name], base, tmp_path_factory.mktemp("tries"))
        return made[name]

    yield of
    for one in made.values():
        shutil.rmtree(one.folder.parent, ignore_errors=True)


NAMES = (
    "score|score model|score tar|curate|curate tar|best-of-n|eval run|eval compare|eval export|eval preferences|"
    "report|plot|data convert|data convert llava|data convert parquet|data pairs|data damage|data scenes|"
    "data sample-pairs|data best|data best policy|data dpo|data dpo parquet|data dpo policy|"
    "tiny-clip|tiny-vlm|reward|reward evaluated|reward lora|sft|dpo|kto|grpo|clip"
).split("|")


def test_a_killed_command_starts_again(base, tmp_path):
    one = Killed(cases_of("", "", "", "")["data pairs"], base, tmp_path)
    assert sum(one.attempt(seed) for seed in range(3)) >= 3


@pytest.mark.slow
@pytest.mark.skipif("RS_RLHF_KILLS" not in os.environ, reason="a campaign by hand, of RS_RLHF_KILLS tries a command")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("name", NAMES)
def test_kills_at_random_moments(name, number, killed):
    one = killed(name)
    count = sum(one.attempt(f"{name} {number} {seed}", number) for seed in range(FIRST, FIRST + TRIES))
    print(f"{name}: {one.operations} operations, {one.seconds:.2f} s; {count} kills in {TRIES} tries")
    assert count > 0  # tries that kill nothing show nothing
