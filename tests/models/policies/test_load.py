"""The loader chooses the policy that fits, and refuses options that do not go with it."""

import shutil

import pytest
from helpers import picture

from rs_rlhf.data.group import make_group
from rs_rlhf.errors import ModelError, OptionError
from rs_rlhf.models.policies.endpoint import EndpointPolicy
from rs_rlhf.models.policies.hf import HFPolicy
from rs_rlhf.models.policies.load import load_policy
from rs_rlhf.models.policies.policy import Policy
from rs_rlhf.models.policies.qwen_vl import QwenVLPolicy


def test_each_family_has_its_policy(tiny_vlm, llava_path):
    policy, llava = (
        Policy.from_pretrained(tiny_vlm, min_pixels=56 * 56, max_pixels=6 * 28 * 28),
        load_policy(llava_path),
    )
    assert isinstance(policy, QwenVLPolicy) and isinstance(llava, HFPolicy)
    assert isinstance(load_policy("http://127.0.0.1:1/v1"), EndpointPolicy)
    ((width, height),) = policy.pixels(make_group("a", [], picture(1, 840, 560)))
    inputs = policy._inputs([make_group("a", [], picture(1, 840, 560))])
    assert inputs["image_grid_thw"].tolist() == [[1, height // 14, width // 14]] and width * height <= 6 * 28 * 28
    assert llava.pixels(make_group("a", [], [picture(1, 840, 560), picture(2)])) == [(28, 28), (28, 28)]


def test_a_model_without_a_chat_template_is_refused(llava_path, tmp_path):
    shutil.copytree(llava_path, tmp_path / "bare")
    (tmp_path / "bare" / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="has no chat template.*chat_template.jinja"):
        load_policy(tmp_path / "bare")


@pytest.mark.parametrize(
    ("options", "key", "message"),
    [
        ({"max_pixels": 10000}, "max_pixels", "is a llava, whose processor has no pixel budget"),
        ({"augment": True}, "augment", "augment has no effect on a llava"),
        ({"backend": "tgi"}, "backend", "unknown backend 'tgi'"),
        ({"backend": "vllm"}, "backend", "needs vLLM, which is not installed"),
        ({"backend": "vllm", "device": "cpu"}, "device", "device has no effect on the vllm backend"),
        ({"endpoint": "http://127.0.0.1:1/v1", "max_pixels": 1}, "max_pixels", "max_pixels has no effect"),
        ({"endpoint": "http://127.0.0.1:1/v1", "backend": "vllm"}, "backend", "backend has no effect"),
        ({"endpoint": "127.0.0.1:1/v1"}, "endpoint", "expected an address such as"),
    ],
)
def test_an_option_that_does_not_go_with_the_model(llava_path, options, key, message):
    with pytest.raises(OptionError, match=message) as error:
        load_policy(llava_path, **options)
    assert error.value.key == key
