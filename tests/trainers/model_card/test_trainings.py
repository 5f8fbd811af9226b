"""The cards that real trainings leave: of models, checkpoints, adapters and resumed runs; the code in them runs."""

import base64
import contextlib
import http.server
import io
import json
import os
import re
import subprocess
import sys
import threading

import pytest
from helpers import ROOT, WORDS, picture, warm
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from peft import LoraConfig

from rs_rlhf import VisionRewardConfig, VisionRewardTrainer, load_preferences
from rs_rlhf.data.scenes.make import write_scenes

QUICK = (
    "--use_cpu true --bf16 false --report_to none --disable_tqdm true --max_steps 2 --save_steps 1 --logging_steps 1"
)
QUICK += " --gradient_checkpointing false --per_device_train_batch_size 4 --per_device_eval_batch_size 4"
LORA = "--use_peft true --lora_r 4 --lora_target_modules q_proj v_proj"


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_vlm, policy_path, score_model_path, clips):
    """A folder with data of every form, and links to tiny models; no test's name is in its path."""
    folder = tmp_path_factory.mktemp("secret") / "work"
    folder.mkdir()
    write_scenes(folder / "scenes", 24, 8, size=64)
    for i in range(8):
        picture(i).save(folder / f"{i}.png")
    picture(9).save(folder / "scene.png")
    pairs = [{"image": f"{i}.png", "prompt": "What?", "chosen": "a river.", "rejected": "trees."} for i in range(8)]
    asked = [{"prompt": "What is it?", "image": f"{i}.png", "solution": WORDS[i % 4]} for i in range(8)]
    texts = [{"image": f"{i}.png", "captions": [f"a river {i}."]} for i in range(8)]
    for name, rows in {"pairs": pairs, "asked": asked, "texts": texts}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, path in {
        "vlm": tiny_vlm,
        "policy": policy_path,
        "scorer": score_model_path,
        "clip": clips["clip"],
    }.items():
        (folder / name).symlink_to(path)
    return folder


def trained(place, command, flags, out):
    model = {"reward": "vlm", "clip": "clip"}.get(command, "policy")
    given = [command, "--model_name_or_path", model, "--output_dir", out, *flags.split(), *QUICK.split()]
    warm.run(given, cwd=place, check=0)
    return place / out


def checked(folder, place, monkeypatch, runs=True):
    """Returns a card in which nothing is wrong; its code is run beside the folder."""
    card = ModelCard.load(folder / "README.md", ignore_metadata_errors=False)
    text = card.content
    assert "None" not in text and "capital of France" not in text and "More Information Needed" not in text
    assert str(place) not in text and "secret" not in text and card.data.license is None
    assert "yours to state" in text and "generated_from_trainer" in card.data.tags
    if card.data.eval_results:
        assert model_index_to_eval_results(card.data.to_dict()["model-index"])[1] == card.data.eval_results
    if runs:
        monkeypatch.chdir(folder.parent)
        if not (folder.parent / "scene.png").exists():
            picture(9).save(folder.parent / "scene.png")
        code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, {})
        assert out.getvalue().strip()
    return card


def test_a_score_model_its_checkpoint_and_its_figures(place, monkeypatch):
    flags = "--dataset_name pairs.jsonl --eval_dataset_name pairs.jsonl --eval_strategy steps --eval_steps 2"
    out = trained(place, "reward", f"{flags} --trainable head", "reward")
    card = checked(out, place, monkeypatch)
    metrics = json.loads((out / "eval_results.json").read_text())
    found = {result.metric_type: result for result in card.data.eval_results}
    assert found["accuracy"].metric_value == pytest.approx(metrics["eval_score/accuracy"], abs=1e-6)
    assert found["accuracy"].metric_args["n"] == 8 and found["accuracy"].dataset_name == "pairs.jsonl"
    low, high = found["accuracy"].metric_args["interval"]
    assert low < metrics["eval_score/accuracy"] + 1e-6 and high > metrics["eval_score/accuracy"] - 1e-6
    assert found["shuffle_gap"].metric_value == pytest.approx(metrics["eval_score/shuffle_gap"], abs=1e-6)
    assert "## Pairs that are ranked most wrongly" in card.content and "| What? | a river. (" in card.content
    assert "rs-rlhf reward --model_name_or_path vlm" in card.content and "| position mode | mrope |" in card.content
    first = checked(out / "checkpoint-1", place, monkeypatch, runs=False)
    assert "has not been evaluated" in first.content and 'from_pretrained("checkpoint-1")' in first.content


def test_an_adapter_that_is_resumed_has_our_card_not_pefts(place, tmp_path, monkeypatch):
    data = load_preferences(str(place / "pairs.jsonl"))
    options = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "save_steps": 1}
    options |= {"gradient_checkpointing": False, "per_device_train_batch_size": 4, "image_root": str(place)}

    def trainer(steps):
        args = VisionRewardConfig(str(tmp_path / "adapter"), max_steps=steps, **options)
        lora = LoraConfig(r=4, target_modules=["q_proj"])
        return VisionRewardTrainer(str(place / "vlm"), args, train_dataset=data, peft_config=lora)

    trainer(1).train()
    again = trainer(2)
    again.train(resume_from_checkpoint=True)
    again.save_model()
    for folder in (tmp_path / "adapter", tmp_path / "adapter" / "checkpoint-2"):
        card = checked(folder, place, monkeypatch, runs=folder.name == "adapter")
        assert "resumed at step 1" in card.content and "LoRA adapter" in card.content and "r 4" in card.content
        assert card.data.library_name == "rs-rlhf" and card.data.eval_results is None


