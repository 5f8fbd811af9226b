"""Best-of-n with real (tiny) models: the command's figures, what moves them, a killed run, and early stopping."""

import json
import math
import shutil

import pytest
from helpers import WORDS, picture
from helpers.processes import kill_when

from rs_rlhf import ScoreModel, Scorer, make_group
from rs_rlhf.cli import main as cli
from rs_rlhf.metrics.closed_answers import judge_answer
from rs_rlhf.models.policies.policy import Policy
from rs_rlhf.models.policies.qwen_vl import QwenVLPolicy
from rs_rlhf.scoring.load import load_scorer

QUESTIONS, N, TOKENS, BUDGET = 20, 6, 6, 500
SAMPLING = {"temperature": 1.0, "top_p": 0.95, "max_new_tokens": TOKENS}


@pytest.fixture(scope="module")
def policy(policy_path):
    return Policy.from_pretrained(policy_path, device="cpu")


@pytest.fixture(scope="module")
def scorer(score_model_path):
    return Scorer.from_pretrained(score_model_path, device="cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    rows = []
    for i in range(QUESTIONS):
        picture(i).save(root / f"{i}.png")
        prompt = f"What is {'very ' * (i % 3)}to be seen?"
        rows.append({"id": f"q{i}", "prompt": prompt, "image": f"{i}.png", "solution": WORDS[i % len(WORDS)]})
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = "title: Test\nsource: drawn here\nlayout: rows\npath: rows.jsonl\n"
    (root / "asked.yaml").write_text(common + "task: vqa\n")
    (root / "captioned.yaml").write_text(common + "task: captions\n")
    return root


@pytest.fixture(scope="module")
def command(data, policy_path):
    def build(out, score_model, *more):
        sampling = [f"--{name}={value}" for name, value in SAMPLING.items()]
        return [
            "best-of-n",
            "--policy",
            policy_path,
            "--score-model",
            str(score_model),
            "--data_root",
            str(data),
            "--task",
            str(data / "asked.yaml"),
            "-n",
            str(N),
            "--token_budget",
            str(BUDGET),
            *sampling,
            "--out",
            str(out),
            *map(str, more),
        ]

    return build


@pytest.fixture(scope="module")
def whole(command, score_model_path, tmp_path_factory):
    """A run in one go with one seed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert cli.main(command(out, score_model_path)) == 0
    return out


def stored(path):
    """The answers and the scores of each model, by row, that a run's file holds."""
    lines = [json.loads(line) for line in path.read_text().splitlines()][1:]
    answers, scores = {}, {}
    for line in lines:
        if "answers" in line:
            answers.update(zip(line["rows"], line["answers"], strict=True))
        else:
            scores.setdefault(line["by"], {}).update(zip(line["rows"], line["scores"], strict=True))
    return answers, scores


def accuracy_of_the_best(data, path, which):
    """Accuracy at n = N of the best score, reckoned from a run's file and the data alone."""
    rows = [json.loads(line) for line in (data / "rows.jsonl").read_text().splitlines()]
    answers, scores = stored(path)
    total = 0.0
    for i, row in enumerate(rows):
        own = list(scores.values())[which][i]
        top = [text for text, score in zip(answers[i], own, strict=True) if score == max(own)]
        total += sum(judge_answer(text, [row["solution"]])["strict"] for text in top) / len(top)
    return total / len(rows)


def test_the_policy_is_asked_in_its_way_and_the_score_model_as_before(
    command, data, score_model_path, tmp_path, whole
):
    mine = {"title": "t", "unit": "pixel", "forms": ["pairs"], "request": "", "source": "s"}
    (tmp_path / "mine.yaml").write_text(json.dumps(mine | {"prefixes": {"vqa": "[vqa] "}}))
    options = ["--limit", 2, "--profile"]
    results = {}
    for name in (tmp_path / "mine.yaml", "fractions"):
        out = tmp_path / name.stem if name != "fractions" else tmp_path / name
        assert cli.main(command(out, score_model_path, *options, name)) == 0
        results[out.name] = json.loads((out / "best_of_n.json").read_text())
    assert [one["profile"] for one in results.values()] == ["mine", "fractions"]
    assert results["mine"]["settings"]["prefix"] == "[vqa] " and "prefix" not in results["fractions"]["settings"]
    asked, plain = (stored(tmp_path / name / "answers_asked_seed0.jsonl")[0] for name in results)
    assert asked != plain
    assert json.loads((whole / "best_of_n.json").read_text())["profile"] == "qwen2-vl"


def test_the_files_hold_what_was_sampled_scored_and_reckoned(whole, data, scorer):
    assert sorted(path.name for path in whole.iterdir()) == [
        "answers_asked_greedy.jsonl",
        "answers_asked_seed0.jsonl",
        "best_of_n.json",
        "best_of_n.md",
        "best_of_n.png",
    ]
    answers, scores = stored(whole / "answers_asked_seed0.jsonl")
    assert sorted(answers) == list(range(QUESTIONS)) and {len(own) for own in answers.values()} == {N}
    (by_score,) = scores.values()
    assert any(len(set(own)) < N for own in answers.values()), "no duplicates: nothing was tested"
    for i, own in answers.items():
        assert len({*zip(own, by_score[i], strict=True)}) == len(set(own)), "equal answers share one score"
    rows = [json.loads(line) for line in (data / "rows.jsonl").read_text().splitlines()]
    again = scorer.score([str(data / rows[3]["image"])], [rows[3]["prompt"]], [answers[3]])[0]
    assert by_score[3] == pytest.approx(again, abs=1e-3)
    results = json.loads((whole / "best_of_n.json").read_text())
    assert results["questions"] == QUESTIONS and results["sizes"] == [1, 2, 4, 6] and results["seeds"] == [0]
    methods = results["pooled"]["methods"]
    assert list(methods) == ["greedy", "score", "majority", "weighted", "random", "oracle"]
    first, _ = stored(whole / "answers_asked_greedy.jsonl")
    named = [judge_answer(first[i][0], [row["solution"]])["strict"] for i, row in enumerate(rows)]
    assert {len(own) for own in first.values()} == {1} and 0 < sum(named) < QUESTIONS
    assert [entry["accuracy"] for entry in methods["greedy"]] == pytest.approx([sum(named) / QUESTIONS] * 4)
    right = [[judge_answer(text, [row["solution"]])["strict"] for text in answers[i]] for i, row in enumerate(rows)]
    assert methods["random"][0]["accuracy"] == pytest.approx(sum(map(sum, right)) / (QUESTIONS * N))
    assert methods["oracle"][-1]["accuracy"] == pytest.approx(sum(map(any, right)) / QUESTIONS)
    assert 0.2 < sum(map(any, right)) / QUESTIONS < 1, "nothing to choose between"
    assert methods["score"][-1]["accuracy"] == pytest.approx(
        accuracy_of_the_best(data, whole / "answers_asked_seed0.jsonl", 0)
    )
    assert all(one["interval"][0] <= one["accuracy"] <= one["interval"][1] for one in methods["score"])
    malformed = [judge_answer(text, [rows[i]["solution"]])["answer"] is None for i in answers for text in answers[i]]
    assert results["malformed"] == pytest.approx(sum(malformed) / len(malformed))
    table = (whole / "best_of_n.md").read_text()
    assert "| chosen by | n = 1 | n = 2 | n = 4 | n = 6 |" in table and "| score - majority |" in table
    assert "| greedy answer |" in table and "| score - greedy |" in table
    assert results["conclusions"] and all(line in table for line in results["conclusions"])


def test_another_score_model_is_put_to_the_same_answers(whole, command, data, score_model_path, tmp_path, monkeypatch):
    from transformers import AutoProcessor

    other = ScoreModel.from_pretrained(score_model_path)
    other.reward_head.weight.data.mul_(-1)
    other.save_pretrained(tmp_path / "other")
    AutoProcessor.from_pretrained(score_model_path).save_pretrained(tmp_path / "other")
    file = tmp_path / "answers_asked_seed0.jsonl"
    for name in (file.name, "answers_asked_greedy.jsonl"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    monkeypatch.setattr(QwenVLPolicy, "_generate", lambda *_: pytest.fail("the policy was asked again"))
    assert cli.main(command(tmp_path, tmp_path / "other")) == 0
    before, after = (json.loads((out / "best_of_n.json").read_text())["pooled"] for out in (whole, tmp_path))
    for name in ("greedy", "majority", "random", "oracle"):
        assert after["methods"][name] == before["methods"][name]
    assert after["methods"]["score"][1:] != before["methods"]["score"][1:]
    assert after["methods"]["score"][-1]["accuracy"] == pytest.approx(accuracy_of_the_best(data, file, 1))


def test_several_score_models_choose_together(whole, command, score_models, tmp_path, capsys):
    file = tmp_path / "answers_asked_seed0.jsonl"
    file.write_bytes((whole / "answers_asked_seed0.jsonl").read_bytes())
    names = f"{score_models / 'a'},{score_models / 'b'}"
    calibration = str(score_models / "calibration.jsonl")
    assert cli.main(command(tmp_path / "none", names)) == 1
    assert "give --score_calibration" in capsys.readouterr().err and not (tmp_path / "none").exists()
    for rule in ("min", "mean"):
        more = {"score_combine": rule, "score_calibration": calibration}
        assert (
            cli.main(command(tmp_path, names, *(x for name, value in more.items() for x in (f"--{name}", value)))) == 0
        )
        settings = json.loads((tmp_path / "best_of_n.json").read_text())["settings"]
        assert settings["score_combine"] == rule and settings["score_calibration_hash"]
        answers, scores = stored(file)
        scorer = load_scorer(names, device="cpu", **more)
        rows = [make_group("What is to be seen?", answers[i], picture(i)) for i in (0, 3)]
        expected = scorer.score_groups(rows)
        assert [list(scores.values())[-1][i] for i in (0, 3)] == [pytest.approx(row, abs=1e-3) for row in expected]
    assert len(scores) == 3  # of one model, of their min, of their mean
    assert len(list(tmp_path.glob("score_standards_*.json"))) == 1


def test_several_seeds_and_clip(command, score_model_path, tmp_path, capsys):
    from rs_rlhf.models.tiny_clip import save_tiny_clip

    clip = save_tiny_clip(tmp_path / "clip")
    out = tmp_path / "out"
    assert cli.main(command(out, score_model_path, "--seeds", 1, 2, "--limit", 6, "--clip_model", clip)) == 0
    printed = capsys.readouterr().out
    assert "seeds 1, 2" in printed and "best CLIP score" in printed and "±" in printed
    results = json.loads((out / "best_of_n.json").read_text())
    assert set(results["by_seed"]) == {"1", "2"} and results["questions"] == 6
    for name, entries in results["pooled"]["methods"].items():
        own = [results["by_seed"][seed]["methods"][name][-1]["accuracy"] for seed in ("1", "2")]
        assert entries[-1]["accuracy"] == pytest.approx(sum(own) / 2)
        assert entries[-1]["sd"] == pytest.approx(abs(own[0] - own[1]) / math.sqrt(2))
    answers = [stored(out / f"answers_asked_seed{seed}.jsonl") for seed in (1, 2)]
    assert answers[0][0] != answers[1][0] and len(answers[0][1]) == 2
    assert all(-1 <= score <= 1 for own in list(answers[0][1].values())[1].values() for score in own)


def test_a_killed_run_goes_on_with_the_same_files(whole, command, score_model_path, tmp_path):
    line = command(tmp_path, score_model_path)
    file = tmp_path / "answers_asked_seed0.jsonl"
    kill_when(lambda: file.exists() and file.read_bytes().count(b"\n") > 3, line)
    kept = file.read_bytes()
    assert b'"scores"' not in kept and 0 < len(stored_rows(kept)) < QUESTIONS, "killed before or after the middle"
    file.write_bytes(kept + b'{"rows": [1], "answ')  # what a kill in the middle of a write leaves
    assert cli.main(line) == 0
    assert file.read_bytes().startswith(kept)
    assert stored(file)[0] == stored(whole / file.name)[0]
    results = [json.loads((out / "best_of_n.json").read_text()) for out in (tmp_path, whole)]
    assert results[0]["pooled"] == results[1]["pooled"]


def test_scoring_goes_on_where_it_was_cut_off(whole, command, score_model_path, tmp_path, monkeypatch):
    monkeypatch.setattr("rs_rlhf.scoring.best_of_n.SCORED_TOGETHER", 4)
    file = tmp_path / "answers_asked_seed0.jsonl"
    sampled = [line for line in (whole / file.name).read_bytes().splitlines(True) if b'"scores"' not in line]
    file.write_bytes(b"".join(sampled))
    assert cli.main(command(tmp_path, score_model_path)) == 0
    full = file.read_bytes()
    lines = full.splitlines(True)
    assert len(lines) == len(sampled) + QUESTIONS // 4
    file.write_bytes(b"".join(lines[: len(sampled) + 2]) + lines[len(sampled) + 2][:40])
    scored = []
    score_groups = Scorer.score_groups
    monkeypatch.setattr(
        Scorer,
        "score_groups",
        lambda self, groups, **more: scored.append(len(groups)) or score_groups(self, groups, **more),
    )
    assert cli.main(command(tmp_path, score_model_path)) == 0
    assert file.read_bytes() == full and scored == [4, 4, 4]


def stored_rows(content):
    return [i for line in content.splitlines()[1:] for i in json.loads(line)["rows"]]


def test_mistakes_are_told_in_a_sentence(whole, command, data, score_model_path, tmp_path, capsys):
    def told(*line):
        assert cli.main(list(line)) == 1
        return capsys.readouterr().err

    line = command(whole, score_model_path)
    assert "holds answers of another run: temperature was 1.0, now 0.5" in told(*line, "--temperature=0.5")
    (tmp_path / "options.yaml").write_text("s1: {path: '*_vv.tif', bands: [1]}")
    assert "of another run: image_options" in told(*line, "--image_options", str(tmp_path / "options.yaml"))
    captioned = [str(data / "captioned.yaml") if one.endswith("asked.yaml") else one for one in line]
    assert "captioned.yaml is a captions task, whose answers are not voted on; give one of classification" in told(
        *captioned
    )
    assert "--seeds: -1 is no whole number from 0 on" in told(*line, "--seeds", "-1")
    assert "n is 0; it must be at least 1" in told(*line, "-n", "0")


def test_the_picture_follows_the_curves(tmp_path):
    from PIL import Image

    from rs_rlhf.runs.plots import plot_best_of_n

    def drawn(accuracy):
        entries = [{"n": n, "accuracy": accuracy, "interval": [accuracy - 0.1, accuracy + 0.1]} for n in (1, 2, 4)]
        plot_best_of_n({"methods": {"score": entries, "random": entries}}, tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as image:
            assert image.width > 500
            return image.convert("RGB").tobytes()

    assert drawn(0.5) != drawn(0.6)


SIZES = [(84, 84), (168, 84), (56, 84), (84, 84)]
SAID = ["(100,200),(600,700)", "(140,240),(600,760)", "(300,400),(900,990)", "nowhere", "(100,200),(600,"]


@pytest.fixture(scope="module")
def boxed(policy_path, score_model_path, tmp_path_factory):
    """A run on questions that ask for boxes; what was sampled is replaced by boxes, in thousandths."""
    root, rows = tmp_path_factory.mktemp("boxes"), []
    for i, (width, height) in enumerate(SIZES):
        picture(i, width, height).save(root / f"{i}.png")
        box = [0.1 * width, 0.2 * height, 0.6 * width, 0.7 * height]
        prompt = f"Where is ship {i}? {{box_request}}"
        rows.append({"id": f"b{i}", "prompt": prompt, "image": f"{i}.png", "boxes": [box]})
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    declared = "title: Test\nsource: drawn here\nlayout: rows\npath: rows.jsonl\ntask: grounding\n"
    (root / "boxes.yaml").write_text(declared)
    line = ["best-of-n", "--policy", policy_path, "--score_model", score_model_path, "--data_root", str(root)]
    line += ["--task", str(root / "boxes.yaml"), "--max_new_tokens", "4", "-n", "5", "--out", str(root / "out")]
    assert cli.main(line) == 0
    said = {i: [SAID[(i + k) % (4 if i == 3 else 5)] for k in range(5)] for i in range(len(rows))}
    for name, answers in {"seed0": list(said.values()), "greedy": [[SAID[i]] for i in range(4)]}.items():
        file = root / "out" / f"answers_boxes_{name}.jsonl"
        head, first, *_ = map(json.loads, file.read_text().splitlines())
        assert ("pixels" in first) == (name == "greedy")
        entry = {"rows": [0, 1, 2, 3], "answers": answers} | ({"pixels": SIZES} if name == "greedy" else {})
        file.write_text(json.dumps(head) + "\n" + json.dumps(entry) + "\n")
    assert cli.main(line) == 0
    return root, rows, said, line


def test_boxes_are_chosen_and_voted_on(boxed, scorer):
    root, rows, said, _ = boxed
    answers, scores = stored(root / "out" / "answers_boxes_seed0.jsonl")
    (by_score,) = scores.values()
    assert answers == said, "the policy was asked again"
    hits = {i: [text in SAID[:2] for text in answers[i]] for i in range(len(rows))}  # the third has an IoU of 0.19
    results = json.loads((root / "out" / "best_of_n.json").read_text())
    methods = results["pooled"]["methods"]
    last = {name: entries[-1]["accuracy"] for name, entries in methods.items()}
    assert list(last) == ["greedy", "score", "consensus", "median", "random", "oracle"]
    assert results["profile"] == "qwen2-vl" and "from 0 to 1000" in results["settings"]["box_request"]
    best = [[hits[i][k] for k, one in enumerate(by_score[i]) if one == max(by_score[i])] for i in range(len(rows))]
    assert last["score"] == pytest.approx(sum(sum(own) / len(own) for own in best) / len(rows))
    assert last["random"] == pytest.approx(sum(map(sum, hits.values())) / (5 * len(rows)))
    assert last["greedy"] == 0.5 and last["oracle"] == last["consensus"] == last["median"] == 1
    assert methods["median"][0]["accuracy"] == methods["consensus"][0]["accuracy"] == pytest.approx(last["random"])
    assert results["malformed"] == pytest.approx(sum(text in SAID[3:] for own in said.values() for text in own) / 20)
    table = (root / "out" / "best_of_n.md").read_text()
    assert "precision@0.5 with 95% intervals" in table and "| median box |" in table
    assert "than the median box" in table and "majority" not in table
    asked = rows[2]["prompt"].replace("{box_request}", results["settings"]["box_request"])
    again = scorer.score([str(root / "2.png")], [asked], [answers[2]])[0]
    assert by_score[2] == pytest.approx(again, abs=1e-3)  # the score model is told the form of the boxes too


def test_boxes_need_a_profile_and_their_own_metric(boxed, policy_path, tmp_path, capsys):
    line = boxed[-1]
    assert cli.main([*line, "--metric", "upstream_compat"]) == 1
    assert "upstream_compat is of words" in capsys.readouterr().err
    elsewhere = ["http://localhost:1/v1" if part == policy_path else part for part in line]
    assert cli.main([*elsewhere, "--out", str(tmp_path)]) == 1
    assert "boxes asks for boxes" in capsys.readouterr().err and not any(tmp_path.iterdir())


def test_boxes_are_in_the_unit_of_the_profile_and_of_the_image_that_the_policy_saw(boxed, tmp_path):
    root, _, _, line = boxed
    shutil.copytree(root / "out", tmp_path / "out")
    seen = [[2 * width, 2 * height] for width, height in SIZES]
    said = [f'{{"bbox_2d": [{0.1 * w}, {0.2 * h}, {0.6 * w}, {0.7 * h}]}}' for w, h in seen]
    more = ["--profile", "qwen2.5-vl", "--overwrite", "--out", str(tmp_path / "out")]
    assert cli.main([*line, *more]) == 0
    for name, count in {"seed0": 5, "greedy": 1}.items():
        file = tmp_path / "out" / f"answers_boxes_{name}.jsonl"
        head = json.loads(file.read_text().splitlines()[0])
        entry = {"rows": [0, 1, 2, 3], "answers": [[text] * count for text in said], "pixels": seen}
        file.write_text(json.dumps(head) + "\n" + json.dumps(entry) + "\n")
    assert cli.main([*line, *more]) == 0
    methods = json.loads((tmp_path / "out" / "best_of_n.json").read_text())["pooled"]["methods"]
    assert {entries[-1]["accuracy"] for entries in methods.values()} == {1.0}


def test_the_greedy_row_is_what_an_evaluation_measures(whole, data, policy_path, tmp_path):
    asked = ["--data_root", str(data), "--task", str(data / "asked.yaml"), "--max_new_tokens", str(TOKENS)]
    line = ["eval", "--model", policy_path, *asked, "--token_budget", str(BUDGET), "--out", str(tmp_path)]
    assert cli.main(line) == 0
    accuracy = json.loads((tmp_path / "results.json").read_text())["tasks"]["asked"]["accuracy"]
    greedy = json.loads((whole / "best_of_n.json").read_text())["pooled"]["methods"]["greedy"]
    assert greedy[0]["accuracy"] == pytest.approx(accuracy)
