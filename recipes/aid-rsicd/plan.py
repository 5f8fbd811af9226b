"""Stages of the experiments on AID and RSICD: score models, reinforcement learning, curation, evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages import Stage
from subsets import CURVE

TINY = "--vocab_size 1500 --hidden_size 128 --num_layers 2 --vision_dim 128 --vision_depth 3".split()
TINY += "--min_pixels 12544 --max_pixels 13000".split()  # 112 x 112 pixels, 16 image tokens
CLIP = (
    "--hidden_size 128 --num_layers 3 --vision_dim 128 --vision_depth 3 --projection_dim 128 --image_size 72".split()
)
CLIP += "--patch_size 12 --max_length 32 --vocab_size 1500".split()
ROUNDS = 3  # of self-training
SAMPLES = ["--n", "8", "--max_new_tokens", "8"]
LISTS = ["--form", "list", "--rejected", "9", "--pairs_per_image", "4"]
CONTROLS = ("random", "majority")
# Cuts of the pool that a score model makes, and those that it has no part in.
OF_MODEL = {"model": [], "model_image": ["--best_of_every_image"]}
OF_NONE = ("full", "full_epochs", "random", "clip", "clip_image", "three", "three_image", "oracle")
TASKS = {"clip": ["classification", "retrieval"], "vlm": ["classification"]}


@dataclass(frozen=True)
class Plan:
    """How large the experiments are, and where they lie.

    Args:
        data (`Path`): Folder of the Parquet files.
        test (`str`): Evaluation images, `PATH[:SPLIT]`.
        out (`Path`): Everything that is made.
        score_models (`int`): Each from its own start, pairs and lists, with a policy and a CLIP of its own beside it.
        trainings (`int`): Final trainings with each.
        limit (`int`, *optional*): Images of each half, to try the way: trainings take two steps then.
        choose (`bool`): Evaluate on the images that are for choosing, into `choose` below `out`; the models are the
            same.
    """

    data: Path
    test: str
    out: Path
    score_models: int = 3
    trainings: int = 2
    limit: int | None = None
    choose: bool = False

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Score model and training, of each repetition."""
        return [*itertools.product(range(self.score_models), range(self.trainings))]

    def at(self, *parts: str | int) -> str:
        """A path below the output."""
        return str(self.out.joinpath(*map(str, parts)))

    def training(self, name: str, command: str, config: str, seed: int, options: Sequence[str], after: Iterable[str]):
        """A training of this recipe into the folder of its name."""
        steps = "100" if config == "policy" else "2"  # so that it answers with a class
        few = [] if self.limit is None else ["--max_steps", steps, "--per_device_train_batch_size", "8"]
        where = ["--config", f"aid-rsicd/{config}", "--seed", str(seed), "--output_dir", self.at(name)]
        return Stage(name, [command, *where, *options, *few], [*after])

    def tasks(self, *names: str) -> list[str]:
        """Flags that name evaluations, and the folder that their images lie in."""
        path, _, split = self.test.rpartition(":")
        root = self.at("data") if self.choose else str(Path(path or split).parent)
        files = (self.at("data", f"{'choose_' * self.choose}{name}.yaml") for name in names)
        return ["--task", ",".join(files), "--data_root", root]

    def evaluated(self, *parts: str | int) -> str:
        """The name of an evaluation."""
        return str(Path("choose" * self.choose, *map(str, parts)))

    def answers(self, name: str, model: str, after: Iterable[str]) -> list[Stage]:
        """A policy's answers to the evaluation images, greedy and sampled."""
        stages = []
        for way, options in (("greedy", []), ("sampled", ["--temperature", "1", "--seed", "0"])):
            command = ["eval", "--model", model, *self.tasks("classification"), *options]
            told = self.evaluated("answers", name, way)
            stages.append(Stage(told, [*command, "--out", self.at(told)], [*after]))
        return stages


def all_stages(plan: Plan) -> list[Stage]:
    """Returns every stage."""
    few = [] if plan.limit is None else ["--limit", str(plan.limit)]
    subsets = Stage("data", ["subsets.py", str(plan.data), plan.test, plan.at("data"), *few])
    return [
        subsets,
        *score_models(plan),
        *learning_curve(plan),
        *in_the_box(plan),
        *policies(plan),
        *reinforced(plan),
        *curated(plan),
    ]


