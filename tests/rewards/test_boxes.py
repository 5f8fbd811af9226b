"""The box reward gives the published numbers, in every unit and form."""

import pickle
from dataclasses import replace

import pytest
from helpers import picture
from helpers.box_writers import FORMS, write_box
from helpers.chats import QUESTION, asked, said
from transformers import AutoProcessor

from rs_rlhf import ImageOptions
from rs_rlhf.errors import DeclarationError, OptionError
from rs_rlhf.models.profiles import load_profile
from rs_rlhf.models.tiny_vlm import save_tiny_vlm
from rs_rlhf.rewards import IoUReward, RSReward

pytestmark = pytest.mark.filterwarnings("ignore:iou_reward does not know")


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
    with pytest.raises(OptionError, match="best or order"):
        IoUReward(pairing="bset")
    with pytest.raises(OptionError, match="0-1000"):
        IoUReward(answer_unit="0-10000")


def test_the_profile_says_how_boxes_are_paired():
    text, solution = "[0,100,1000,1000] [0,0,1000,500]", "[0,0,1000,900] [0,500,1000,1000]"
    call = {"prompts": [asked()], "completions": [said(text)], "solution": [solution]}
    ordered = replace(load_profile("brackets"), unit="0-1000", pairing="order")
    assert IoUReward(profile=ordered)(**call) == pytest.approx([0.25 + 0.2])
    assert IoUReward(profile=ordered, pairing="best")(**call) == [0.5]
    with pytest.raises(DeclarationError) as error:
        replace(ordered, pairing="by place")
    assert error.value.key == "pairing"


SIZE, BOX = (300, 200), [30.0, 20.0, 150.0, 100.0]


@pytest.mark.parametrize("name", FORMS)
def test_a_perfect_box_of_every_profile_is_worth_1(name):
    profile = load_profile(name)
    seen = profile.seen_size(SIZE) if profile.resize else SIZE
    logged = {}
    call = {"solution": [BOX], "size": [SIZE], "log_metric": logged.__setitem__}
    reward = pickle.loads(pickle.dumps(IoUReward(solution_unit="pixel", profile=name)))
    assert reward([asked()], [said(write_box(name, BOX, SIZE, seen))], **call) == [1.0]
    assert logged == {"iou_reward/unreadable": 0}
    mixed = RSReward(iou=reward)
    text = f"<think>[1, 2, 3, 4]</think><answer>{write_box(name, BOX, SIZE, seen)}</answer>"
    assert mixed([asked()], [said(text)], **call, reward_type=["iou"]) == [1.0]


def test_a_box_that_cannot_be_read_is_worth_nothing_and_counted():
    logged = {}
    texts = ["[0.1, 0.2, 0.3, 0.4]", "[10, 20, 30, 4000]", "[0, 0, 9, 9, 8, 8, 1, 1]", "here", "[5, 5, 9, 9]"]
    reward = IoUReward(profile="internvl")
    call = {"solution": [[0, 0, 1000, 1000]] * 5, "log_metric": logged.__setitem__}
    assert reward([asked()] * 5, [said(text) for text in texts], **call) == [0.0] * 5
    assert logged == {"iou_reward/unreadable": 0.8}  # the last is a box, of too small an IoU


def test_a_solution_is_a_text_a_box_boxes_or_an_object():
    whole = "[0, 0, 1000, 1000]"
    reward = IoUReward(profile="internvl")
    for solution in (
        whole,
        "(0,0),(1000,1000)",
        [0, 0, 1000, 1000],
        [[0.0, 0, 1000, 1000]],
        {"bbox_2d": [0, 0, 1000, 1000]},
    ):
        assert reward([asked()], [said(whole)], solution=[solution]) == [1.0]
    for nothing in (3.0, True, {"label": "ship"}, [[1, 2, 3, 4], [5, 6]]):
        assert reward([asked()], [said(whole)], solution=[nothing]) == [None]
    assert reward([asked()], [said(f"{whole} {whole}")], solution=[[[0, 0, 1000, 1000]] * 2]) == [1.0]  # one box


def test_the_policy_tells_how_boxes_are_read(tmp_path):
    path = save_tiny_vlm(tmp_path / "m", family="qwen2_5_vl", min_pixels=56 * 56, max_pixels=12 * 28 * 28)
    reward, mixed = IoUReward(solution_unit="pixel"), RSReward(iou=IoUReward(solution_unit="pixel"))
    for one in (reward, mixed):
        one.use_policy("qwen2_5_vl", AutoProcessor.from_pretrained(path))
    seen = load_profile("qwen2.5-vl").seen_size(SIZE, (28, 56 * 56, 12 * 28 * 28))
    assert seen != SIZE and seen != load_profile("qwen2.5-vl").seen_size(SIZE)
    text = write_box("qwen2.5-vl", BOX, SIZE, seen)
    assert reward([asked()], [said(text)], solution=[BOX], image=[picture(0, *SIZE)]) == [1.0]
    form = f"<think></think><answer>{text}</answer>"
    assert mixed([asked()], [said(form)], solution=[BOX], size=[SIZE], reward_type=["iou"]) == [1.0]
    untold = IoUReward(solution_unit="pixel", profile="qwen2.5-vl")  # then of the declared budget
    assert untold([asked()], [said(text)], solution=[BOX], size=[SIZE]) == [0.0]
    seen_too = IoUReward(solution_unit="pixel of the resized image")  # rows made for training Qwen2.5-VL
    seen_too.use_policy("qwen2_5_vl")
    assert seen_too([asked()], [said(text)], solution=[text], size=[SIZE]) == [1.0]
    given = IoUReward(profile="fractions")
    given.use_policy("qwen2_5_vl")
    assert given.profile.name == "fractions"


def test_a_policy_of_unknown_type_is_read_as_published_with_a_warning():
    reward = IoUReward()
    with pytest.warns(UserWarning, match="reads boxes as qwen2-vl"):
        assert reward([asked()], [said("(0,0),(9,9)")], solution=[[0, 0, 9, 9]]) == [1.0]
    told = IoUReward()
    told.use_policy("idefics3")
    with pytest.raises(OptionError, match="a model of type idefics3") as error:
        told([asked()], [said("(0,0),(9,9)")], solution=[[0, 0, 9, 9]])
    assert error.value.key == "profile"
    mixed = RSReward()
    mixed.use_policy("idefics3")
    form = said("<think></think><answer>port</answer>")
    assert mixed([asked()], [form], solution=["port"], reward_type=["em"]) == [1.0]  # no box is asked for


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"answer_unit": "pixel", "profile": "brackets"}, "answer_unit"),
        ({"answer_unit": "pixel of the resized image"}, "answer_unit"),
        ({"solution_unit": "percent"}, "solution_unit"),
        ({"answer_unit": "percent"}, "answer_unit"),
    ],
)
def test_units_and_profiles_that_cannot_be_meant_are_refused(given, key):
    with pytest.raises(OptionError) as error:
        IoUReward(**given)
    assert error.value.key == key


def test_a_profile_that_is_not_declared_gets_the_nearest():
    with pytest.raises(DeclarationError, match="did you mean 'qwen2-vl'"):
        IoUReward(profile="qwen2vl")
    with pytest.raises(OptionError):
        RSReward(iou=IoUReward(profile="brackets"), profile="brackets")
    assert RSReward(profile="geochat").accuracy["iou"].profile.name == "geochat"
