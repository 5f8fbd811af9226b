"""Images and estimates follow the pixel budget as qwen-vl-utils does."""

import numpy as np
import pytest
from PIL import Image

from rs_rlhf.errors import ImageError
from rs_rlhf.models.pixel_budget import fit_pixel_budget


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