def score_models(plan: Plan) -> list[Stage]:
    """Score models (`score/K/reward`), one blind to images, and their evaluation."""
    learn, stages = plan.at("data/learn.parquet"), []
    pairs = ["data", "pairs", "--pairs_per_image", "5", "--seed", "1", "--overwrite"]
    path, _, split = plan.test.rpartition(":")
    test = ["--input", path, "--split", split] if path else ["--input", split]
    stages.append(Stage("test_pairs", [*pairs, *test, "--output", plan.at("score/test_pairs.jsonl")], ["data"]))
    for k in range(plan.score_models):
        name = f"score/{k}"
        init = ["tiny-vlm", plan.at(name, "init"), "--texts", learn, "--seed", str(k), *TINY]
        stages.append(Stage(f"{name}/init", init, ["data"]))
        start = ["--model_name_or_path", plan.at(name, "init"), "--dataset_name", learn]
        stages.append(plan.training(f"{name}/captioner", "sft", "captioner", k, start, [f"{name}/init"]))
        lists, labels = plan.at(name, "lists.jsonl"), plan.at("data/learn_labels.jsonl")
        made = ["data", "pairs", "--input", learn, *LISTS, "--seed", str(k), "--overwrite", "--output", lists]
        stages.append(Stage(f"{name}/lists", made, ["data"]))
        given = ["--model_name_or_path", plan.at(name, "captioner"), "--dataset_name", f"{lists},{labels}"]
        needs = [f"{name}/captioner", f"{name}/lists"]
        stages.append(plan.training(f"{name}/reward", "reward", "reward", k, given, needs))
        if not k:
            given += ["--image_blind", "true"]
            stages.append(plan.training(f"{name}/blind", "reward", "reward", k, given, needs))
        for step in ("reward", "blind")[: 2 - bool(k)]:
            asked = ["eval", "--model", plan.at(name, step), "--preferences", plan.at("score/test_pairs.jsonl")]
            asked += ["--image_blind"] if step == "blind" else []
            told = f"{name}/eval_{step}"
            stages.append(Stage(told, [*asked, "--out", plan.at(f"{told}.json")], [f"{name}/{step}", "test_pairs"]))
        for rows in ("test", "pool"):
            best = ["data", "best", "--score_model", plan.at(name, "reward"), "--overwrite"]
            best += [
                "--input",
                plan.at(f"data/{rows}_choices.jsonl"),
                "--output",
                plan.at(name, f"{rows}_choice.jsonl"),
            ]
            stages.append(Stage(f"{name}/{rows}_choice", best, [f"{name}/reward"]))
    return stages


def learning_curve(plan: Plan) -> list[Stage]:
    """Score models from one captioner, on lists of fewer images in as many steps."""
    stages = []
    for count in CURVE:
        name, lists = f"curve/{count}", plan.at("curve", f"lists_{count}.jsonl")
        made = ["data", "pairs", "--input", plan.at(f"data/learn_{count}.parquet"), *LISTS, "--seed", "0"]
        stages.append(Stage(f"{name}/lists", [*made, "--overwrite", "--output", lists], ["data"]))
        read = f"{lists},{plan.at(f'data/learn_{count}_labels.jsonl')}"
        given = ["--model_name_or_path", plan.at("score/0/captioner"), "--dataset_name", read]
        needs = ["score/0/captioner", f"{name}/lists"]
        stages.append(plan.training(f"{name}/reward", "reward", "reward", 0, given, needs))
        asked = ["eval", "--model", plan.at(name, "reward"), "--preferences", plan.at("score/test_pairs.jsonl")]
        stages.append(
            Stage(f"{name}/eval", [*asked, "--out", plan.at(f"{name}.json")], [f"{name}/reward", "test_pairs"])
        )
    return stages


