"""What the page computes: asking, ranking with votes, scoring as one group, and the map of hidden patches."""

from collections import Counter

import numpy as np
import pytest
from helpers import WORDS, picture
from PIL import Image

from rs_rlhf.app.models import MOST, Models
from rs_rlhf.app.occlusion import AGAINST, FOR, GREY, Occlusion, occlude, overlay
from rs_rlhf.data.group import completion_text
from rs_rlhf.errors import RequestError
from rs_rlhf.metrics.closed_answers import read_answer
from rs_rlhf.models.policies.load import load_policy
from rs_rlhf.scoring.load import load_scorer


@pytest.fixture(scope="module")
def models(policy_path, score_model_path):
    policy = load_policy(policy_path, device="cpu")
    return Models({"A": policy, "B": policy}, load_scorer(score_model_path, device="cpu"), max_new_tokens=6)


def test_both_policies_answer_and_are_scored_as_one_group(models):
    found = models.ask(picture(1), "Which class?")
    assert [one.policy for one in found] == ["A", "B"] and found[0].text == found[1].text
    assert found[0].score == found[1].score == models.score(picture(1), "Which class?", [found[0].text])[0].score


def test_ranking_counts_votes_and_orders_by_score(models):
    found = models.rank(picture(2), "Which class?", "A", 12, 1.0)
    assert sum(one.count for one in found.answers) == 12 and {one.text for one in found.answers} & set(WORDS)
    scores = [one.score for one in found.answers]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == len(scores) > 1
    read = Counter()
    for one in found.answers:
        read.update({read_answer(one.text): one.count} if read_answer(one.text) else {})
    assert found.votes == pytest.approx({text: count / sum(read.values()) for text, count in read.items()})
    assert found.unread == 12 - sum(read.values()) and sum(found.weighted.values()) == pytest.approx(1)
    assert models.rank(picture(2), "Which class?", "A", 12, 1.0) == found
    assert models.rank(picture(2), "Which class?", "A", 12, 1.0, seed=5) != found


def test_texts_are_scored_in_their_order_and_without_a_score_model_are_not(models):
    texts = ["a river .", "two planes .", "a river ."]
    scores = [one.score for one in models.score(picture(3), "", texts)]
    assert scores[0] == scores[2] != scores[1]
    assert scores[:2] == pytest.approx(models.scorer.score([picture(3)], None, [texts[:2]])[0], abs=1e-5)
    alone = Models(models.policies, None, max_new_tokens=6).rank(picture(2), "Which?", "A", 4, 1.0)
    assert all(one.score is None for one in alone.answers) and alone.weighted == {} and alone.votes


@pytest.mark.parametrize(
    "call",
    [
        lambda models: models.score(picture(0), "", []),
        lambda models: models.score(picture(0), "", ["a"] * (MOST + 1)),
        lambda models: models.score(picture(0), "", ["a" * 5000]),
        lambda models: models.rank(picture(0), "", "C", 4, 1.0),
        lambda models: models.rank(picture(0), "", "A", 0, 1.0),
        lambda models: models.occlusion(picture(0), "", "a", 99),
        lambda models: Models({}, None).occlusion(picture(0), "", "a", 4),
    ],
)
def test_what_cannot_be_asked_is_refused(models, call):
    with pytest.raises(RequestError):
        call(models)


# --- Hidden patches -----------------------------------------------------------------------------------------------


class Brightness:
    """A score that is known: the sum of the red channel, or less it for the text `dark`; counts what it is asked."""

    def __init__(self):
        self.calls = []

    def score_groups(self, groups, *, on_error="raise", show_progress=None):
        self.calls.append(len(groups))
        sign = [-1 if completion_text(group.completions[0]) == "dark" else 1 for group in groups]
        return [[s * float(np.asarray(g.images[0])[..., 0].sum())] for s, g in zip(sign, groups, strict=True)]


def test_a_patch_counts_by_what_hiding_it_changes():
    pixels = np.full((40, 80, 3), GREY, np.uint8)
    pixels[10:20, 30:40] = 255  # the fourth patch of the second row, of 8 to a side of 80
    pixels[30:40, 0:10] = 0
    scorer = Brightness()
    found = occlude(scorer, Image.fromarray(pixels), "", "bright", 8)
    expected = np.zeros((4, 8))
    expected[1, 3], expected[3, 0] = 100 * (255 - GREY), -100 * GREY
    assert (found.drops == expected).all() and found.score == pixels[..., 0].sum()
    assert sum(scorer.calls) == 33 and len(scorer.calls) == 1
    assert (occlude(scorer, Image.fromarray(pixels), "", "dark", 8).drops == -expected).all()


@pytest.mark.parametrize("size", [(37, 91), (5, 3), (200, 20)])
def test_patches_cover_a_picture_of_any_shape_once(size):
    image = Image.new("RGB", size, (GREY + 1,) * 3)
    found = occlude(Brightness(), image, "", "bright", min(6, max(size)))
    assert found.drops.sum() == size[0] * size[1] and (found.drops > 0).all()


def test_large_pictures_are_not_all_in_memory_at_once(monkeypatch):
    monkeypatch.setattr("rs_rlhf.app.occlusion.AT_ONCE", 5 * 64)
    scorer = Brightness()
    found = occlude(scorer, Image.new("RGB", (8, 8), (200, 0, 0)), "", "bright", 4)
    assert scorer.calls == [5, 5, 5, 2] and found.drops.shape == (4, 4)


def test_the_overlay_shows_both_directions_and_keeps_the_rest():
    image = Image.new("RGB", (40, 20), (90, 90, 90))
    shown = np.asarray(overlay(image, Occlusion(1.0, np.array([[2.0, 0.0, -1.0, 0.0]])), strength=1.0)).astype(int)
    assert tuple(shown[5, 5]) == FOR and tuple(shown[5, 15]) == (90, 90, 90)
    assert np.abs(shown[5, 25] - (np.array([90] * 3) + AGAINST) / 2).max() <= 1
    same = np.asarray(overlay(image, Occlusion(1.0, np.zeros((2, 2)))))
    assert (same == 90).all()


def test_the_scorer_of_a_model_is_asked_in_the_same_way(models):
    found = models.occlusion(picture(4), "", "a river .", 2)
    image = np.asarray(picture(4)).copy()
    whole = models.score(picture(4), "", ["a river ."])[0].score
    assert found.score == pytest.approx(whole, abs=1e-5) and found.drops.shape == (1, 2)
    image[:, :42] = GREY
    hidden = models.score(Image.fromarray(image), "", ["a river ."])[0].score
    assert found.drops[0, 0] == pytest.approx(whole - hidden, abs=1e-4)
