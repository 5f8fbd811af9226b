"""Rejection-sampling fine-tuning (RAFT, arXiv 2304.06767): rounds of sampling, keeping the best, training, evaluating.

A round is a folder `round-K` of the `output_dir`. Each phase leaves a file once it has ended, and a phase whose file
is there is not run again, so that a run that was killed anywhere resumes:

1. `best.jsonl`: the policy of the round before is sampled, its answers are scored as groups, and the best are kept. It
   is what `rs-rlhf data best` writes with that policy and the seed plus K - 1, image paths starting from `output_dir`.
   `sampled.json` holds the audit of all answers.
2. `policy`: the policy of the round before, fine-tuned on them by `rs-rlhf sft`; resumed from its last checkpoint.
3. `evaluation.json`: its greedy answers to the same held-out prompts; `round-0` has those of the policy before.

Only the audit and the evaluation look at solutions, where there are any. The log, `trainer_state.json`, and the tables
of samples are those of a training, for `rs-rlhf report`: a step is a round, step 0 the policy before.

Left out: several processes in sampling and scoring (the training has them).
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from ...data.questions import QuestionRow, placed_images
from ...data.rows import draw_rows
from ...errors import DataError, OptionError
from ...options import option
from ...preferences.best import BestOptions, Scored, scored_answers, write_best
from ...preferences.candidates import SETTINGS, candidate_scorer, compare_first, open_log
from ...runs.checkpoints import parsed_state
from ...runs.files import differences, of_another_run, read_json, write_json
from ...runs.folder import ANEW, NEW, check_output_dir, remove_run
from ...runs.record import KEY, Run, read_run, write_run
from ...runs.tables import markdown_table
from ...scoring.base import GroupScorer
from ...scoring.cards import model_stamp
from ...scoring.comparison import CheckOptions

WRITTEN = re.compile(r"(best\.jsonl|sampled\.json|evaluation\.json)(\.partial)?|score_standards_\w+\.json")
OF_DATA = ("open_ended", "exclude_images_of", "keep", "softmax_temperature", "min_margin", "choices", "score_model")


@dataclass(kw_only=True)
class RaftOptions(CheckOptions, BestOptions):
    """Improve a vision-language model on the best of its own answers, as a score model ranks them, round by round."""

    policy: str = option(
        help="folder (a LoRA adapter's too) or hub id of the causal vision-language model that is improved",
        flags=["--model_name_or_path"],
    )
    input: str = option(
        help="prompts: labelled or captioned images, or rows with `prompt` and `image` or `images`; training reads "
        "no label",
        flags=["--data", "--dataset_name"],
    )
    split: str | None = option(None, "split of it to train on (default: all of it)", flags=["--dataset_train_split"])
    limit: int | None = option(
        None, "prompts of a round at most, drawn by its seed anew in each round", flags=["--max_train_samples"]
    )
    output_dir: Path = option(help="folder of the run; each round is a folder in it", writes="folder")
    rounds: int = option(1, "number of rounds; a finished run continues if it is raised", least=1)
    eval_dataset_name: str | None = option(
        None, "held-out prompts that every round answers greedily (default: the --dataset_test_split of the data)"
    )
    dataset_test_split: str | None = option(None, "split of the held-out prompts")
    validation_prompts: int = option(256, "held-out prompts at most, drawn by the seed; 0: none", least=0)
    overwrite: bool = option(
        False, "remove what an earlier run has left in output_dir; other files stay", flags=["--overwrite_output_dir"]
    )
    output: Path = field(default=Path(), init=False)
    images_dir: Path | None = field(default=None, init=False)

    @property
    def evaluated(self) -> str | None:
        """The data of the held-out prompts, if there are any."""
        named = self.eval_dataset_name or (self.input if self.dataset_test_split else None)
        return named if self.validation_prompts else None


@dataclass(kw_only=True)
class RoundOptions(BestOptions):
    """Options of one phase: its image paths start from the folder of the run, which all rounds share."""

    def place(self, rows: Sequence[QuestionRow]) -> tuple[list[list[str]], str]:
        """Finds or writes the images below the folder of the run."""
        root = self.output.parent.parent
        folder = root / "images" / (self.split or "all")
        images, written = placed_images(rows, root, folder, self.overwrite)
        return images, f"; {written} images -> {folder}" if written else ""


@dataclass(frozen=True)
class Round:
    """A round of a run, and where its phases write; round 0 is the policy before."""

    options: RaftOptions
    number: int

    @property
    def folder(self) -> Path:
        """The folder of the round."""
        return self.options.output_dir / f"round-{self.number}"

    @property
    def policy(self) -> str:
        """The policy after the round."""
        return str(self.folder / "policy") if self.number else self.options.policy

    @property
    def start(self) -> str:
        """The model that the round's training starts from: the policy of the round before.

        An adapter is not trained on: each round then trains a new one on the model that was given.
        """
        before = Round(self.options, self.number - 1).policy
        return self.options.policy if (Path(before) / "adapter_config.json").is_file() else before

    @property
    def data(self) -> Path:
        """What is trained on."""
        return self.folder / "best.jsonl"

    @property
    def seed(self) -> int:
        """The seed of sampling, and of training."""
        return self.options.seed + self.number - 1

    @property
    def trained(self) -> bool:
        """Whether the training has ended: the state of the trainer is the last that it writes."""
        return (Path(self.policy) / "trainer_state.json").is_file()

    def phase(self, output: str, **changes: Any) -> RoundOptions:
        """Returns the options of a phase that writes a file of this round."""
        own = {entry.name: getattr(self.options, entry.name) for entry in fields(RoundOptions) if entry.init}
        own |= {"output": self.folder / output, "images_dir": None}
        return RoundOptions(**own | changes)

    def found(self, name: str, key: str = "metrics") -> dict[str, Any]:
        """Returns what a phase has written, such as its metrics; nothing if it has not ended."""
        path = self.folder / name
        return read_json(path, key, dict, "`rs-rlhf raft`")[key] if path.is_file() else {}


def run_rounds(options: RaftOptions, fine_tune: Callable[[Round], int]) -> int:
    """Begins or resumes a run.

    Args:
        options ([`RaftOptions`]): What is done.
        fine_tune (callable): Trains `round.start` on `round.data` into the folder `round.policy`, resuming if it was
            stopped there; returns an exit code.

    Returns:
        `int`: 0, or the exit code of a training that failed, which has then said why.

    Raises:
        OptionError: The `output_dir` holds another run.
        DataError: No answer was kept.
    """
    options.check()
    run = begin(options)
    compare(options)
    evaluate(Round(options, 0), run)
    for number in range(1, options.rounds + 1):
        this = Round(options, number)
        sample(this, run)
        if not this.trained:
            print(f"round {number}: training {this.start}", flush=True)
            if code := fine_tune(this):
                return code
        evaluate(this, run)
    return 0


def begin(options: RaftOptions) -> Run:
    """Writes the record of the run, or reads that of the same run; refuses a folder that holds another one."""
    folder, settings = options.output_dir, run_settings(options)
    known = read_run(folder)
    earlier = known if known is not None and known.settings.get("command") == "raft" else None
    if earlier is not None and not options.overwrite:
        if told := differences(earlier.settings, settings):
            detail = of_another_run("rounds", told, "set that back", NEW, ANEW)
            raise OptionError(detail, next(iter(told)), str(folder))
        return earlier
    given = (options.policy, options.score_model, options.input, options.eval_dataset_name)
    read = [path for text in given if text for path in text.split(",") if os.path.exists(path)]
    check_output_dir(folder, None, options.overwrite, read)
    if earlier is not None:
        _remove_rounds(folder, read)
    if options.overwrite:
        remove_run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    run = Run.begun(settings)
    write_run(run, folder)
    return run


def _remove_rounds(folder: Path, read: Sequence[str]) -> None:
    """Removes what rounds have written."""
    rounds = [path for path in folder.glob("round-*") if path.is_dir() and not path.is_symlink()]
    for path in read:
        if any(Path(path).resolve().is_relative_to(place.resolve()) for place in rounds):
            detail = f"--overwrite_output_dir would remove {path}, which is read; {NEW}."
            raise OptionError(detail, "overwrite_output_dir", str(folder))
    for place in rounds:
        remove_run(place / "policy")
        for file in list(place.glob("*.json*")):
            if WRITTEN.fullmatch(file.name):
                file.unlink()
        for left in (place / "policy", place):
            if left.is_dir() and not any(left.iterdir()):
                left.rmdir()


def run_settings(options: RaftOptions) -> dict[str, Any]:
    """Returns what must not change when a run is resumed, as JSON can hold it."""
    names = [name for name in (*SETTINGS, *OF_DATA) if name != "token_budget"]
    settings = {"command": "raft", **options.recorded(names), "columns": options.named_columns()}
    settings |= options.combination(options.score_model)
    if options.shuffle_reward_images:
        settings["shuffle_reward_images"] = True
    for name in ("policy", "score_model"):
        settings[f"{name}_hash"] = model_stamp(getattr(options, name))
    return json.loads(json.dumps(settings, default=str))


def sample(this: Round, run: Run) -> None:
    """Samples, scores and keeps the best answers of a round.

    Raises:
        DataError: None was kept.
    """
    if not this.data.is_file():
        from .audit import judged_answers, sampled_metrics, shuffle_gap, write_answers

        before = Round(this.options, this.number - 1)
        options = this.phase("best.jsonl", policy=before.policy, seed=this.seed)
        print(f"round {this.number}: sampling {before.policy}", flush=True)

        def look(scored: Sequence[Scored], scorer: Callable[[], GroupScorer]) -> None:
            answers = judged_answers(scored)
            metrics = sampled_metrics(options, scored, answers)
            metrics |= shuffle_gap(scored, scorer, options.resolved_image_options())
            write_answers(options, answers, this.number - 1, "rollouts", "rollouts")
            write_json(this.folder / "sampled.json", {"metrics": metrics})

        write_best(options, look)
        _free_memory()
    if not this.data.stat().st_size:
        advice = f"lower --min_margin or sample more (-n), with another --output_dir or {ANEW.removeprefix('pass ')}"
        raise DataError(f"no answer of round {this.number} was kept; {advice}", "", str(this.data))
    write_log(this.options, run)


def compare(options: RaftOptions) -> None:
    """Compares the score model's choice with the greedy answer before the first round, on held-out or training prompts
    that have a solution.
    """
    first = Round(options, 1)
    begun = first.data.is_file() or first.data.with_name("best.jsonl.partial").is_file()
    if begun or not options.check_best_of_n:
        return
    from ..audit.choice_check import FOLDER

    phase = held_out_phase(first) if options.evaluated else first.phase("best.jsonl")
    rows = held_out_rows(options, phase) if options.evaluated else phase.questions()
    compare_first(phase, options.score_model, rows, options.check_best_of_n, options.output_dir / "eval" / FOLDER)
    _free_memory()


def held_out_phase(this: Round, **changes: Any) -> RoundOptions:
    """Returns the options of a phase that asks the held-out prompts."""
    asked: dict[str, Any] = {
        "input": this.options.evaluated,
        "split": this.options.dataset_test_split,
        "exclude_images_of": [],
        "shuffle_reward_images": False,
    }
    return this.phase("evaluation.json", **asked, **changes)


def held_out_rows(options: RaftOptions, phase: RoundOptions) -> list[QuestionRow]:
    """Returns the held-out prompts, the same in each round."""
    questions = phase.questions()
    return [questions[i] for i in draw_rows(len(questions), options.validation_prompts, options.seed)]


def evaluate(this: Round, run: Run) -> None:
    """Answers the held-out prompts greedily, and writes how well."""
    options = this.options
    held_out = {"input": options.evaluated, "split": options.dataset_test_split, "prompts": options.validation_prompts}
    if options.evaluated is not None and this.found("evaluation.json", "held_out") != held_out:
        from ..audit.rollout_audit import greedy_metrics
        from .audit import judged_answers, write_answers

        print(f"round {this.number}: evaluating {this.policy}", flush=True)
        greedy = {"policy": this.policy, "n": 1, "temperature": 0.0, "augment": False, "limit": None}
        # Other held-out prompts than before are answered anew.
        phase = held_out_phase(this, **greedy, overwrite=True)
        rows = held_out_rows(this.options, phase)
        log, scorer = open_log(phase, rows), partial(candidate_scorer, phase, phase.score_model)
        scored = scored_answers(phase, rows, log, scorer, Counter())
        answers = judged_answers(scored)
        write_answers(phase, answers, this.number, "samples", "eval")
        metrics = greedy_metrics(answers)
        with log.replacing(phase.output) as file:
            json.dump({"held_out": held_out, "metrics": metrics}, file, indent=2)
        _free_memory()
    write_log(options, run)
    if this.number:
        from .card import write_round_card

        write_round_card(this.policy, options.input, options.evaluated, this.number, this.found("evaluation.json"))


def write_log(options: RaftOptions, run: Run) -> None:
    """Writes `trainer_state.json`, the log of all rounds so far, from what their phases have left."""
    entries = []
    for number in range(options.rounds + 1):
        this = Round(options, number)
        found = Round(options, number + 1).found("sampled.json") | this.found("evaluation.json")
        trained = parsed_state(this.policy) if number else None
        losses = [entry["loss"] for entry in (trained or {}).get("log_history", []) if "loss" in entry]
        found |= {"loss": fmean(losses)} if losses else {}
        if found:
            entries.append({"step": number, **found})
    state = {"global_step": max((entry["step"] for entry in entries), default=0), "max_steps": options.rounds}
    state |= {"log_history": entries, "stateful_callbacks": {KEY: vars(run)}}
    write_json(options.output_dir / "trainer_state.json", state)


COLUMNS = {
    "score/mean": "score, sampled",
    "score/kept_mean": "score, kept",
    "audit/accuracy": "right, sampled",
    "audit/kept_accuracy": "right, kept",
    "eval_score/greedy_mean": "score, held out",
    "eval_audit/greedy_accuracy": "right, held out",
}


def summary(options: RaftOptions) -> str:
    """Returns the log as Markdown: a line for the policy after each round, of what is known."""
    log = read_json(options.output_dir / "trainer_state.json", "log_history", list, "`rs-rlhf raft`")["log_history"]
    shown = {key: title for key, title in COLUMNS.items() if any(key in entry for entry in log)}

    def cell(entry: Mapping[str, Any], key: str) -> str:
        value = entry.get(key)
        return "" if value is None else f"{value:.1%}" if "accuracy" in key else f"{value:.3f}"

    rows = [[entry["step"], *(cell(entry, key) for key in shown)] for entry in log]
    return markdown_table(["policy after round", *shown.values()], rows, "r")


def _free_memory() -> None:
    """Gives the memory of models that are not needed any more to the next phase."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)
