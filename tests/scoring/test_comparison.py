"""The score model's choice beside the greedy answer and votes: what is compared, what is said, and what it costs."""

import json
import random
from pathlib import Path

import pytest
from helpers import picture

from rs_rlhf.data.group import completion_text
from rs_rlhf.data.questions import read_questions
from rs_rlhf.errors import OptionError
from rs_rlhf.metrics.best_of_n import ADVICE
from rs_rlhf.models.policies.policy import Policy
from rs_rlhf.models.policies.sampling import SamplingOptions, consecutive_batches
from rs_rlhf.scoring.comparison import (
    NOT_COMPARED,
    Chooser,
    Logs,
    Question,
    check_best_of_n,
    compare_choices,
    labelled_places,
)

WORDS = ["river", "forest", "port", "farmland"]
SAMPLING = SamplingOptions(n=4, temperature=1.0, max_new_tokens=4, seed=5)


class Guesser(Policy):
    """Is right greedily, and one time in two if it samples; remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def _batches(self, groups, sampling, share, done):
        return consecutive_batches(len(groups), 8, share, done)

    def _answers(self, groups, places, sampling):
        self.asked.append((sampling.n, sampling.temperature, list(places)))
        return [self.answer(groups[i], sampling) for i in places]

    def answer(self, group, sampling):
        right = WORDS[int(group.source)]
        if sampling.temperature == 0:
            return [right] * sampling.n
        rng = random.Random(f"{sampling.seed} {group.row}")
        return [right if rng.random() < 0.5 else rng.choice([*WORDS, ""]) for _ in range(sampling.n)]

    def pixels(self, group):
        return [(84, 56)]


class Knower:
    """Scores the right answer highest, or with a sign of -1 lowest; 0 says that it knows nothing."""

    def __init__(self, sign):
        self.sign = sign

    def score_groups(self, groups, **_):
        texts = [[completion_text(completion) for completion in group.completions] for group in groups]
        right = [self.sign and WORDS[int(group.source)] for group in groups]
        return [[self.sign * float(text == word) for text in own] for own, word in zip(texts, right, strict=True)]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    picture(0).save(folder / "0.png")
    rows = [
        {"prompt": f"{i}?", "image": "0.png", "solution": WORDS[i % 4], "source": str(i % 4), "id": f"q{i}"}
        for i in range(40)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_questions(str(folder / "rows.jsonl"))


def compared(rows, folder, sign, **options):
    policy = Guesser()
    score = Chooser([sign], lambda: Knower(sign))
    return check_best_of_n(lambda: policy, score, rows, SAMPLING, folder, **options), policy


@pytest.mark.parametrize(
    ("sign", "greedy", "vote"),
    [(1, "is not shown to be better", "is better"), (-1, "is worse", "is worse"), (0, "is worse", "is worse")],
)
def test_it_is_said_plainly_whether_the_choice_is_better(rows, tmp_path, capsys, sign, greedy, vote):
    results, _ = compared(rows, tmp_path, sign)
    printed = capsys.readouterr().out
    (against_greedy, against_vote, advice) = results["conclusions"]
    assert f"{greedy} than the greedy answer" in against_greedy and f"{vote} than a majority vote" in against_vote
    assert advice == ADVICE and all(line in printed for line in results["conclusions"])
    figures = results["pooled"]
    assert [entry["accuracy"] for entry in figures["methods"]["greedy"]] == [1.0, 1.0, 1.0]
    (last,) = figures["differences"]["score - greedy"][-1:]
    low, high = (f"{100 * end:+.1f}" for end in last["interval"])
    assert f"({100 * last['difference']:+.1f} points, 95% interval {low} to {high})" in against_greedy
    assert "| greedy answer | 100.0% (100.0% – 100.0%) |" in printed


def test_nothing_is_advised_where_the_choice_is_better_than_all(rows, tmp_path):
    class Poor(Guesser):
        def answer(self, group, sampling):
            right = WORDS[int(group.source)]
            return ["lake"] if sampling.temperature == 0 else ["lake", "lake", right, "lake"]

    results = check_best_of_n(Poor, Chooser([1], lambda: Knower(1)), rows, SAMPLING, tmp_path)
    assert len(results["conclusions"]) == 2 and all("is better than" in line for line in results["conclusions"])


def test_the_cost_is_bounded_and_said(rows, tmp_path, capsys):
    results, policy = compared(rows, tmp_path, 1, limit=10)
    printed = capsys.readouterr().out
    assert "best of 4 on 10 labelled questions, 50 answers (--check_best_of_n 0" in printed and "took" in printed
    assert results["questions"] == 10 and sum(n * len(places) for n, _, places in policy.asked) == 50
    assert {(n, temperature) for n, temperature, _ in policy.asked} == {(1, 0.0), (4, 1.0)}
    assert {path.name for path in tmp_path.iterdir()} > {"best_of_n.json", "best_of_n.md", "best_of_n.png"}
    again, policy = compared(rows, tmp_path, 1, limit=10)  # as after a kill
    assert policy.asked == [] and again["pooled"] == results["pooled"]
    other, policy = compared(rows, tmp_path, -1, limit=10)  # another score model, the same answers
    assert policy.asked == [] and other["pooled"]["methods"]["greedy"] == results["pooled"]["methods"]["greedy"]
    assert compared(rows, tmp_path, 1, limit=0)[0] is None


def test_only_what_can_be_judged_is_labelled(tmp_path, capsys):
    rows = [
        {"prompt": "a?", "solution": "river"},
        {"prompt": "b?", "solution": 3},
        {"prompt": "c?", "solution": "river", "reward_type": "open_ended"},
        {"prompt": "d?", "solution": [[1, 2, 30, 40]], "reward_type": "iou"},
        {"prompt": "e?", "solution": "(1,2),(30,40)"},
        {"prompt": "f?", "solution": '{"bbox_2d": [1, 2, 30, 40]}'},
        {"prompt": "g?"},
        {"prompt": "h?", "solution": "4", "reward_type": "math"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = read_questions(str(tmp_path / "rows.jsonl"))
    labels = [(row.reference, row.columns.get("reward_type")) for row in questions]
    assert [questions[i].prompt for i in labelled_places(labels, 100)] == ["a?", "b?", "h?"]
    assert [len(labelled_places(labels, limit)) for limit in (0, 2, 3)] == [0, 2, 3]
    with pytest.raises(OptionError) as error:
        labelled_places(labels, -1)
    assert error.value.key == "check_best_of_n"
    nothing = check_best_of_n(Guesser, Chooser([], lambda: Knower(1)), questions[6:7], SAMPLING, tmp_path / "out")
    assert nothing is None and not (tmp_path / "out").exists()
    assert NOT_COMPARED in capsys.readouterr().out


def test_the_classes_of_labelled_images_are_the_choices(tmp_path):
    for i, name in enumerate(["BareLand", "Port"]):
        (tmp_path / "in" / name).mkdir(parents=True)
        picture(i).save(tmp_path / "in" / name / "0.png")

    class Wordy(Guesser):
        def answer(self, group, sampling):
            return ["It looks like a port."] * sampling.n

    questions = read_questions(str(tmp_path / "in"))
    results = check_best_of_n(Wordy, Chooser([0], lambda: Knower(0)), questions, SAMPLING, tmp_path / "out")
    assert results["malformed"] == 0 and results["pooled"]["methods"]["greedy"][0]["accuracy"] == 0.5


def test_boxes_are_read_by_the_size_that_the_policy_saw(rows, tmp_path):
    seen = []

    def judge(output, pixels):
        seen.append(tuple(pixels))
        return {"answer": [[0, 0, 4, 4]], "boxes": [[0, 0, 4, 4]], "strict": True}

    questions = [Question(row.group, row.group, judge) for row in rows[:3]]
    score = Chooser([0], lambda: Knower(0))
    for _ in range(2):  # sampled, and from the files
        results = compare_choices(questions, Guesser, score, SAMPLING, Logs(tmp_path, "boxes", {}, pixels=True))
        assert set(seen) == {(84, 56)} and results["pooled"]["methods"]["median"][-1]["accuracy"] == 1.0
        seen.clear()
    assert not any("majority" in line for line in results["conclusions"])


def test_at_temperature_zero_there_is_nothing_to_choose(rows, tmp_path):
    with pytest.raises(OptionError) as error:
        compare_choices(
            [], Guesser, Chooser([], Guesser), SamplingOptions(n=4, temperature=0), Logs(tmp_path, "x", {})
        )
    assert error.value.key == "temperature" and not any(Path(tmp_path).iterdir())


def test_an_answer_without_a_score_ends_the_comparison_alone(rows, tmp_path, capsys):
    class Unsure(Knower):
        def score_groups(self, groups, **_):
            return [[float("nan") for _ in group.completions] for group in groups]

    assert check_best_of_n(Guesser, Chooser([], lambda: Unsure(1)), rows, SAMPLING, tmp_path, limit=4) is None
    assert "is not compared with the greedy answer: " in capsys.readouterr().out
