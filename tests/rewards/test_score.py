"""The score model's reward equals the scorer, whatever TRL hands over."""

import io
import math
import pickle
import shutil

import numpy as np
import pytest
import torch
from helpers import picture
from helpers.chats import QUESTION, TEXTS, asked, said
from PIL import Image
from safetensors.torch import load_file, save_file

from rs_rlhf.errors import DeclarationError, OptionError, RewardFailed
from rs_rlhf.rewards import ScoreReward, score_reward


def encoded(i):
    buffer = io.BytesIO()
    picture(i).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.mark.parametrize("form", ["path", "pil", "bytes", "list", "in the prompt", "plain text"])
def test_rewards_are_the_scorers_in_every_form(scorer, expected, form):
    make = {"path": lambda i: f"{i}.png", "bytes": encoded}.get(form, picture)
    rows = [(0, t) for t in TEXTS] + [(1, t) for t in TEXTS]
    prompts, columns = [asked() for _ in rows], {"image": [make(i) for i, _ in rows]}
    completions = [said(text) for _, text in rows]
    if form == "list":
        columns = {"images": [[make(i)] for i, _ in rows]}
    if form == "in the prompt":
        columns, prompts = (
            {},
            [asked([{"type": "image", "image": make(i)}, {"type": "text", "text": QUESTION}]) for i, _ in rows],
        )
    if form == "plain text":
        prompts, completions = [QUESTION] * len(rows), [text for _, text in rows]
    found = ScoreReward(scorer)(prompts, completions, **columns)
    assert found == pytest.approx(expected[0] + expected[1], abs=1e-4)


def test_order_parts_and_repeats_do_not_matter(scorer, expected):
    reward = ScoreReward(scorer)
    rows = [(i, k) for k in (2, 0, 3, 1) for i in (1, 0)] + [(0, 2)]
    prompts, images = [asked() for _ in rows], [picture(i) for i, _ in rows]  # pictures decoded anew for each row
    completions = [said(TEXTS[k]) for _, k in rows]
    groups, places = reward.layout(prompts, completions, {"image": images})
    assert [len(group.completions) for group in groups] == [4, 4] and places[-1] == places[1]
    right = [expected[i][k] for i, k in rows]
    assert reward(prompts, completions, image=images) == pytest.approx(right, abs=1e-4)
    parts = [reward(prompts[a:b], completions[a:b], image=images[a:b]) for a, b in ((0, 3), (3, 9))]
    assert parts[0] + parts[1] == pytest.approx(right, abs=1e-4)


def test_another_image_moves_the_reward_and_equal_texts_are_kept_apart(scorer, expected):
    found = ScoreReward(scorer)([asked()] * 2, [said("urban")] * 2, image=[picture(0), picture(1)])
    assert abs(found[0] - found[1]) > 1e-3
    assert found == pytest.approx([expected[0][0], expected[1][0]], abs=1e-4)


def test_shuffled_images_are_another_prompts(scorer, expected, caplog):
    def call(reward, *names):
        return reward([asked()] * len(names), [said("urban")] * len(names), image=list(names))

    right = [scores[0] for scores in expected]
    for pictures in (("0.png", "1.png"), (picture(0), picture(1))):
        assert call(ScoreReward(scorer, shuffle_images=True), *pictures) == pytest.approx(right[::-1], abs=1e-4)
    # TRL with one prompt per process and call: the image is that of the call before
    alone = ScoreReward(scorer, shuffle_images=True)
    assert call(alone, "0.png", "0.png") == pytest.approx([right[0]] * 2, abs=1e-4)
    assert "with its own" in caplog.text
    caplog.clear()
    assert call(alone, "1.png") == pytest.approx(right[:1], abs=1e-4)
    assert call(alone, "0.png") == pytest.approx(right[1:], abs=1e-4) and not caplog.text


def test_the_answer_is_scored_alone_and_system_turns_are_not_shown(scorer, expected):
    full = "<think>roads</think><answer> urban </answer>"
    call = {"prompts": [asked(system="Think first.")], "completions": [said(full)], "image": ["0.png"]}
    assert ScoreReward(scorer)(**call) == pytest.approx([expected[0][0]], abs=1e-4)
    unclosed = {**call, "completions": [said("<think>roads</think> <answer>urban")]}  # the rule of evaluation
    assert ScoreReward(scorer)(**unclosed) == pytest.approx([expected[0][0]], abs=1e-4)
    assert abs(ScoreReward(scorer, answer_only=False)(**call)[0] - expected[0][0]) > 1e-3
    shown = scorer.score(["0.png"], [asked(system="Think first.")], [["urban"]])[0]
    assert ScoreReward(scorer, system_turns=True)(**call) == pytest.approx(shown, abs=1e-4)
    assert abs(shown[0] - expected[0][0]) > 1e-3


