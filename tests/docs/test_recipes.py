"""The recipes, run through the command line on tiny models with a few steps."""

import json
import os
import re
import statistics

import pytest
import torch
from helpers import ROOT, data_folder, picture, warm
from safetensors.torch import load_file
from transformers import AutoProcessor

from rs_rlhf import ScoreModel
from rs_rlhf.models.tiny_vlm import save_tiny_vlm

SMALL = ["--hidden_size", "32", "--vision_dim", "32", "--min_pixels", "3136", "--max_pixels", "3136"]
STUDIES = {
    name: ROOT / "docs" / "case_studies" / f"{name.replace('-', '_')}.md"
    for name in ("aid-rsicd-tiny", "aid-rsicd-curation")
}
# A process that a launcher started: the recipe's own launcher is left out.
ONE_PROCESS = {"ACCELERATE_MIXED_PRECISION": "no"}


def run(command, folder, **env):
    """Runs a command as a user would, with the data in `data`."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "RS_RLHF_DATA": "data", **env}
    return warm.run(command, cwd=folder, env=env, timeout=600, check=0).stdout


@pytest.fixture(scope="module")
def aid_rsicd(tmp_path_factory):
    """A slice of the real data, in files of the same names."""
    import pyarrow.parquet

    folder = tmp_path_factory.mktemp("data") / "aid_rsicd"
    folder.mkdir()
    for file in sorted(data_folder("aid_rsicd").glob("*.parquet")):
        batch = next(pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=64))
        pyarrow.parquet.write_table(pyarrow.Table.from_batches([batch]), folder / file.name)
    return folder


# Recipes of a backbone, and its family. Whether two processes are launched: the default tier runs one, of one family.
STAGES = {"scorers-qwen2vl-7b": "qwen2_vl", "qwen2_5-vl-7b": "qwen2_5_vl", "qwen3-vl-8b": "qwen3_vl"}
RUNS = [("scorers-qwen2vl-7b", False), *(pytest.param(name, True, marks=pytest.mark.slow) for name in STAGES)]


@pytest.mark.parametrize(("recipes", "launched"), RUNS)
def test_the_three_stages_follow_on_from_each_other(recipes, launched, tmp_path):
    save_tiny_vlm(tmp_path / "tiny", family=STAGES[recipes], max_pixels=12 * 28 * 28)
    rows = []
    for i in range(8):
        picture(i).save(tmp_path / f"{i}.png")
        rows.append({"prompt": "", "chosen": "a river.", "rejected": "many trees.", "image": f"{i}.png"})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ["--dataset_name", "pairs.jsonl", "--max_steps", "2", "--bf16", "false", "--use_cpu", "true"]
    common += ["--learning_rate", "1e-2", "--warmup_steps", "0", "--report_to", "none", "--save_strategy", "no"]
    common += ["--eval_strategy", "no", "--max_pixels", str(12 * 28 * 28), "--dataloader_num_workers", "0"]
    common += ["--accelerate_config", "cpu_zero2", "--num_processes", "2"]
    trained = {1: ["reward_head"], 2: ["visual", "reward_head"], 3: ["language_model", "reward_head"]}
    before = None
    for stage, parts in trained.items():
        start = ["--model_name_or_path", "tiny"] if stage == 1 else []
        command = ["reward", "--config", f"{recipes}/stage{stage}", *start, *common]
        run(command, tmp_path, **({} if launched else ONE_PROCESS))
        folder = tmp_path / "out" / recipes / f"stage{stage}"
        weights = load_file(folder / "model.safetensors")
        if before is not None:
            changed = {name for name, weight in weights.items() if not torch.equal(weight, before[name])}
            assert changed and all(any(part in name for part in parts) for name in changed)
            assert all(any(part in name for name in changed) for part in parts)
        before = weights
    assert ScoreModel.from_pretrained(folder).config.positions == "mrope"


@pytest.mark.parametrize("recipe", ["reward", pytest.param("blind", marks=pytest.mark.slow)])
def test_the_recipe_on_real_images_runs(recipe, aid_rsicd, tmp_path):
    """The commands of recipes/aid-rsicd-tiny/README.md, a few steps of each on a slice of the data."""
    data = aid_rsicd
    (tmp_path / "out").mkdir()
    run(["tiny-vlm", "out/aid-rsicd-tiny/captioner", "--texts", f"{data}:validation", *SMALL], tmp_path)
    for split in ("train", "validation"):
        pairs = ["--output", f"out/aid-rsicd-tiny/pairs/{split}.jsonl", "--limit", "20", "--pairs-per-image", "5"]
        run(["data", "pairs", "--input", str(data), "--split", split, *pairs], tmp_path)
    flags = ["--max_steps", "2", "--per_device_train_batch_size", "8", "--use_cpu", "true", "--save_strategy", "no"]
    run(["reward", "--config", f"aid-rsicd-tiny/{recipe}", "--eval_steps", "2", *flags], tmp_path)
    blind = ["--image_blind"] if recipe == "blind" else []
    table = run(
        [
            "eval",
            "--model",
            f"out/aid-rsicd-tiny/{recipe}",
            "--preferences",
            "out/aid-rsicd-tiny/pairs/validation.jsonl",
            *blind,
        ],
        tmp_path,
    )
    assert "kind: another_class | 20 |" in table
    assert ("Image-shuffle gap" in table) == (recipe == "reward")


def test_the_captioner_recipe_runs(aid_rsicd, tmp_path):
    data = aid_rsicd
    run(
        ["tiny-vlm", "out/aid-rsicd-tiny/init", "--hidden_size", "32", "--vision_dim", "32", "--max_pixels", "3136"],
        tmp_path,
    )
    flags = ["--dataset_name", str(data), "--dataset_train_split", "validation", "--max_steps", "2"]
    flags += ["--per_device_train_batch_size", "8", "--eval_strategy", "no", "--use_cpu", "true"]
    run(["sft", "--config", "aid-rsicd-tiny/captioner", *flags], tmp_path)
    assert (tmp_path / "out" / "aid-rsicd-tiny" / "captioner" / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_rl_recipe_on_real_images_runs(aid_rsicd, tmp_path):
    """The commands of the RL part of recipes/aid-rsicd-tiny/README.md, a few steps of each on a slice of the data."""
    data = aid_rsicd
    out = "out/aid-rsicd-tiny"
    run(["tiny-vlm", f"{out}/init", "--texts", f"{data}:validation", *SMALL], tmp_path)
    run(["tiny-vlm", f"{out}/captioner", "--texts", f"{data}:validation", *SMALL, "--seed", "1"], tmp_path)
    few = ["--max_steps", "2", "--use_cpu", "true"]
    images = ["--dataset_name", str(data), "--dataset_train_split", "validation", "--max_train_samples", "32"]
    sft = ["--eval_strategy", "no", "--per_device_train_batch_size", "8"]
    run(["sft", "--config", "aid-rsicd-tiny/policy", *images, *few, *sft, "--output_dir", f"{out}/policy2"], tmp_path)
    sampled = ["--policy", f"{out}/policy2", "--input", str(data), "--split", "validation", "-n", "2"]
    sampled += ["--form", "list"]
    for split, extra in (("train", ["--choices_extra", "3", "--damaged_extra", "2"]), ("validation", [])):
        more = ["--limit", "16", "--output", f"{out}/pairs/mistakes_{split}.jsonl", "--choices_extra", "5", *extra]
        run(["data", "sample-pairs", *sampled, *more], tmp_path)
    run(
        [
            "reward",
            "--config",
            "aid-rsicd-tiny/rl_reward",
            *few,
            "--per_device_train_batch_size",
            "8",
            "--eval_steps",
            "2",
        ],
        tmp_path,
    )
    log = run(
        [
            "grpo",
            "--config",
            "aid-rsicd-tiny/grpo",
            *images,
            *few,
            "--dataset_test_split",
            "validation",
            "--score_model",
            f"{out}/rl_reward",
            "--max_eval_samples",
            "16",
            "--per_device_train_batch_size",
            "16",
            "--eval_steps",
            "2",
            "--logging_steps",
            "1",
        ],
        tmp_path,
    )
    assert "eval_audit/greedy_accuracy" in log and "audit/shuffle_gap" in log and "score/mean" in log
    assert (tmp_path / out / "grpo" / "model.safetensors").is_file()


GRPO = [(f"qwen2-vl-7b-grpo/{name}", "qwen2_vl") for name in ("zero3", "zero2", "lora")]
GRPO += [(f"{of}/grpo_{name}", STAGES[of]) for of in ("qwen2_5-vl-7b", "qwen3-vl-8b") for name in ("zero3", "lora")]


@pytest.mark.parametrize(
    ("recipe", "family", "launched"),
    [(*GRPO[2], False), *(pytest.param(*recipe, True, marks=pytest.mark.slow) for recipe in GRPO)],
)
def test_the_7b_grpo_recipes_run_on_tiny_models(recipe, family, launched, tmp_path):
    save_tiny_vlm(tmp_path / "tiny", family=family, max_pixels=12 * 28 * 28)
    model = ScoreModel.from_pretrained(tmp_path / "tiny")
    model.save_pretrained(tmp_path / "score")
    AutoProcessor.from_pretrained(tmp_path / "tiny").save_pretrained(tmp_path / "score")
    folder = tmp_path / "data" / "rs_rl"
    folder.mkdir(parents=True)
    rows = []
    for i, (kind, solution) in enumerate([("em", "rural"), ("iou", "(1,2),(30,40)"), ("open_ended", "a river")] * 2):
        picture(i).save(folder / f"{i}.png")
        rows.append({"prompt": "What is it?", "solution": solution, "reward_type": kind, "image": f"{i}.png"})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--model_name_or_path", "tiny", "--score_model", "score", "--max_pixels", str(12 * 28 * 28)]
    flags += ["--dtype", "float32", "--bf16", "false", "--use_cpu", "true", "--max_completion_length", "8"]
    flags += ["--gradient_accumulation_steps", "1", "--max_steps", "1", "--report_to", "none", "--num_processes", "2"]
    flags += ["--dataloader_num_workers", "0", "--gradient_checkpointing", "false"]
    sharded, adapter = recipe.endswith("zero3"), recipe.endswith("lora")
    config = "cpu_zero3" if sharded else "cpu_zero2"
    command = ["grpo", "--config", recipe, *flags, "--accelerate_config", config]
    log = run(command, tmp_path, **({} if launched else ONE_PROCESS))
    assert "rewards/rs_reward/mean" in log and "Used: " + ("sharded" if sharded else "replicated") in log
    assert (
        (tmp_path / "out" / recipe / ("adapter_model" if adapter else "model")).with_suffix(".safetensors").is_file()
    )


def test_the_case_study_states_the_measured_results():
    folder = ROOT / "recipes" / "aid-rsicd-tiny"
    reports = [folder / "results" / name for name in ("preferences.json", "preferences_blind.json")]
    seeing, blind = (json.loads(path.read_text()) for path in reports)
    text = STUDIES[folder.name].read_text()
    for kind, part in seeing["by_kind"].items():
        line = next(line for line in text.splitlines() if line.startswith(f"| {kind} |"))
        for report in (part, blind["by_kind"][kind]):
            low, high = report["interval"]
            assert f"{report['accuracy']:.1%} ({low:.1%} – {high:.1%})" in line
    # what the recipe shows: the score model sees, beyond what the texts give away
    assert seeing["by_kind"]["another_class"]["interval"][0] > blind["by_kind"]["another_class"]["interval"][1]
    assert seeing["shuffled"]["gap"] > 0.1


def test_the_case_study_states_the_measured_rl_results():
    folder = ROOT / "recipes" / "aid-rsicd-tiny"
    runs = json.loads((folder / "results" / "grpo.json").read_text())["runs"]
    text = STUDIES[folder.name].read_text()

    def share(run, kind):
        return runs[run][kind]["right"] / runs[run][kind]["answers"]

    rows = {
        "before": ["policy2"],
        "GRPO, seed 0 / 1 / 2": [f"grpo_seed{i}" for i in range(3)],
        "control: another image": [f"shuffled_seed{i}" for i in range(3)],
        "control: more labels": [f"more_sft_seed{i}" for i in range(3)],
    }
    for start, names in rows.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {start}")]
        for kind in ("sampled", "greedy"):
            assert " / ".join(f"{share(name, kind):.1%}" for name in names) in line
    (line,) = [line for line in text.splitlines() if line.startswith("| GRPO, mean ± sd")]
    for kind in ("sampled", "greedy"):
        values = [share(name, kind) for name in rows["GRPO, seed 0 / 1 / 2"]]
        assert f"{statistics.mean(values):.1%} ± {statistics.stdev(values):.1%}" in line
    # the control: a reward that is shown another image must not improve the policy
    assert share("shuffled_seed0", "greedy") < 0.1 < share("policy2", "greedy")


def test_the_case_study_states_the_measured_best_of_n():
    folder = ROOT / "recipes" / "aid-rsicd-tiny"
    found = json.loads((folder / "results" / "best_of_n.json").read_text())
    text = STUDIES[folder.name].read_text().partition("## Best of N")[2]
    names = {"score": "score model", "majority": "majority vote", "random": "one at random", "oracle": "oracle"}
    for method, name in names.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
        entries = found["pooled"]["methods"][method]
        assert [entry["n"] for entry in entries] == [1, 2, 4, 8, 16]
        for entry in entries:
            low, high = entry["interval"]
            assert f"{entry['accuracy']:.1%} ({low:.1%} – {high:.1%})" in line
    for other in ("majority", "random"):  # what it must show: better than both, at 8 and at 16
        for entry in found["pooled"]["differences"][f"score - {other}"][-2:]:
            low, high = (f"{100 * end:.1f}" for end in entry["interval"])
            assert entry["interval"][0] > 0
            assert f"{100 * entry['difference']:.1f}" in text and re.search(rf"{low}\s+to\s+{high}", text)


def test_the_case_study_states_the_measured_curation_results():
    folder = ROOT / "recipes" / "aid-rsicd-curation"
    found = json.loads((folder / "results" / "curation.json").read_text())
    text = STUDIES[folder.name].read_text()
    assert all(line in text for line in found["tables"])
    names = {
        "full": "all rows",
        "random": "random 30%",
        "clip": "CLIP score, top 30%",
        "clip_image": "CLIP score, every image",
        "model": "score model, top 30%",
        "model_image": "score model, every image",
        "oracle": "oracle 30%",
    }

    def runs(kind, arm, name, same="steps"):
        wanted = f"{arm}_steps" if arm == "full" and same == "steps" else arm
        return [run[name] for run in found["runs"] if run["kind"] == kind and run["table_arm"] == wanted]

    for arm, name in names.items():
        kept, *learned = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
        assert f"{found['kept'][arm]['captions']['clean']:.1%} | {found['kept'][arm]['labels']['clean']:.1%}" in kept
        tables = [same for same in ("steps", "epochs") if any(f"| same {same} |" in line for line in found["tables"])]
        for same, line in zip(tables, learned, strict=True):
            for kind, figure in (("clip", "zero-shot accuracy"), ("vlm", "accuracy")):
                values = runs(kind, arm, figure, same)
                assert len(values) == 3
                assert f"{statistics.mean(values):.1%} ± {statistics.stdev(values):.1%}" in line
    # what it shows, seed by seed: with every image the score model's cut beats all that no oracle made
    ours = runs("clip", "model_image", "zero-shot accuracy")
    for arm in ("full", "random", "clip", "clip_image", "model"):
        others = runs("clip", arm, "zero-shot accuracy")
        assert all(a > b for a, b in zip(ours, others, strict=True)), arm
    first = json.loads((folder / "results" / "curation_first.json").read_text())
    for arm in ("full", "random", "clip", "model", "oracle"):
        (line,) = [line for line in text.splitlines() if line.startswith(f"| first: {names[arm]} |")]
        wanted = "full_steps" if arm == "full" else arm
        found_runs = [run for run in first["runs"] if run["kind"] == "clip" and run["table_arm"] == wanted]
        values = [run["zero-shot accuracy"] for run in found_runs]
        assert f"{first['kept'][arm]['captions']['clean']:.1%} | {statistics.mean(values):.1%} ±" in line
    for one in json.loads((folder / "results" / "curation_why.json").read_text())["runs"]:
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {one['texts']} |")]
        assert line.endswith(f"| {one['zero-shot accuracy']:.1%} |")


def test_the_case_study_states_the_measured_rl_gain():
    folder = ROOT / "recipes" / "aid-rsicd-curation"
    found = json.loads((folder / "results" / "grpo.json").read_text())
    text = STUDIES[folder.name].read_text()
    assert all(line in text for line in found["table"])

    def share(bits):
        assert len(bits) == found["images"] and set(bits) == {"0", "1"}
        return bits.count("1") / len(bits)

    before = {way: share(bits) for way, bits in found["before"]["spoiled"].items()}
    shares = {}
    for arm, name in (
        ("grpo", "GRPO, the score model alone"),
        ("shuffled", "control: GRPO, another"),
        ("wrong", "control: more of"),
    ):
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {name}")]
        for way in ("greedy", "sampled"):
            own = shares[arm, way] = [share(run["right"][way]) for run in found["runs"] if run["arm"] == arm]
            assert len(own) == 3 and " / ".join(f"{value:.1%}" for value in own) in line
            assert f"{statistics.mean(own):.1%} ± {statistics.stdev(own):.1%}" in line
        gain = 100 * (statistics.mean(shares[arm, "greedy"]) - before["greedy"])
        shown, low, high = map(float, re.search(r"\| ([+-][\d.]+) \(([+-][\d.]+) to ([+-][\d.]+)\) \|", line).groups())
        assert shown == pytest.approx(gain, abs=0.051) and low < shown < high
        if arm == "grpo":
            assert low > 0  # what it shows: better than before, and in every seed
            assert all(value > before[way] for way in before for value in shares[arm, way])
    # the control: a reward that is shown another image makes it worse
    assert max(shares["shuffled", "greedy"]) < before["greedy"]
    tried = json.loads((folder / "results" / "grpo_tried.json").read_text())
    for one in tried["runs"]:
        assert f"| {one['change']} | {one['greedy']:.1%} | {one['sampled']:.1%} |" in text
    for one in tried["score_models"]:
        low, high = one["interval"]
        assert f"| `{one['model']}` | {one['accuracy']:.1%} ({low:.1%} – {high:.1%}) |" in text