def in_the_box(plan: Plan) -> list[Stage]:
    """The score model that comes with the package: score model 0, which then sees drawn scenes too (`box/reward`)."""
    scenes, lists = plan.at("box/scenes"), plan.at("box/lists.jsonl")
    read = ",".join([plan.at("score/0/lists.jsonl"), plan.at("data/learn_labels.jsonl"), lists])
    draw = ["data", "scenes", scenes, "--n_train", "600", "--n_validation", "120", "--seed", "3"]
    made = ["data", "pairs", "--input", scenes, "--split", "train", "--form", "list", "--rejected", "9"]
    given = ["--model_name_or_path", plan.at("score/0/reward"), "--dataset_name", read]
    given += ["--max_steps", "250", "--learning_rate", "5e-4"]
    asked = ["eval", "--model", plan.at("box/reward"), "--out"]
    best = ["data", "best", "--score_model", plan.at("box/reward"), "--overwrite"]
    best += ["--input", plan.at("data/test_choices.jsonl"), "--output", plan.at("box/test_choice.jsonl")]
    stages = [
        Stage("box/scenes", draw),
        Stage("box/lists", [*made, "--pairs_per_image", "3", "--overwrite", "--output", lists], ["box/scenes"]),
        plan.training("box/reward", "reward", "reward", 0, given, ["score/0/reward", "box/lists"]),
        Stage("box/test_choice", best, ["box/reward"]),
    ]
    drawn = ["data", "pairs", "--input", scenes, "--split", "validation", "--seed", "1", "--overwrite", "--output"]
    stages.append(Stage("box/drawn_pairs", [*drawn, plan.at("box/drawn_pairs.jsonl")], ["box/scenes"]))
    for name, pairs, after in (
        ("eval", "score/test_pairs", "test_pairs"),
        ("drawn", "box/drawn_pairs", "box/drawn_pairs"),
    ):
        command = [*asked, plan.at("box", f"{name}.json"), "--preferences", plan.at(f"{pairs}.jsonl")]
        stages.append(Stage(f"box/{name}", command, ["box/reward", after]))
    return stages


def policies(plan: Plan) -> list[Stage]:
    """The policies that RL starts from (`policy/K/policy`), and self-training without a score model."""
    stages, classes = [], plan.at("data/classes.txt")
    for k in range(plan.score_models):
        name, texts = f"policy/{k}", plan.at("data/policy.parquet")
        init = ["tiny-vlm", plan.at(name, "init"), "--texts", texts, "--seed", str(100 + k), *TINY]
        stages.append(Stage(f"{name}/init", init, ["data"]))
        start = ["--model_name_or_path", plan.at(name, "init"), "--dataset_name", texts]
        stages.append(plan.training(f"{name}/policy", "sft", "policy", 100 + k, start, [f"{name}/init"]))
        stages += plan.answers(name, plan.at(name, "policy"), [f"{name}/policy"])
        for control in CONTROLS:
            before = f"{name}/policy"
            for r in range(1, ROUNDS + 1):
                told = f"controls/{control}/{k}/{r}"
                rows = plan.at(f"{told}.jsonl")
                draw = ["self_training.py", plan.at(before), plan.at("data/pool.parquet"), rows, "--choices", classes]
                draw += ["--choose", control, "--seed", str(10 * k + r)]
                stages.append(Stage(f"{told}/rows", draw, [before]))
                start = ["--model_name_or_path", plan.at(before), "--dataset_name", rows]
                stages.append(plan.training(told, "sft", "self_training", 10 * k + r, start, [f"{told}/rows"]))
                stages += plan.answers(told, plan.at(told), [told])
                before = told
    return stages


