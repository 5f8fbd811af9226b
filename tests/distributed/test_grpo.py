"""GRPO in two real CPU processes: the score model replicated, sharded or remote, kill -9, and a server that goes away.

Every reward that a run gave is scored again by one process's [`Scorer`]: TRL's tables hold all processes' completions.
"""

import json
import math
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet
import pytest
from helpers import ROOT, picture, warm
from helpers.serving import Served

from rs_rlhf import Scorer
from rs_rlhf.metrics.answers import message_text
from rs_rlhf.models.tiny_vlm import save_tiny_vlm
from rs_rlhf.runs.checkpoints import is_whole
from rs_rlhf.scoring.load import load_scorer
from rs_rlhf.trainers.audit.choice_check import FOLDER

COUNT = 8


def question(i):
    """Prompts of very different lengths."""
    return f"Question {i}: which class?" + " Look at the river and the trees." * (i % 4)


@pytest.fixture(scope="module")
def work(tmp_path_factory, score_model_path):
    """A folder with a tiny policy, prompts and a score model."""
    folder = tmp_path_factory.mktemp("grpo")
    save_tiny_vlm(folder / "vlm", min_pixels=56 * 56, max_pixels=12 * 28 * 28)
    rows = []
    for i in range(COUNT):
        picture(i, *((84, 56) if i % 2 else (56, 112))).save(folder / f"{i}.png")
        rows.append({"prompt": question(i), "image": f"{i}.png", "solution": f"class {i}"})
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def scorer(score_model_path):
    return Scorer.from_pretrained(score_model_path, device="cpu")


def flags(work, name, **more):
    """Two rollouts per process of a group of four: each group is split over the processes."""
    given = {
        "model_name_or_path": work / "vlm",
        "dataset_name": work / "prompts.jsonl",
        "output_dir": work / name,
        "per_device_train_batch_size": 2,
        "num_generations": 4,
        "max_completion_length": 4,
        "bf16": "false",
        "use_cpu": "true",
        "report_to": "none",
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "max_steps": 2,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "log_completions": "true",
        "seed": 3,
        "num_completions_to_print": 0,
        "disable_tqdm": "true",
    }
    return [str(x) for key, value in (given | more).items() for x in (f"--{key}", value)]


def grpo(work, name, config, **more):
    return warm.launched(["grpo", "--accelerate_config", config, *flags(work, name, **more)], work)


def rollouts(work, name):
    """Step -> rows of the generation batch: (place of its prompt, completion, reward, advantage)."""
    found = {}
    for file in sorted((work / name / "completions").glob("*.parquet")):
        rows = pyarrow.parquet.read_table(file).to_pylist()
        found[rows[0]["step"]] = [
            (
                int(message_text(row["prompt"]).split()[1].rstrip(":")),
                message_text(row["completion"]),
                row["score_reward"],
                row["advantage"],
            )
            for row in rows
        ]
    return found


def rescore(scorer, work, rows):
    places, texts = [row[0] for row in rows], [[row[1]] for row in rows]
    images = [str(work / f"{i}.png") for i in places]
    return [one for (one,) in scorer.score(images, [question(i) for i in places], texts)]


def assert_rewards_are_the_scorers(scorer, work, steps):
    """The rewards are what one process gives, and each group of four was normalised as one."""
    for step, rows in steps.items():
        assert len(rows) == 4 and len({row[0] for row in rows}) == 1, step
        again = rescore(scorer, work, rows)
        assert [row[2] for row in rows] == pytest.approx(again, abs=1e-4), step
        mean = sum(again) / 4
        std = math.sqrt(sum((value - mean) ** 2 for value in again) / 3)
        assert [row[3] for row in rows] == pytest.approx([(v - mean) / (std + 1e-4) for v in again], abs=1e-2), step