def test_trls_own_call_writes_ours_with_what_it_is_given(place, tmp_path):
    data = load_preferences(str(place / "pairs.jsonl"))
    args = VisionRewardConfig(str(tmp_path / "new"), use_cpu=True, bf16=False, report_to="none")
    trainer = VisionRewardTrainer(str(place / "vlm"), args, train_dataset=data)
    (tmp_path / "new").mkdir(exist_ok=True)
    trainer.create_model_card(model_name="named", dataset_name="ada/pairs", tags="mine")
    card = ModelCard.load(tmp_path / "new" / "README.md")
    assert card.content.split("---")[2].strip().startswith("# named") and "mine" in card.data.tags
    assert "None" not in card.content and "has not been evaluated" in card.content


SCENES = "--dataset_name scenes --dataset_train_split train --dataset_test_split validation"
TRAININGS = {
    "sft": f"{SCENES} --eval_strategy steps --eval_steps 2",
    "sft-lora": f"{SCENES} {LORA}",
    "dpo": "--dataset_name pairs.jsonl --eval_dataset_name pairs.jsonl --eval_strategy steps --eval_steps 2",
    "dpo-lora": f"--dataset_name pairs.jsonl {LORA}",
    "kto": "--dataset_name pairs.jsonl --eval_dataset_name pairs.jsonl --eval_strategy steps --eval_steps 2",
    "grpo": "--dataset_name asked.jsonl --eval_dataset_name asked.jsonl --score_model scorer --num_generations 4 "
    "--max_completion_length 6 --eval_strategy steps --eval_steps 2 --check_best_of_n 0",
    "raft": "--dataset_name asked.jsonl --eval_dataset_name asked.jsonl --score_model scorer -n 4 --max_new_tokens 6 "
    "--check_best_of_n 0 --learning_rate 1e-3",
    "clip": "--dataset_name texts.jsonl --eval_tasks scenes --eval_data_root . --eval_strategy steps --eval_steps 2",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_every_training_leaves_a_card_whose_code_runs(name, place, monkeypatch):
    command = name.removesuffix("-lora")
    out = trained(place, command, TRAININGS[name], f"out-{name}")
    folder = out / "round-1" / "policy" if command == "raft" else out
    card = checked(folder, place, monkeypatch)
    if not name.endswith("-lora"):
        assert card.data.eval_results, "a figure of the evaluation"
        assert any(result.metric_args for result in card.data.eval_results) or command == "kto"
    if command != "raft":
        assert f"rs-rlhf {command} " in card.content and checked(out / "checkpoint-2", place, monkeypatch, runs=False)
    else:
        assert "trained with RAFT" in card.content and "2304.06767" in card.content and "rs-rlhf raft " in card.content


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as an upload needs; `files` are those of the commits."""

    files: dict[str, bytes] = {}

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        reply = {}
        if self.path.endswith("/repos/create"):
            reply = {"url": f"http://{self.headers['Host']}/ada/model", "name": "ada/model"}
        elif "/preupload/" in self.path:
            kinds = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            reply = {"files": [{**kind, "shouldIgnore": False, "oid": None} for kind in kinds]}
        elif "/commit/" in self.path:
            for entry in map(json.loads, body.splitlines()):
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            url = f"http://{self.headers['Host']}/ada/model/commit/1"
            reply = {"success": True, "commitUrl": url, "commitOid": "1" * 40, "hookOutput": ""}
        self.answer(reply)

    def do_GET(self):
        self.answer({"id": "ada/model", "name": "ada", "siblings": [], "sha": "1" * 40, "tags": []})

    def answer(self, reply):
        content = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        """Says nothing."""


@pytest.mark.slow
def test_push_to_hub_uploads_the_card_with_its_figures(place):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    env = os.environ | {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}
    env["HF_HUB_DISABLE_XET"] = env["HF_HUB_DISABLE_TELEMETRY"] = "1"
    flags = "--dataset_name pairs.jsonl --eval_dataset_name pairs.jsonl --eval_strategy steps --trainable head "
    flags += f"--push_to_hub true --hub_model_id ada/model --hub_token hf_abcdefghijkl --save_strategy no {QUICK}"
    command = [sys.executable, "-m", "rs_rlhf", "reward", "--model_name_or_path", "vlm", "--output_dir", "pushed"]
    done = subprocess.run([*command, *flags.split()], cwd=place, env=env, capture_output=True, text=True, timeout=300)
    server.shutdown()
    assert done.returncode == 0, done.stderr[-3000:]
    text = Hub.files["README.md"].decode()
    assert 'Scorer.from_pretrained("ada/model")' in text and "model-index" in text and "None" not in text
    assert all(
        b"hf_abcdefghijkl" not in content for name, content in Hub.files.items() if name.endswith((".json", ".md"))
    )