def test_relative_to_the_reference_and_exp(scorer, expected):
    s = expected[0]
    order = sorted(range(4), key=s.__getitem__)
    middle, metrics = order[2], {}
    columns = {"image": ["0.png"] * 4, "solution": [f"<think>x</think><answer>{TEXTS[middle]}</answer>"] * 4}
    relative = ScoreReward(scorer, relative_to_reference=True, scale=0.5)
    found = relative([asked()] * 4, list(map(said, TEXTS)), **columns, log_metric=metrics.__setitem__)
    best = order[3]
    assert found[best] == pytest.approx(1 - math.exp(-0.5 * (s[best] - s[middle])), abs=1e-4) and found[best] > 0.01
    assert [found[k] for k in order[:3]] == [0, 0, 0]  # the reference itself, and what is worse
    assert metrics["score/reference_mean"] == pytest.approx(s[middle], abs=1e-4)
    assert metrics["score/mean"] == pytest.approx(sum(s) / 4, abs=1e-4)
    groups, places = relative.layout([asked()] * 4, list(map(said, TEXTS)), columns)
    assert len(groups) == 1 and len(groups[0].completions) == 4 and {place.texts[1] for place in places} == {middle}
    exp = ScoreReward(scorer, transform="exp")([asked()] * 4, list(map(said, TEXTS)), **columns)
    assert exp == pytest.approx([math.exp(x) for x in s], rel=1e-3)
    with pytest.raises(DeclarationError, match="'solution'"):
        ScoreReward(scorer, relative_to_reference=True)([asked()], [said("urban")], image=["0.png"])
    renamed = ScoreReward(scorer, relative_to_reference=True, reference="answer")
    assert renamed([asked()], [said("urban")], image=["0.png"], answer=["urban"]) == [0]
    with pytest.raises(OptionError, match="'expo'; did you mean 'exp'"):
        ScoreReward(scorer, transform="expo")
    with pytest.raises(OptionError, match="give one of the two"):
        ScoreReward(scorer, transform="exp", relative_to_reference=True)


def test_softmax_is_the_probability_of_the_completion_among_the_choices(scorer, expected):
    reward, metrics = ScoreReward(scorer, transform="softmax"), {}
    weights = [[math.exp(x) for x in row] for row in expected]
    call = {"prompts": [asked()] * 6, "completions": list(map(said, [*TEXTS[:2], TEXTS[0], TEXTS[3], *TEXTS[2:]]))}
    columns = {"image": ["0.png"] * 4 + ["1.png"] * 2, "choices": [TEXTS[:3]] * 4 + [TEXTS[2:]] * 2}
    found = reward(**call, **columns, log_metric=metrics.__setitem__)
    three, two = sum(weights[0][:3]), sum(weights[1][2:])
    wanted = [weights[0][k] / three for k in (0, 1, 0)] + [weights[0][3] / (three + weights[0][3])]  # 3: no choice
    assert found == pytest.approx([*wanted, weights[1][2] / two, weights[1][3] / two], abs=1e-4)
    assert found[4] + found[5] == pytest.approx(1) and abs(found[4] - 0.5) > 1e-3
    assert metrics["score/max"] == pytest.approx(max(*expected[0][:2], expected[0][3], *expected[1][2:]), abs=1e-4)
    for i in range(6):  # whatever else is in the call
        one = {name: [values[i]] for name, values in {**call, **columns}.items()}
        assert reward(**one) == pytest.approx([found[i]], abs=1e-4)
    assert ScoreReward(scorer)(**call, **columns)[0] == pytest.approx(expected[0][0], abs=1e-4)
    with pytest.raises(DeclarationError, match="needs the column 'choices'.*the columns are image"):
        reward([asked()], [said("urban")], image=["0.png"])
    metrics, rows = {}, [TEXTS, None, [], "urban", TEXTS]
    images = ["0.png"] * 4 + ["none.png"]
    found = reward([asked()] * 5, [said("urban")] * 5, image=images, choices=rows, log_metric=metrics.__setitem__)
    assert found[0] == pytest.approx(weights[0][0] / sum(weights[0]), abs=1e-4) and found[1:] == [None] * 4
    assert metrics["reward/failed_fraction"] == 0.8


