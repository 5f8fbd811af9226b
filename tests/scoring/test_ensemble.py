"""Several scorers as one: its scores are made of theirs by hand, and equal vision towers see each image once."""

import copy
import json
import pickle
import shutil

import numpy as np
import pytest
from helpers import picture
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

from rs_rlhf import ImageOptions, Scorer, make_group
from rs_rlhf.errors import DataError, ImageError, OptionError, ScoreError
from rs_rlhf.scoring.base import CombinedScore, spread
from rs_rlhf.scoring.baselines import LengthScorer, RandomScorer
from rs_rlhf.scoring.ensemble import EnsembleScorer, Standard, combined
from rs_rlhf.scoring.load import ScorerOptions, load_scorer

RULES = {"mean": lambda z: z.mean(0), "min": lambda z: z.min(0), "mean-std": lambda z: z.mean(0) - z.std(0)}
TEXTS = ["a river .", "two planes on a runway .", "many green trees near a road ."]


def load(models, *names, **options):
    file = models / "calibration.jsonl"
    given = {"score_calibration": str(file), "device": "cpu"} | options
    return load_scorer(",".join(str(models / name) for name in names), **given)


@pytest.fixture(scope="module")
def single(score_models):
    """Each model by itself."""
    return {name: Scorer.from_pretrained(score_models / name, device="cpu") for name in "abc"}


@pytest.fixture(scope="module")
def three(score_models):
    return load(score_models, "a", "b", "c")


@pytest.fixture(scope="module")
def groups():
    """Groups of one image, of two, and of none, of one to three completions."""
    pictures = [picture(i, 112, 56 + 28 * (i % 2)) for i in range(4)]
    made = [make_group("What is it?", TEXTS, pictures[0]), make_group("", TEXTS[:2], pictures[1:3])]
    made += [make_group("", [text], pictures[3]) for text in TEXTS]
    return [*made, make_group("Rural or urban?", ["urban", "rural"])]


def by_hand(scorers, groups, texts):
    """Standardised scores of each group, (models, N), with the models' standards on the groups `texts`."""
    z = []
    for scorer in scorers:
        known = np.concatenate(scorer.score_groups(texts))
        z.append([(np.array(row) - known.mean()) / known.std() for row in scorer.score_groups(groups)])
    return [np.array(rows) for rows in zip(*z, strict=True)]


def calibration(models):
    rows = map(json.loads, (models / "calibration.jsonl").read_text().splitlines())
    return [make_group("", row["captions"], models / row["image"]) for row in rows]


def seen_by(scorer):
    """Notes, in the list that is returned, which of a combined scorer's parts runs its vision tower."""
    seen = []
    for i, part in enumerate(scorer.parts):
        part.model.model.visual.register_forward_hook(lambda *_, i=i: seen.append(i))
    return seen


@pytest.mark.parametrize("rule", RULES)
def test_scores_are_combined_as_by_hand(score_models, single, groups, rule):
    scorer = load(score_models, "a", "b", "c", score_combine=rule)
    expected = by_hand(single.values(), groups, calibration(score_models))
    for scores, z in zip(scorer.score_groups(groups), expected, strict=True):
        np.testing.assert_allclose(scores, RULES[rule](z), rtol=0, atol=1e-6)
        np.testing.assert_allclose([score.std for score in scores], z.std(0), rtol=0, atol=1e-6)
        assert all(score.std > 1e-3 for score in scores)


def test_an_image_is_seen_once_by_equal_towers_and_by_every_other_tower(score_models, groups):
    scorer = load(score_models, "a", "b", "c", "b", token_budget=100_000)
    seen = seen_by(scorer)
    scorer.score_groups(groups)
    assert seen == [0, 2]
    seen.clear()
    scorer.score_groups(groups[-1:])
    assert seen == []