def reinforced(plan: Plan) -> list[Stage]:
    """RAFT, GRPO, DPO, and the controls that need a score model, for each score model and policy."""
    stages, pool, classes = [], plan.at("data/pool.parquet"), plan.at("data/classes.txt")
    for k, j in plan.pairs:
        policy, model, seed = plan.at("policy", k, "policy"), plan.at("score", k, "reward"), 10 * k + j
        after = [f"policy/{k}/policy", f"score/{k}/reward"]
        few = [] if plan.limit is None else ["--max_steps", "2", "--per_device_train_batch_size", "8"]
        for arm, rounds in (("raft", ROUNDS), ("shuffled", 1)):
            command = ["raft", "--config", "aid-rsicd/self_training", "--policy", policy, "--score_model", model]
            command += ["--input", pool, "--choices", classes, *SAMPLES, "--rounds", str(rounds), "--seed", str(seed)]
            command += ["--validation_prompts", "0", "--check_best_of_n", "0", *few]
            command += ["--shuffle_reward_images"] if arm == "shuffled" else []
            name = f"{arm}/{k}/{j}"
            stages.append(Stage(name, [*command, "--output_dir", plan.at(name)], after))
            for r in range(1, rounds + 1):
                stages += plan.answers(f"{name}/{r}", plan.at(name, f"round-{r}", "policy"), [name])
        start = ["--model_name_or_path", policy]
        name = f"ceiling/{k}/{j}"  # as many epochs as the rounds of RAFT
        given = [*start, "--dataset_name", plan.at("score", k, "pool_choice.jsonl"), "--num_train_epochs", "9"]
        stages.append(plan.training(name, "sft", "self_training", seed, given, [*after, f"score/{k}/pool_choice"]))
        stages += plan.answers(name, plan.at(name), [name])
        name = f"grpo/{k}/{j}"
        given = [*start, "--score_model", model, "--dataset_name", pool]
        stages.append(plan.training(name, "grpo", "grpo", seed, given, after))
        stages += plan.answers(name, plan.at(name), [name])
        name = f"dpo/{k}/{j}"
        rows = plan.at(name, "pairs.jsonl")
        draw = ["data", "dpo", "--policy", policy, "--model", model, "--input", pool, *SAMPLES, "--seed", str(seed)]
        draw += ["--check_best_of_n", "0", "--overwrite", "--output", rows]
        stages.append(Stage(f"{name}/rows", draw, after))
        given = [*start, "--dataset_name", rows]
        stages.append(plan.training(f"{name}/policy", "dpo", "dpo", seed, given, [f"{name}/rows"]))
        stages += plan.answers(name, plan.at(name, "policy"), [f"{name}/policy"])
    return stages


def curated(plan: Plan) -> list[Stage]:
    """A damaged pool, its scores and cuts, and the CLIPs and VLMs that are trained on each cut."""
    pool, stages = plan.at("curation/pool.jsonl"), []
    for name, source in (("pool", "pool"), ("choose", "choose")):
        made = ["data", "damage", "--input", plan.at(f"data/{source}.parquet"), "--rate", "0.6", "--questions"]
        stages.append(
            Stage(f"curation/{name}", [*made, "--overwrite", "--output", plan.at(f"curation/{name}.jsonl")], ["data"])
        )
    models = [plan.at("score", k, "reward") for k in range(plan.score_models)]
    three = ["--model", ",".join(models), "--score_combine", "mean-std"]
    three += ["--score_calibration", plan.at("curation/choose.jsonl")]
    of_models = [f"score/{k}/reward" for k in range(plan.score_models)]
    scorers = {str(k): (["--model", model], [of_models[k]]) for k, model in enumerate(models)}
    scorers["three"] = (three, [*of_models, "curation/choose"])
    scorers["clip"] = (["--scorer", "clip", "--model", plan.at("clip/0/start")], ["clip/0/start"])
    scorers["random"] = (["--scorer", "random"], [])
    for name, (options, after) in scorers.items():
        command = ["score", "--input", pool, *options, "--output", plan.at("curation/scores", name)]
        stages.append(Stage(f"curation/scores/{name}", command, ["curation/pool", *after]))
    for k in range(plan.score_models):
        learn = plan.at("data/learn.parquet")
        init = ["tiny-clip", plan.at("clip", k, "init"), "--texts", learn, "--seed", str(k), *CLIP]
        stages.append(Stage(f"clip/{k}/init", init, ["data"]))
        start = ["--model_name_or_path", plan.at("clip", k, "init"), "--dataset_name", learn]
        stages.append(plan.training(f"clip/{k}/start", "clip", "clip_start", k, start, [f"clip/{k}/init"]))
        stages += evaluations(plan, "clip", f"start/{k}", plan.at("clip", k, "start"), [f"clip/{k}/start"])
    stages += cuts(plan, pool)
    for arm in OF_NONE:
        for k in range(plan.score_models):
            stages += trained(plan, arm, f"{arm}/{k}", k, 10 * k)
    for (k, j), arm in itertools.product(plan.pairs, (*OF_MODEL, "mean_rank")):
        stages += trained(plan, f"{arm}_{k}", f"{arm}/{k}/{j}", k, 10 * k + j)
    return stages


