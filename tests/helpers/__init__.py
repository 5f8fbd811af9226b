"""What the tests share: the checkout's root, the place of the real data, and pictures drawn here."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT / "tests" / "cases"
WORDS = ["river", "forest", "port", "farmland"]  # what the policy of `policy_path` answers


def data_folder(name: str) -> Path:
    """Returns a folder of the real data, or skips the test where it is not there."""
    folder = Path(os.environ.get("RS_RLHF_DATA", ROOT.parent / "shared" / "data")) / name
    if not folder.is_dir():
        pytest.skip(f"the real data is not on this machine ({name}; set RS_RLHF_DATA)")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """Returns the content of every file below a folder by its path in it; links to folders are not followed."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def picture(seed: int, width: int = 84, height: int = 56) -> Image.Image:
    """Draws a picture that differs for every seed: blocks of colour."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)