def test_models_of_other_inputs_are_asked_by_themselves(score_models, single, groups, tmp_path):
    shutil.copytree(score_models / "b", tmp_path / "b")
    processor = AutoProcessor.from_pretrained(tmp_path / "b")
    processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": 4 * 28 * 28}
    processor.save_pretrained(tmp_path / "b")
    scorer = load(score_models, "a", tmp_path / "b")
    seen = seen_by(scorer)
    scores = scorer.score_groups(groups)
    assert set(seen) == {0, 1}
    alone = Scorer.from_pretrained(tmp_path / "b", device="cpu")
    assert alone.score_groups(groups)[0] != single["b"].score_groups(groups)[0]  # it sees less
    expected = by_hand([single["a"], alone], groups, calibration(score_models))
    for row, z in zip(scores, expected, strict=True):
        np.testing.assert_allclose(row, z.mean(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_a_repeated_model_has_its_own_scores_and_no_spread(score_models, single, groups, tmp_path, rule):
    shutil.copytree(score_models / "a", tmp_path / "copy")
    z = [rows[0] for rows in by_hand([single["a"]], groups, calibration(score_models))]
    for names in (("a", "a", "a"), ("a", tmp_path / "copy")):
        scores = load(score_models, *names, score_combine=rule).score_groups(groups)
        assert [score.std for row in scores for score in row] == [0.0] * 10
        for row, expected in zip(scores, z, strict=True):
            np.testing.assert_allclose(row, expected, rtol=0, atol=1e-6)
    assert len(load(score_models, "a", "a").parts) == 1


def test_order_and_company_of_groups_do_not_matter(three, groups):
    together = three.score_groups(groups)
    for group, scores in zip(groups, together, strict=True):
        np.testing.assert_allclose(three.score_groups([group])[0], scores, rtol=0, atol=1e-5)


def test_a_group_that_cannot_be_scored_has_its_error_and_no_other(three, groups, tmp_path):
    wrong = make_group("", ["a river ."], tmp_path / "none.png", where="row 7")
    scores = three.score_groups([groups[0], wrong, groups[1]], on_error="return")
    assert isinstance(scores[1], ImageError) and "row 7" in str(scores[1])
    expected = three.score_groups(groups[:2])
    assert [scores[0], scores[2]] == [pytest.approx(row, abs=1e-5) for row in expected]
    with pytest.raises(ImageError):
        three.score_groups([wrong])


def test_standards_are_kept_and_taken_from_the_folder(score_models, tmp_path, groups):
    first = load(score_models, "a", "b", standards=tmp_path)
    (path,) = tmp_path.glob("score_standards_*.json")
    stored = json.loads(path.read_text())
    assert [(model["mean"], model["std"]) for model in stored["models"]] == [
        (standard.mean, standard.std) for standard in first.standards
    ]
    assert stored["score_calibration_hash"] == first.calibration.hash
    stored["models"][1] |= {"mean": 0.0, "std": 2.0}
    path.write_text(json.dumps(stored))
    again = load(score_models, "a", "b", standards=tmp_path)
    assert again.standards == [first.standards[0], Standard(0.0, 2.0)]
    half = tmp_path / "half.jsonl"
    half.write_text("".join(json.dumps({"caption": text}) + "\n" for text in TEXTS))
    others = [("ba", {}), ("ab", {"prompt_form": "user-turn"}), ("ab", {"score_calibration": str(half)})]
    for names, other in others:
        assert load(score_models, *names, standards=tmp_path, **other).standards != again.standards
    assert len(list(tmp_path.glob("score_standards_*.json"))) == 4


def test_calibration_images_may_lie_outside_of_the_root_of_what_is_scored(score_models, three, tmp_path):
    picture(1).save(tmp_path / "a.png")
    names = ",".join(str(score_models / name) for name in "abc")
    options = ScorerOptions(model=names, score_calibration=str(score_models / "calibration.jsonl"))
    scorer = load_scorer(options, ImageOptions(image_root=str(tmp_path)), "cpu")
    assert scorer.standards == three.standards
    assert scorer.score(["a.png"], None, [TEXTS]) == [pytest.approx(three.score([picture(1)], None, [TEXTS])[0])]
    with pytest.raises(ImageError):
        scorer.score([score_models / "0.png"], None, [TEXTS])


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"image": "none.png", "caption": "a"}, ""),
        ({"caption": "a"}, "score_calibration"),  # one text, which has no spread
        ({"prompt": "Which?", "chosen": "a", "rejected": "b"}, "score_calibration"),
    ],
)
def test_a_calibration_file_that_is_of_no_use_is_refused(score_models, tmp_path, row, key):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError) as error:
        load(score_models, "a", "b", score_calibration=str(file))
    assert str(file) in error.value.where and error.value.key == key


def test_clips_are_combined_too(clips, score_models):
    names = [str(clips[name]) for name in ("clip", "siglip")]
    file = str(score_models / "calibration.jsonl")
    options = ScorerOptions(scorer="clip", model=",".join(names), score_combine="min", score_calibration=file)
    scorer = load_scorer(options, device="cpu")
    group = make_group("", TEXTS, picture(1))
    alone = [load_scorer(ScorerOptions(scorer="clip", model=name), device="cpu") for name in names]
    (expected,) = by_hand(alone, [group], calibration(score_models))
    np.testing.assert_allclose(scorer.score_groups([group])[0], expected.min(0), rtol=0, atol=1e-6)


def test_scores_that_are_not_finite_make_none_that_is():
    standards = [Standard(0.0, 1.0), Standard(0.0, 1.0)]
    for rule in RULES:
        for bad in (float("nan"), float("inf"), -float("inf")):
            first, second = combined([[bad, 1.0], [0.0, 1.0]], standards, rule)
            assert np.isnan(first) and (second, second.std) == (1.0, 0.0)
        assert combined([[], []], standards, rule) == []


def test_any_scorers_can_be_combined_once_their_standards_are_known():
    group = make_group("", ["a b c", "a"], where="row 1")
    scorers = [LengthScorer(), RandomScorer()]
    scorer = EnsembleScorer(scorers, "mean", [Standard(2.0, 2.0), Standard(0.5, 0.25)])
    (chance,) = RandomScorer().score_groups([group])
    expected = [((n - 2) / 2 + (x - 0.5) / 0.25) / 2 for n, x in zip((3, 1), chance, strict=True)]
    assert scorer.score_groups([group]) == [pytest.approx(expected)]
    with pytest.raises(OptionError):
        EnsembleScorer(scorers).score_groups([group])
    with pytest.raises(OptionError) as error:
        EnsembleScorer(scorers, "max")
    assert error.value.key == "score_combine"


def test_a_combined_score_is_a_float_that_keeps_its_spread():
    score = CombinedScore(0.5, 0.25)
    assert (score, json.dumps([score]), spread(score), spread(0.5)) == (0.5, "[0.5]", 0.25, None)
    for same in (pickle.loads(pickle.dumps(score)), copy.deepcopy(score)):
        assert (same, spread(same)) == (0.5, 0.25)


def test_a_model_whose_scores_are_no_numbers_is_refused(score_models, tmp_path):
    shutil.copytree(score_models / "b", tmp_path / "b")
    weights = load_file(tmp_path / "b" / "model.safetensors")
    weights["reward_head.weight"].fill_(float("nan"))
    save_file(weights, tmp_path / "b" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ScoreError, match=str(tmp_path / "b")):
        load(score_models, "a", tmp_path / "b")