def cuts(plan: Plan, pool: str) -> list[Stage]:
    """What each way of choosing keeps: 30% of the captions and of the labels."""
    stages = []
    ids = {"oracle": ["oracle", pool]}
    cut = {"random": ("random", []), "clip": ("clip", []), "clip_image": ("clip", ["--best_of_every_image"])}
    cut |= {"three": ("three", []), "three_image": ("three", ["--best_of_every_image"])}
    for k in range(plan.score_models):
        cut |= {f"{arm}_{k}": (str(k), options) for arm, options in OF_MODEL.items()}
        scores = ["--scores", plan.at("curation/scores", k), plan.at("curation/scores/clip")]
        ids[f"mean_rank_{k}"] = ["mean-rank", pool, *scores]
    for arm, (how, _, *options) in ids.items():
        file = plan.at("curation/ids", f"{arm}.parquet")
        needs = ["curation/pool"]
        needs += [f"curation/scores/{name}" for name in (arm.rsplit("_", 1)[-1], "clip") if how == "mean-rank"]
        stages.append(Stage(f"curation/ids/{arm}", ["cut.py", how, pool, file, *options], needs))
    for arm in (*cut, *ids):
        if arm in ids:
            what = ["--ids", plan.at("curation/ids", f"{arm}.parquet"), "--input", pool]
            needs = [f"curation/ids/{arm}"]
        else:
            scores, options = cut[arm]
            what = [plan.at("curation/scores", scores), "--keep", "0.3", "--by", "source", *options]
            needs = [f"curation/scores/{scores}"]
        command = ["curate", *what, "--output", plan.at("kept", arm), "--overwrite"]
        stages.append(Stage(f"kept/{arm}", command, needs))
    for arm in ("full", *cut, *ids):
        kept = [] if arm == "full" else ["--kept", plan.at("kept", arm)]
        needs = ["curation/pool"] if arm == "full" else [f"kept/{arm}"]
        stages.append(
            Stage(f"labels/{arm}", ["cut.py", "labels", pool, plan.at("labels", f"{arm}.jsonl"), *kept], needs)
        )
    return stages


def trained(plan: Plan, cut: str, name: str, k: int, seed: int) -> list[Stage]:
    """A CLIP and a VLM trained on a cut, and evaluated; `full` takes as many steps as a cut of 30%."""
    data, stages = cut.removesuffix("_epochs"), []
    share = ["--num_train_epochs", "1.5"] if cut == "full" else []
    starts = {"clip": f"clip/{k}/start", "vlm": f"policy/{k}/policy"}
    texts = {"clip": plan.at("kept", data) if data != "full" else plan.at("curation/pool.jsonl")}
    texts["vlm"] = plan.at("labels", f"{data}.jsonl")
    for kind, command in (("clip", "clip"), ("vlm", "sft")):
        told = f"curated/{kind}/{name}"
        given = ["--model_name_or_path", plan.at(starts[kind]), "--dataset_name", texts[kind], *share]
        given += ["--image_root", plan.at("curation")] if kind == "vlm" else []
        after = [starts[kind], f"labels/{data}"]
        stages.append(plan.training(told, command, kind, seed, given, after))
        stages += evaluations(plan, kind, name, plan.at(told), [told])
    return stages


def evaluations(plan: Plan, kind: str, name: str, model: str, after: Iterable[str]) -> list[Stage]:
    """The evaluation of a CLIP or a VLM."""
    command = [
        "eval",
        "--model",
        model,
        *plan.tasks(*TASKS[kind]),
        *(["--model_type", "clip"] if kind == "clip" else []),
    ]
    told = plan.evaluated("evaluated", kind, name)
    return [Stage(told, [*command, "--out", plan.at(told)], [*after])]
