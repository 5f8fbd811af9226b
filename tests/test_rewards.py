"""Rewards: the score model's equals the scorer whatever TRL hands over; the others give the published numbers."""

import io
import math
import pickle

import pytest
import torch
from conftest import picture
from PIL import Image
from safetensors.torch import load_file, save_file

from rs_rlhf import ImageOptions, Scorer
from rs_rlhf.declarations import DeclarationError
from rs_rlhf.rewards import (
    ExactMatchReward,
    IoUReward,
    RewardFailed,
    RSReward,
    ScoreReward,
    ThinkAnswerFormatReward,
    score_reward,
)

QUESTION = "Rural or urban?"
TEXTS = ["urban", "rural", "a river", "many trees and a road"]


def asked(text=QUESTION, system=None):
    turns = [] if system is None else [{"role": "system", "content": system}]
    return [*turns, {"role": "user", "content": text}]


def said(text):
    return [{"role": "assistant", "content": text}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(3):
        picture(i).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def scorer(score_model_path, folder):
    return Scorer.from_pretrained(score_model_path, device="cpu", image_options=ImageOptions(image_root=str(folder)))


@pytest.fixture(scope="module")
def expected(scorer):
    return scorer.score(["0.png", "1.png"], [QUESTION] * 2, [TEXTS, TEXTS])


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
        columns, prompts = {}, [
            asked([{"type": "image", "image": make(i)}, {"type": "text", "text": QUESTION}]) for i, _ in rows
        ]  # fmt: skip
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
    shuffled = ScoreReward(scorer, shuffle_images=True)([asked()] * 2, [said("urban")] * 2, image=["0.png", "1.png"])
    assert shuffled == pytest.approx(found[::-1], abs=1e-4)


def test_the_answer_is_scored_alone_and_system_turns_are_not_shown(scorer, expected):
    full = "<think>roads</think><answer> urban </answer>"
    call = {"prompts": [asked(system="Think first.")], "completions": [said(full)], "image": ["0.png"]}
    assert ScoreReward(scorer)(**call) == pytest.approx([expected[0][0]], abs=1e-4)
    assert abs(ScoreReward(scorer, answer_only=False)(**call)[0] - expected[0][0]) > 1e-3
    assert abs(ScoreReward(scorer, system_turns=True)(**call)[0] - expected[0][0]) > 1e-3


def test_relative_to_the_reference_and_exp(scorer, expected):
    s = expected[0]
    columns = {"image": ["0.png"] * 4, "solution": [TEXTS[1]] * 4}
    relative = ScoreReward(scorer, relative_to_reference=True, scale=0.5)
    found = relative([asked()] * 4, list(map(said, TEXTS)), **columns)
    assert found == pytest.approx([1 - math.exp(-0.5 * max(0, x - s[1])) for x in s], abs=1e-4)
    assert found[1] == 0 and max(found) > 0
    exp = ScoreReward(scorer, transform="exp")([asked()] * 4, list(map(said, TEXTS)), **columns)
    assert exp == pytest.approx([math.exp(x) for x in s], rel=1e-3)
    with pytest.raises(DeclarationError, match="'solution'"):
        ScoreReward(scorer, relative_to_reference=True)([asked()], [said("urban")], image=["0.png"])
    with pytest.raises(ValueError, match="exp"):
        ScoreReward(scorer, transform="expo")


def test_a_failure_is_none_for_its_rows_only(scorer, expected, folder):
    (folder / "broken.png").write_bytes(b"not a picture")
    metrics, extra = {}, {}
    found = ScoreReward(scorer)(
        [asked()] * 4, [said("urban")] * 4, image=["0.png", "broken.png", "missing.png", "1.png"],
        log_metric=metrics.__setitem__, log_extra=extra.__setitem__,
    )  # fmt: skip
    assert found[1] is None and found[2] is None
    assert [found[0], found[3]] == pytest.approx([expected[0][0], expected[1][0]], abs=1e-4)
    assert metrics["reward/failed_fraction"] == 0.5 and extra["score"] == found
    assert metrics["score/mean"] == pytest.approx((found[0] + found[3]) / 2)


def test_scores_that_are_no_numbers_stop_the_run(score_model_path, tmp_path):
    import shutil

    broken = shutil.copytree(score_model_path, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["reward_head.weight"] = torch.full_like(weights["reward_head.weight"], float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    reward, metrics = ScoreReward(str(broken), device="cpu"), {}
    call = {"prompts": [asked()], "completions": [said("urban")], "image": [picture(0)]}
    for _ in range(5):
        assert reward(**call, log_metric=metrics.__setitem__) == [None]
    assert metrics == {"reward/failed_fraction": 1.0}
    with pytest.raises(RewardFailed, match="60% of the rewards of the last 10 steps failed.*not a finite number"):
        reward(**call)


def test_a_named_model_is_picklable_before_and_after_it_is_loaded(score_model_path):
    reward = ScoreReward(score_model_path, device="cpu")
    call = {"prompts": [asked()], "completions": [said("urban")], "image": [picture(0)]}
    early = pickle.loads(pickle.dumps(reward))
    value = reward(**call)
    late = pickle.loads(pickle.dumps(reward))
    assert late._scorer is None and early(**call) == late(**call) == value and late.__name__ == "score_reward"


def test_score_reward_takes_its_model_from_the_environment(score_model_path, monkeypatch):
    call = {"prompts": [asked()], "completions": [said("urban")], "image": [picture(0)]}
    monkeypatch.delenv("RS_RLHF_SCORE_MODEL", raising=False)
    with pytest.raises(DeclarationError, match="RS_RLHF_SCORE_MODEL"):
        score_reward(**call)
    monkeypatch.setenv("RS_RLHF_SCORE_MODEL", score_model_path)
    assert score_reward(**call) == pytest.approx(ScoreReward(score_model_path)(**call), abs=1e-5)


def test_exact_match_reward():
    reward = ExactMatchReward()
    completions = [said("<answer>Rural.</answer>"), said("urban"), said(""), said("x")]
    assert reward([None] * 4, completions, solution=["rural", "rural", "", None]) == [1, 0, 0, None]
    with pytest.raises(DeclarationError, match="'solution'; did you mean 'solutions'"):
        reward([None], [said("x")], solutions=["x"])


@pytest.mark.parametrize(("width", "value"), [(50, 0.0), (65, 0.6), (75, 0.7), (85, 1.0), (55, 0.5)])
def test_iou_reward_of_one_box_as_published(width, value):
    answer = f"(0,0),({width * 10},1000)"  # of the solution's box, which is the whole picture
    assert IoUReward()([asked()], [said(answer)], solution=["[0, 0, 1000, 1000]"]) == pytest.approx([value])


def test_iou_reward_of_several_boxes_and_its_units(folder):
    first, second = "[0, 0, 500, 500]", "[500, 500, 1000, 1000]"
    call = {"prompts": [asked()], "completions": [said(f"{second} {first}")], "solution": [f"{first} {second}"]}
    assert IoUReward()(**call) == [1.5] and IoUReward(pairing="order")(**call) == [0.0]
    assert IoUReward()(**call | {"completions": [said(first)]}) == [0.0]
    # 84 x 56 pixels: the left half is 42 wide
    pixel = IoUReward(solution_unit="pixel", image_options=ImageOptions(image_root=str(folder)))
    left = {"prompts": [asked()], "completions": [said("(0,0),(500,1000)")], "solution": [[0, 0, 42, 56]]}
    assert pixel(**left, size=[(84, 56)]) == [1.0] and pixel(**left, image=["0.png"]) == [1.0]
    assert pixel(**left, size=[(168, 56)]) != [1.0] and pixel(**left) == [None]
    assert IoUReward()(**left | {"solution": ["no box"]}) == [None]
    with pytest.raises(ValueError, match="0-1000"):
        IoUReward(answer_unit="0-10000")


def test_think_answer_format_reward():
    good = said("<think>a</think><answer>b</answer>")
    assert ThinkAnswerFormatReward()([None] * 2, [good, said("b")]) == [1, 0]


def test_rs_reward_mixes_format_and_accuracy(scorer, expected):
    def form(text):
        return said(f"<think>t</think><answer>{text}</answer>")

    boxes = "[0, 0, 1000, 1000]"
    rows = [("em", form("rural"), "rural"), ("em", form("urban"), "rural"), ("em", said("rural"), "rural")]
    rows += [("iou", form(boxes), boxes), ("open_ended", form(TEXTS[0]), TEXTS[1]), ("open_ended", said("a"), "b")]
    kinds, completions, solutions = map(list, zip(*rows, strict=True))
    columns = {"solution": solutions, "reward_type": kinds, "image": ["0.png"] * 6}
    found = RSReward(scorer)([asked()] * 6, completions, **columns)
    relative = 1 - math.exp(-0.2 * max(0.0, expected[0][0] - expected[0][1]))
    assert found == pytest.approx([1.0, 0.3, 0.0, 1.0, 0.3 + 0.7 * relative, 0.0], abs=1e-4)
    broken = RSReward(scorer)([asked()] * 6, completions, **columns | {"image": ["missing.png"] * 6})
    assert broken[4] is None and broken[:4] == pytest.approx([1.0, 0.3, 0.0, 1.0])
    with pytest.raises(DeclarationError, match="'open_endd'; did you mean 'open_ended'"):
        RSReward(scorer)([asked()], [form("a")], solution=["a"], reward_type=["open_endd"])
    with pytest.raises(DeclarationError, match="score model"):
        RSReward()([asked()], [form("a")], solution=["a"], reward_type=["open_ended"])


def test_images_of_other_kinds_are_told_apart(scorer):
    """Two pictures of one size whose bytes differ in one pixel are two groups."""
    one, other = picture(0), picture(0)
    other.putpixel((0, 0), (1, 2, 3))
    groups, _ = ScoreReward(scorer).layout([asked()] * 3, [said("a")] * 3, {"image": [one, other, picture(0)]})
    assert len(groups) == 2 and all(isinstance(group.images[0], Image.Image) for group in groups)
