"""CLIP scores of groups: cosines in order, several images, errors of single groups, one warning for all cut texts."""

import pytest
from helpers import picture

from rs_rlhf.data.group import make_group
from rs_rlhf.errors import DataError, ImageError
from rs_rlhf.scoring.clip import ClipScorer

TEXTS = ["a river.", "many green trees and several buildings near a river", "two storage tanks"]


def cosines(image, texts):
    return (image @ texts.T).tolist()


def test_scores_are_cosines_of_image_and_answer_in_the_order_of_the_groups(clip):
    groups = [make_group("What is it?", TEXTS[: 1 + i % 3], picture(i), where=f"row {i}") for i in range(5)]
    scores = ClipScorer(clip, batch_size=2).score_groups(groups)
    for i, own in enumerate(scores):
        texts = clip.text_features(TEXTS[: 1 + i % 3])
        assert own == pytest.approx(cosines(clip.image_features([picture(i)])[0], texts), abs=1e-5)
    thinking = make_group("", ["<think>long</think> <answer>a river.</answer>"], picture(0))
    assert ClipScorer(clip).score_groups([thinking])[0] == pytest.approx(scores[0], abs=1e-5)
    assert ClipScorer(clip).score_groups([make_group("", [], picture(0))]) == [[]]


def test_several_images_count_by_their_mean(clip):
    features = clip.image_features([picture(1), picture(2)])
    mean = features.mean(0) / features.mean(0).norm()
    group = make_group("", TEXTS, [picture(1), picture(2)])
    assert ClipScorer(clip).score_groups([group])[0] == pytest.approx(
        cosines(mean, clip.text_features(TEXTS)), abs=1e-5
    )


def test_groups_that_cannot_be_read_are_raised_or_returned(clip, tmp_path):
    groups = [
        make_group("", TEXTS, picture(1), where="a.jsonl, line 1"),
        make_group("", TEXTS, None, where="a.jsonl, line 2"),
        make_group("", TEXTS, str(tmp_path / "missing.png"), where="a.jsonl, line 3"),
        make_group("", TEXTS, picture(2), where="a.jsonl, line 4"),
    ]
    scorer = ClipScorer(clip)
    with pytest.raises(DataError, match="a.jsonl, line 2: no image"):
        scorer.score_groups(groups)
    with pytest.raises(ImageError, match="a.jsonl, line 3.*missing.png"):
        scorer.score_groups(groups[2:])
    first, second, third, last = scorer.score_groups(groups, on_error="return")
    assert isinstance(second, DataError) and isinstance(third, ImageError)
    assert first == pytest.approx(scorer.score_groups(groups[:1])[0], abs=1e-5)
    assert last == pytest.approx(scorer.score_groups(groups[3:])[0], abs=1e-5)


def test_the_scorer_loads_by_path_and_warns_once_of_all_cut_texts(clips):
    scorer = ClipScorer.from_pretrained(clips["siglip"], device="cpu")
    groups = [make_group("", ["river " * 30, "a river."], picture(i)) for i in range(40)]
    with pytest.warns(UserWarning) as told:
        scorer.score_groups(groups)
    assert [str(one.message) for one in told if "longer" in str(one.message)] == [
        "40 of 80 texts are longer than the model's 24 tokens: their ends are cut off."
    ]
