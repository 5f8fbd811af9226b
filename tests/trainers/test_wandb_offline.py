"""What a real run writes to W&B, read from its offline file; and the page of the same run."""

import json

import pytest
import wandb
from helpers import picture
from helpers.wandb_files import logged
from PIL import Image

from rs_rlhf import VisionRewardConfig, VisionRewardTrainer
from rs_rlhf.preferences.reader import load_preferences
from rs_rlhf.runs.report import write_report
from rs_rlhf.runs.tables import THUMBNAIL

STEPS = 3


@pytest.fixture(scope="module")
def run(tiny_vlm, tmp_path_factory):
    """Trains a score model for three steps with two evaluations; returns the run's folder."""
    folder = tmp_path_factory.mktemp("offline")
    lines = []
    for i in range(6):
        picture(i).save(folder / f"{i}.png")
        row = {"image": str(folder / f"{i}.png"), "chosen": f"a river {i % 3}.", "rejected": "many trees."}
        lines.append(json.dumps(row | {"kind": "ab"[i % 2]}) + "\n")
    (folder / "pairs.jsonl").write_text("".join(lines))
    data = load_preferences(str(folder / "pairs.jsonl"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_DIR", str(folder))
        patch.setenv("WANDB_DATA_DIR", str(folder / "staged"))
        args = VisionRewardConfig(
            output_dir=str(folder / "run"),
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to="wandb",
            per_device_train_batch_size=2,
            per_device_eval_batch_size=4,
            logging_steps=1,
            max_steps=STEPS,
            eval_strategy="steps",
            eval_steps=2,
            worst_pairs=4,
            save_strategy="no",
            disable_tqdm=True,
        )
        wandb.teardown()  # wandb keeps the folder of the process's first run, which another test may have made
        trainer = VisionRewardTrainer(tiny_vlm, args, train_dataset=data, eval_dataset=data)
        trainer.train()
        trainer.save_state()
        wandb.finish()
    return folder


def test_keys_lie_under_our_prefixes_and_samples_only_where_expected(run):
    history, artifacts = logged(run)
    keys = {key for entry in history for key in entry if not key.startswith("_")}
    numbers = {key for entry in history for key, value in entry.items() if isinstance(value, int | float)}
    for key in ("score/accuracy", "score/margin", "score/mean", "score/accuracy_kind/a"):
        assert f"train/{key}" in numbers and f"eval/{key}" in numbers, key
    assert {"eval/score/shuffle_gap", "train/loss", "eval/loss", "train/global_step"} <= numbers
    assert {key.split("/")[0] for key in keys} == {"train", "eval", "score"}
    tables = {key: value for entry in history for key, value in entry.items() if isinstance(value, dict)}
    assert set(tables) == {f"score/worst_pairs_eval/step_{step:06d}" for step in (2, STEPS)}  # a key per evaluation
    assert all(value["_type"] == "table-file" and value["nrows"] == 4 for value in tables.values())
    assert keys - numbers == set(tables)

    (media,) = run.glob("wandb/offline-run-*/files/media")
    files = [path for path in media.rglob("*") if path.is_file()]
    assert len(files) == 2 and all(path.parent == media / "table" / "score" / "worst_pairs_eval" for path in files)
    assert len(artifacts) == 2 and all(artifact.type == "run_table" for artifact in artifacts)
    for artifact in artifacts:  # a table's pictures lie in its artifact
        entries = {entry.path: entry.local_path for entry in artifact.manifest.contents}
        pictures = [local for path, local in entries.items() if path.startswith("media/images/")]
        assert len(pictures) == 4 and len(entries) == 5
        for picture_file in pictures:
            with Image.open(picture_file) as image:
                assert max(image.size) <= THUMBNAIL


def test_the_page_of_the_same_run(run, tmp_path):
    data = write_report(run / "run", tmp_path / "page.html")
    assert [table["title"] for table in data["tables"]] == ["Worst pairs"]
    assert [entry["step"] for entry in data["tables"][0]["steps"]] == [2, STEPS]
    assert 4 <= len(data["images"]) <= 6 and data["warnings"] == []
    groups = {
        group["name"]: {chart["label"].split(":")[0] for chart in group["charts"] + group["still"]}
        for group in data["groups"]
    }
    assert {"score/accuracy", "score/accuracy_kind/b", "score/shuffle_gap"} <= groups["score"] and "loss" in groups[
        "train"
    ]
    titles = [chart["label"].split(":")[0] for chart in data["headline"]]
    assert titles == ["Held-out preference pairs", "Preference pairs in training"]
    assert dict(data["facts"])["Steps"] == f"{STEPS} of {STEPS}"
