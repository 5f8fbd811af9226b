"""The box reward gives the published numbers, in every unit."""

import pytest
from helpers import picture
from helpers.chats import QUESTION, asked, said

from rs_rlhf import ImageOptions
from rs_rlhf.errors import OptionError
from rs_rlhf.rewards import IoUReward


@pytest.mark.parametrize(("width", "value"), [(50, 0.0), (55, 0.5), (65, 0.6), (75, 0.7), (85, 1.0)])
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
    for nothing in ("no box", "", None, [], [1, 2, 3]):
        assert IoUReward()(**left | {"solution": [nothing]}) == [None]
    shown = asked([{"type": "image", "image": picture(0)}, {"type": "text", "text": QUESTION}])
    assert pixel(**left | {"prompts": [shown]}) == [1.0] and pixel(**left, images=[["missing.png"]]) == [None]
    both = IoUReward("pixel", "0-1")
    assert both([asked()], [said("[0, 0, 42, 56]")], solution=["[0, 0, .5, 1]"], image=[picture(0)]) == [1.0]
    # a corner so near to 0 that Python writes it as 1e-05
    percent = IoUReward("0-100", "0-1")
    near = [[1e-5, 0, 0.5, 1], [0.5, 0, 1, 1]]
    assert percent([asked()], [said("[0,0,50,100] [50,0,100,100]")], solution=[near]) == [1.5]


def test_iou_reward_pairs_for_the_greatest_total():
    """Boxes of `test_answers` times 100: 0.8 and 0 by place, 5/9 and 5/9 at best."""
    text, solution = "[0,100,1000,1000] [0,0,1000,500]", "[0,0,1000,900] [0,500,1000,1000]"
    call = {"prompts": [asked()], "completions": [said(text)], "solution": [solution]}
    assert IoUReward()(**call) == [0.5] and IoUReward(pairing="order")(**call) == pytest.approx([0.25 + 0.2])
    with pytest.raises(OptionError, match="'best' or 'order'"):
        IoUReward(pairing="bset")
    with pytest.raises(OptionError, match="0-1000"):
        IoUReward(answer_unit="0-10000")