def test_a_row_without_a_reference_fails_and_is_not_compared_with_an_empty_answer(scorer, expected):
    metrics = {}
    relative = ScoreReward(scorer, relative_to_reference=True)
    columns = {"image": ["0.png"] * 4, "solution": [None, " ", "<answer></answer>", TEXTS[2]]}
    found = relative([asked()] * 4, [said(TEXTS[0])] * 4, **columns, log_metric=metrics.__setitem__)
    right = 1 - math.exp(-0.2 * (expected[0][0] - expected[0][2]))
    assert found == [None, None, None, pytest.approx(right, abs=1e-4)] and right > 0.01
    assert metrics["reward/failed_fraction"] == 0.75
    assert relative([asked()], [said("12")], image=["0.png"], solution=[12]) == [0]  # a number is a text


def test_a_failure_is_none_for_its_rows_only(scorer, expected, folder):
    (folder / "broken.png").write_bytes(b"not a picture")
    metrics, extra = {}, {}
    found = ScoreReward(scorer)(
        [asked()] * 4,
        [said("urban")] * 4,
        image=["0.png", "broken.png", "missing.png", "1.png"],
        log_metric=metrics.__setitem__,
        log_extra=extra.__setitem__,
    )
    assert found[1] is None and found[2] is None
    assert [found[0], found[3]] == pytest.approx([expected[0][0], expected[1][0]], abs=1e-4)
    low, high = sorted([found[0], found[3]])
    assert extra == {"score": found}
    assert metrics == {
        "reward/failed_fraction": 0.5,
        "score/mean": pytest.approx((low + high) / 2),
        "score/std": pytest.approx((high - low) / 2),
        "score/min": low,
        "score/max": high,
    }


def test_a_picture_that_was_opened_but_is_damaged_fails_for_its_rows_only(scorer, expected, tmp_path):
    (tmp_path / "cut.png").write_bytes(encoded(0)["bytes"][:-40])
    with Image.open(tmp_path / "cut.png") as cut:
        found = ScoreReward(scorer)([asked()] * 2, [said("urban")] * 2, image=[cut, picture(1)])
    assert found == [None, pytest.approx(expected[1][0], abs=1e-4)]


def test_an_answer_that_spells_an_image_token_fails_alone(scorer, expected):
    """The rewards of the other rollouts of its prompt must not depend on it."""
    texts = [TEXTS[0], "a <|image_pad|> river", TEXTS[1]]
    found = ScoreReward(scorer)([asked()] * 3, list(map(said, texts)), image=["0.png"] * 3)
    assert found[1] is None
    assert [found[0], found[2]] == pytest.approx(expected[0][:2], abs=1e-4)


def test_texts_that_models_may_write_get_a_reward(scorer):
    texts = ["", " ", "<image>", "<answer></answer>", "<|im_end|>", "<|vision_start|>", "\U0001f6f0 \u4e2d", "x" * 999]
    found = ScoreReward(scorer)([asked()] * len(texts), list(map(said, texts)), image=["0.png"] * len(texts))
    assert all(isinstance(value, float) and math.isfinite(value) for value in found)