def history(work, name, key):
    """Step and value of a metric, from the state saved at the end."""
    log = json.loads((work / name / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry[key] for entry in log if key in entry}


def test_zero2_with_the_score_model_on_every_process(work, scorer, score_model_path):
    said = grpo(
        work,
        "zero2",
        "cpu_zero2",
        score_model=score_model_path,
        audit_steps=1,
        eval_strategy="steps",
        eval_steps=2,
        eval_dataset_name=work / "prompts.jsonl",
        per_device_eval_batch_size=2,
        num_generations_eval=1,
        validation_prompts=3,
        max_steps=3,
    )
    assert "Weights on each of 2 device(s)" in said and "Used: replicated." in said
    steps = rollouts(work, "zero2")
    assert set(steps) == {1, 2, 3}
    # the evaluations at 2 and at the end write their own tables over the training's
    assert_rewards_are_the_scorers(scorer, work, {1: steps[1]})
    assert {0.0} == set(history(work, "zero2", "reward/failed_fraction").values())
    assert all(norm > 0 for norm in history(work, "zero2", "grad_norm").values())
    assert set(history(work, "zero2", "eval_audit/greedy_accuracy")) == {2, 3}
    # three prompts over two processes: the fourth place repeats the third, and counts once
    rows = pyarrow.parquet.read_table(work / "zero2" / "samples" / "eval_000002.parquet").to_pylist()
    assert [row["prompt"] for row in rows] == [question(i) for i in range(3)]
    greedy = [(i, row["completion"]) for i, row in enumerate(rows)]
    again = rescore(scorer, work, greedy)
    assert [row["score"] for row in rows] == pytest.approx(again, abs=1e-4)
    assert history(work, "zero2", "eval_score/greedy_mean")[2] == pytest.approx(sum(again) / 3, abs=1e-4)
    # the processes shared the answers that are compared before the first step, and one of them says so
    compared = json.loads((work / "zero2" / "eval" / FOLDER / "best_of_n.json").read_text())
    assert (compared["questions"], compared["n"]) == (COUNT, 4) and said.count("Before the work: best of 4 on 8") == 1


# --- ZeRO-3, the score model sharded --------------------------------------------------------------------------------

SHARDED = """
import json, os, signal, sys, time
from transformers import TrainerCallback
from rs_rlhf import Scorer
from rs_rlhf.trainers.grpo import VisionGRPOConfig, VisionGRPOTrainer
from rs_rlhf.trainers.data.grpo import load_prompts
from rs_rlhf.rewards import RSReward

work, score_model, kill_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
prompts, root = load_prompts(os.path.join(work, "prompts.jsonl"))
args = VisionGRPOConfig(
    os.path.join(work, "sharded"), score_model=score_model, score_model_placement="sharded", image_root=root,
    per_device_train_batch_size=2, num_generations=4, max_completion_length=4, bf16=False, use_cpu=True,
    report_to="none", logging_steps=1, learning_rate=1e-3, lr_scheduler_type="constant", max_steps=4, save_steps=2,
    log_completions=True, num_completions_to_print=0, audit_steps=1, seed=3, disable_tqdm=True,
)
trainer = VisionGRPOTrainer(os.path.join(work, "vlm"), args=args, train_dataset=prompts)
rank = trainer.accelerator.process_index

class Kill(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == kill_at and rank == 1:
            # the first process writes its table of the step before
            table = os.path.join(args.output_dir, "completions", f"completions_{kill_at:05d}.parquet")
            while not os.path.exists(table):
                time.sleep(0.05)
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)

trainer.add_callback(Kill())
trainer.train(resume_from_checkpoint=True)
trainer.save_model(args.output_dir)
trainer.save_state()

# Rewards of given completions. A small budget puts each text into a batch of its own, and the processes have different
# numbers of them: 2 distinct ones of one prompt, and 6 of five prompts.
scorer = trainer.score_reward.scorer
scorer.token_budget = 40
mine = [[0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 5]][rank]
inputs = trainer.read_images([prompts[i] for i in mine])
asked = [row["prompt"] for row in inputs]
texts = [["a river."] * 5 + ["many trees and a long bridge over the water " * 3], list("abcdef")][rank]
said = [[{"role": "assistant", "content": text}] for text in texts]
rewards = trainer._calculate_rewards(inputs, asked, said, [[1]] * 6)

# The published mix asks the score model only for well-formed answers: here the first process has none.
trainer.reward_funcs[0] = RSReward(trainer.score_reward)
for row in inputs:
    row["reward_type"] = "open_ended"
form = ["{}", "<think>hm</think><answer>{}</answer>"][rank]
formed = [[{"role": "assistant", "content": form.format(text)}] for text in texts]
mixed = trainer._calculate_rewards(inputs, asked, formed, [[1]] * 6)

# A score model of each process's own, under ZeRO-3
own = Scorer.from_pretrained(score_model)
image, question = prompts[0]["images"][0]["path"], prompts[0]["prompt"]
own_score = own.score([image], [question], [["a river."]])[0][0]
gathered = trainer.gathered([{"places": mine, "texts": texts, "own": own_score}])
if rank == 0:
    found = {"rewards": rewards[:, 0].tolist(), "mixed": mixed[:, 0].tolist(), "asked": gathered}
    with open(os.path.join(work, "sharded.json"), "w") as file:
        json.dump(found, file)
"""


def launch(work, script, *arguments, expect):
    (work / "script.py").write_text(script)
    config = str(ROOT / "accelerate_configs" / "cpu_zero3.yaml")
    command = ["-c", warm.ACCELERATE, "--config_file", config, work / "script.py", *arguments]
    return warm.launched(command, work, expect=expect)


@pytest.mark.slow
def test_zero3_with_the_score_model_sharded_killed_and_resumed(work, scorer, score_model_path):
    launch(work, SHARDED, work, score_model_path, 3, expect=1)
    out = work / "sharded"
    assert is_whole(out / "checkpoint-2") and not (out / "checkpoint-4").exists()
    before = rollouts(work, "sharded")
    assert set(before) == {1, 2, 3}
    said = launch(work, SHARDED, work, score_model_path, -1, expect=0)
    assert "Used: sharded." in said
    after = rollouts(work, "sharded")
    assert set(after) == {1, 2, 3, 4} and is_whole(out / "checkpoint-4")
    assert_rewards_are_the_scorers(scorer, work, after)
    assert [row[:2] for row in after[3]] == [row[:2] for row in before[3]]  # goes on where the broken run was
    assert all(norm > 0 for norm in history(work, "sharded", "grad_norm").values())
    assert len(history(work, "sharded", "audit/shuffle_gap")) > 0

    found = json.loads((work / "sharded.json").read_text())
    places = [place for one in found["asked"] for place in one["places"]]
    texts = [text for one in found["asked"] for text in one["texts"]]
    again = rescore(scorer, work, list(zip(places, texts, strict=True)))
    assert found["rewards"] == pytest.approx(again, abs=1e-4)
    assert found["mixed"] == pytest.approx([0.0] * 6 + [0.3 + 0.7 * value for value in again[6:]], abs=1e-4)
    whole = rescore(scorer, work, [(0, "a river.")])[0]
    assert [one["own"] for one in found["asked"]] == pytest.approx([whole, whole], abs=1e-4)


# --- several score models --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("config", "placement"), [("cpu_zero2", "replicated"), ("cpu_zero3", "sharded")])
def test_several_score_models_reward_all_processes_alike(work, score_models, config, placement):
    names = ",".join(str(score_models / name) for name in "abc")
    file = score_models / "calibration.jsonl"
    more = {"score_model": names, "score_calibration": file, "score_model_placement": placement}
    name = f"several-{placement}"
    grpo(work, name, config, **more)
    (kept,) = (work / name).glob("score_standards_*.json")
    scorer = load_scorer(names, score_calibration=str(file), device="cpu")
    for model, standard in zip(json.loads(kept.read_text())["models"], scorer.standards, strict=True):
        assert (model["mean"], model["std"]) == pytest.approx((standard.mean, standard.std), abs=1e-4)
    steps = rollouts(work, name)
    assert set(steps) == {1, 2}
    assert_rewards_are_the_scorers(scorer, work, steps)
    spreads = {step: sum(one.std for one in rescore(scorer, work, rows)) / 4 for step, rows in steps.items()}
    assert history(work, name, "audit/disagreement") == pytest.approx(spreads, abs=1e-4)


# --- ZeRO-3, the score model on a server that goes away and comes back ----------------------------------------------

REMOTE = '''
import os, time
from rs_rlhf.scoring.remote import RemoteScorer
from rs_rlhf.rewards import ScoreReward

class Paced(ScoreReward):
    """Waits for the test before the steps at which the server goes and has come back."""

    def __call__(self, *args, trainer_state, **kwargs):
        here = os.path.join(os.environ["PACE"], str(trainer_state.global_step))
        if trainer_state.global_step in (1, 3):
            open(here + ".reached", "a").close()
            end = time.monotonic() + 300
            while not os.path.exists(here + ".go") and time.monotonic() < end:
                time.sleep(0.05)
        return super().__call__(*args, trainer_state=trainer_state, **kwargs)

reward = Paced(RemoteScorer(os.environ["URL"], retries=0, timeout=60, backoff=0.1))
'''


def wait_for(path, ended, seconds=500):
    end = time.monotonic() + seconds
    while not path.exists():
        assert not ended.done(), "the run has ended"
        assert time.monotonic() < end, f"{path} was not reached"
        time.sleep(0.1)


@pytest.mark.slow
def test_zero3_goes_on_after_the_reward_server_was_away(work, scorer, score_model_path):
    """Steps 1 and 2 have no rewards: they are left out, and none becomes 0."""
    (work / "pacing.py").write_text(REMOTE)
    with Served(score_model_path) as server:
        env = warm.launching(work) | {"URL": server.url, "PACE": str(work)}
        env["PYTHONPATH"] = f"{work}:{env.get('PYTHONPATH', '')}"
        command = ["grpo", "--accelerate_config", "cpu_zero3"]
        command += flags(work, "remote", reward_funcs="pacing.reward", max_steps=5, audit_steps=0)
        with (work / "remote.log").open("w+") as log, ThreadPoolExecutor() as pool:
            child = warm.Child(warm.address(), command, work, env, (log.fileno(),) * 3)
            ended = pool.submit(child.wait, 500)
            try:
                wait_for(work / "1.reached", ended)
                server.kill()
                (work / "1.go").touch()
                wait_for(work / "3.reached", ended)
                with Served(score_model_path, port=server.port):
                    (work / "3.go").touch()
                    code = ended.result(500)
            finally:
                if not ended.done():
                    child.kill(signal.SIGTERM)  # which the launcher hands on
    said = (work / "remote.log").read_text()
    assert code == 0, said[-6000:]
    assert "rewards failed and are left out" in said and "ScorerUnavailable" in said
    failed = history(work, "remote", "reward/failed_fraction")
    assert failed == {1: 0.0, 2: 1.0, 3: 1.0, 4: 0.0, 5: 0.0}
    steps = rollouts(work, "remote")
    assert set(steps) == {1, 2, 3, 4, 5}
    for step in (2, 3):
        assert [row[2:] for row in steps.pop(step)] == [(None, 0.0)] * 4  # a missing number, in the table
    assert_rewards_are_the_scorers(scorer, work, steps)


# --- ZeRO-3, prompts read once by rollouts whose weights stay sharded --------------------------------------------

PLAIN = """
import sys
from rs_rlhf.cli.main import main
from rs_rlhf.trainers import grpo

if sys.argv[1] == "plain":
    grpo.share_prompts = lambda model: None
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_zero3_rollouts_are_those_of_plain_generation(work, score_model_path):
    found = []
    for name in ("plain", "shared"):
        split = {"per_device_train_batch_size": 3, "num_generations": 2}  # of three prompts one is on both processes
        more = {"score_model": score_model_path, "ds3_gather_for_generation": "false", "max_completion_length": 8}
        launch(work, PLAIN, name, "grpo", *flags(work, f"rollouts-{name}", **split, **more), expect=0)
        found.append([[row[:2] for row in rows] for rows in rollouts(work, f"rollouts-{name}").values()])
    assert found[0] == found[1] and [len(rows) for rows in found[0]] == [6, 6]
    assert len({text for _, text in found[0][0]}) > 2


@pytest.mark.slow
def test_several_weighted_rewards_under_zero2(work):
    """Kinds of rewards that only one process meets are logged all the same."""
    rows = [json.loads(line) for line in (work / "prompts.jsonl").read_text().splitlines()]
    kinds = ("em", "math", "count", "iou")
    lines = [json.dumps({**row, "reward_type": kinds[i % 4]}) + "\n" for i, row in enumerate(rows)]
    (work / "kinds.jsonl").write_text("".join(lines))
    given = flags(
        work, "several", dataset_name=work / "kinds.jsonl", reward="rs", format_weight=0.5, num_generations=2
    )
    given += ["--reward_funcs", "math_reward", "exact_match_reward", "--reward_weights", "1", "0.5", "-2"]
    warm.launched(["grpo", "--accelerate_config", "cpu_zero2", *given], work)
    names = ("rs_reward", "math_reward", "exact_match_reward")
    for file in sorted((work / "several" / "completions").glob("*.parquet")):
        table = pyarrow.parquet.read_table(file).to_pylist()
        assert len(table) == 4 and all(row["rs_reward/format"] in (0, 1) for row in table)
        mean = sum(w * row[name] for row in table for w, name in zip((1, 0.5, -2), names, strict=True)) / 4
        assert history(work, "several", "reward")[table[0]["step"]] == pytest.approx(mean, abs=1e-5)
    assert set(history(work, "several", "rs_reward/format")) == {1, 2}
