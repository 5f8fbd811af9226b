"""Images and estimates follow the pixel budget as qwen-vl-utils does."""

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor

from rs_rlhf.errors import ImageError
from rs_rlhf.models.pixel_budget import fit_pixel_budget, set_pixel_budget, settle
from rs_rlhf.models.tiny_vlm import save_tiny_vlm

PATCH = {"qwen2_vl": 14, "qwen3_vl": 16}


def test_fit_pixel_budget_is_qwens_own_resize():
    fetch_image = pytest.importorskip("qwen_vl_utils").fetch_image
    image = Image.fromarray(np.random.default_rng(7).integers(0, 256, (150, 210, 3), dtype=np.uint8))
    for low, high in ((3136, 12845056), (3136, 20000), (200_000, 400_000)):
        ours = fit_pixel_budget(image, min_pixels=low, max_pixels=high)
        theirs = fetch_image({"image": image, "min_pixels": low, "max_pixels": high})
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))
        assert ours.width % 28 == 0 and ours.height % 28 == 0
    with pytest.raises(ImageError, match="too long and thin: absolute aspect ratio"):
        fit_pixel_budget(Image.new("RGB", (2001, 10)), min_pixels=3136, max_pixels=10**6)
    with pytest.raises(ImageError, match="too long and thin for max_pixels=5000"):
        fit_pixel_budget(Image.new("RGB", (1500, 10)), min_pixels=3136, max_pixels=5000)
    with pytest.raises(ImageError, match="min_pixels <= max_pixels"):
        fit_pixel_budget(image, min_pixels=10, max_pixels=5)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_a_settled_image_has_the_same_grid_under_any_wider_budget(family, tmp_path):
    processor = AutoProcessor.from_pretrained(save_tiny_vlm(tmp_path, family=family, patch_size=PATCH[family]))
    reader, factor = processor.image_processor, 2 * PATCH[family]
    draw = np.random.default_rng(5)
    sizes = [(1024, 1024), (13, 200), (3000, 17), (factor, factor), (1, 1), (1500, 10), (640, 480)]
    sizes += [tuple(map(int, 10 ** draw.uniform(1, 3.2, 2))) for _ in range(33)]
    own, wider = (8 * factor**2, 200 * factor**2), (factor**2, 4000 * factor**2)
    unsettled = []
    for width, height in sizes:
        blocks = Image.fromarray(draw.integers(0, 256, (7, 9, 3), dtype=np.uint8))
        image = blocks.resize((width, height), Image.Resampling.BICUBIC)
        set_pixel_budget(processor, *own)
        counted, settled = reader(images=[image], return_tensors="pt"), settle(image, processor)
        set_pixel_budget(processor, *wider)
        seen = reader(images=[settled], return_tensors="pt")
        assert seen["image_grid_thw"].tolist() == counted["image_grid_thw"].tolist(), (width, height)
        levels = (seen["pixel_values"] - counted["pixel_values"]).abs() * 255 * max(reader.image_std)
        assert levels.max() < 3 and levels.mean() < 0.1
        as_it_is = reader(images=[image], return_tensors="pt")
        unsettled.append(as_it_is["image_grid_thw"].tolist() != counted["image_grid_thw"].tolist())
    assert sum(unsettled) > 15  # without the resize


def test_an_image_that_no_size_settles_is_refused(tiny_vlm):
    processor = AutoProcessor.from_pretrained(tiny_vlm)
    for size in ((400, 2), (7990, 40), (200, 3)):
        set_pixel_budget(processor, 56 * 56, 300 * 784 if size[0] > 1000 else 16 * 784)
        with pytest.raises(ImageError, match="too long and thin") as error:
            settle(Image.new("RGB", size), processor, "rows.jsonl, line 3")
        assert error.value.where == "rows.jsonl, line 3"