def test_rows_that_fit_no_group_fail_alone(scorer, expected):
    """Two images for one placeholder, and an image that is none."""
    one = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    images = [["0.png"], ["0.png", "1.png"], [7]]
    found = ScoreReward(scorer)([asked(one)] * 3, [said("urban")] * 3, images=images)
    assert found == [pytest.approx(expected[0][0], abs=1e-4), None, None]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_no_numbers_stop_the_run(score_model_path, tmp_path, value):
    broken = shutil.copytree(score_model_path, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["reward_head.weight"] = torch.full_like(weights["reward_head.weight"], value)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    reward, metrics = ScoreReward(str(broken), device="cpu"), {}
    call = {"prompts": [asked()], "completions": [said("urban")], "image": [picture(0)]}
    for _ in range(5):
        assert reward(**call, log_metric=metrics.__setitem__) == [None]
    assert metrics == {"reward/failed_fraction": 1.0}
    assert ScoreReward(reward.scorer, relative_to_reference=True)(**call, solution=["rural"]) == [None]
    for transform in ("exp", "softmax"):
        assert ScoreReward(reward.scorer, transform=transform)(**call, choices=[["urban", "rural"]]) == [None]
    with pytest.raises(RewardFailed, match="60% of the rewards of the last 10 steps failed.*not a finite number"):
        reward(**call)


def test_failures_are_looked_back_on_over_the_window(scorer):
    def call(reward, *names):
        return reward([asked()] * len(names), [said("urban")] * len(names), image=list(names))

    reward = ScoreReward(scorer, failure_window=4, max_failed_fraction=0.5)
    for _ in range(3):  # two bad calls of four, over and over
        assert call(reward, "missing.png") == call(reward, "missing.png") == [None]
        assert None not in call(reward, "0.png") + call(reward, "1.png")
    call(reward, "missing.png")
    call(reward, "missing.png")  # now good, good, bad, bad
    with pytest.raises(RewardFailed, match=r"62% of the rewards of the last 4 steps.*missing\.png"):
        call(reward, "missing.png", "0.png")  # good, bad, bad, half: 2.5 of 4


def test_a_named_model_is_picklable_before_and_after_it_is_loaded(score_model_path):
    reward = ScoreReward(score_model_path, device="cpu")
    call = {"prompts": [asked()], "completions": [said("urban")], "image": [picture(0)]}
    early = pickle.loads(pickle.dumps(reward))
    value = reward(**call)
    assert len(pickle.dumps(reward)) < 5000  # without the weights
    late = pickle.loads(pickle.dumps(reward))
    assert late._scorer is None and early(**call) == late(**call) == value and late.__name__ == "score_reward"


def test_score_reward_takes_its_model_from_the_environment(score_model_path, monkeypatch):
    call = {"prompts": [asked()], "completions": [said("urban")], "image": [picture(0)]}
    monkeypatch.delenv("RS_RLHF_SCORE_MODEL", raising=False)
    with pytest.raises(DeclarationError, match="RS_RLHF_SCORE_MODEL"):
        score_reward(**call)
    monkeypatch.setenv("RS_RLHF_SCORE_MODEL", score_model_path)
    assert score_reward(**call) == pytest.approx(ScoreReward(score_model_path)(**call), abs=1e-5)
    assert score_reward.__name__ == "score_reward"


def test_images_of_other_kinds_are_told_apart(scorer):
    """Two pictures of one size whose bytes differ in one pixel are two groups."""
    one, other = picture(0), picture(0)
    other.putpixel((0, 0), (1, 2, 3))
    groups, _ = ScoreReward(scorer).layout([asked()] * 3, [said("a")] * 3, {"image": [one, other, picture(0)]})
    assert len(groups) == 2 and all(isinstance(group.images[0], Image.Image) for group in groups)
    indices = Image.new("P", (56, 56), 1)
    red, blue = indices.copy(), indices.copy()
    red.putpalette([0, 0, 0, 255, 0, 0])
    blue.putpalette([0, 0, 0, 0, 0, 255])
    assert red.tobytes() == blue.tobytes()
    arrays = [np.zeros((56, 56), np.uint16), np.zeros((56, 56), np.float16)]
    kinds = {"image": [red, blue, red.copy(), *arrays]}
    groups, places = ScoreReward(scorer).layout([asked()] * 5, [said("a")] * 5, kinds)
    assert len(groups) == 4 and places[2] == places[0]
    found = ScoreReward(scorer)([asked()] * 2, [said("urban")] * 2, image=[red, blue])
    assert abs(found[0] - found[1]) > 1e-3


def test_padding_and_company_do_not_matter(score_model_path, scorer):
    """Rows of other lengths, prompts and image sizes beside a row, or none."""
    images = [picture(0), picture(1, 168, 112), None, picture(2, 56, 56)]
    prompts = [asked(), asked("What is on the left, and is it larger than what is on the right?"), asked("a"), asked()]
    rows = [(i, text) for i in range(4) for text in ("urban", "a long river beside many trees " * 4)]

    def rewards(reward, chosen):
        columns = {"image": [images[i] for i, _ in chosen]}
        return reward([prompts[i] for i, _ in chosen], [said(text) for _, text in chosen], **columns)

    together = rewards(ScoreReward(scorer), rows)
    alone = [rewards(ScoreReward(scorer), [row])[0] for row in rows]
    assert together == pytest.approx(alone, abs=1e-5, rel=1e-5)
    small = ScoreReward(score_model_path, device="cpu", token_budget=40)  # every text in a batch of its own
    assert rewards(small, rows) == pytest.approx(alone, abs=1e-5, rel=1e-5)
    assert len(set(together)) == len(rows)


def test_several_images_of_a_prompt_are_scored_in_their_order(scorer):
    pair = [picture(0), picture(1)]
    right = scorer.score([pair], ["Compare."], [["urban"]])[0]
    slots = [{"type": "image"}, {"type": "text", "text": "Compare."}]
    filled = [{"type": "image", "image": image} for image in pair] + slots[1:]
    for prompt, columns in (
        (asked("Compare."), {"images": [pair]}),
        (asked([slots[0], *slots]), {"images": [pair]}),
        (asked(filled), {"images": [pair]}),
        (asked(filled), {}),
    ):
        assert ScoreReward(scorer)([prompt], [said("urban")], **columns) == pytest.approx(right, abs=1e-4)
    turned = ScoreReward(scorer)([asked("Compare.")], [said("urban")], images=[pair[::-1]])
    assert abs(turned[0] - right[0]) > 1e-3
