"""What the tests share: tiny models built from config objects, images drawn here, and the real data's place."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile

import pytest

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["XDG_STATE_HOME"] = os.path.join(tempfile.gettempdir(), f"rs-rlhf-tests-{os.getuid()}")
if "PYTEST_XDIST_WORKER" in os.environ:  # several run side by side
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish():
    """What the imported modules hold is not looked through again: each training collects garbage, half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_vlm(tmp_path_factory):
    """Path of a tiny Qwen2-VL with a pixel budget of 4 to 12 image tokens."""
    from rs_rlhf.models.tiny_vlm import save_tiny_vlm

    path = tmp_path_factory.mktemp("tiny") / "qwen2_vl"
    return save_tiny_vlm(path, min_pixels=56 * 56, max_pixels=12 * 28 * 28)


@pytest.fixture(scope="session")
def score_model_path(tmp_path_factory, tiny_vlm):
    """Path of a saved tiny score model with its processor; its head is scaled so that scores differ well.

    The activation is the identity, since softplus flattens whatever a random head happens to send below zero.
    """
    import torch
    from transformers import AutoProcessor

    from rs_rlhf import ScoreModel

    torch.manual_seed(0)
    model = ScoreModel.from_pretrained(tiny_vlm, output_activation="identity")
    model.reward_head.weight.data.mul_(20)
    path = tmp_path_factory.mktemp("tiny") / "score_model"
    model.save_pretrained(path)
    AutoProcessor.from_pretrained(tiny_vlm).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def score_models(tmp_path_factory, tiny_vlm):
    """Folder of three tiny score models (`a` and `b` have one vision tower, `c` another) and a calibration file."""
    import json

    import torch
    from helpers import picture
    from transformers import AutoProcessor

    from rs_rlhf import ScoreModel

    folder = tmp_path_factory.mktemp("several")
    processor = AutoProcessor.from_pretrained(tiny_vlm)
    for seed, name in enumerate("abc"):
        torch.manual_seed(seed)
        model = ScoreModel.from_pretrained(tiny_vlm, output_activation="identity")
        model.reward_head.weight.data.normal_().mul_(1 + seed)
        for weight in model.part("vision") if name == "c" else []:
            weight.data.add_(0.05 * torch.randn_like(weight))
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    rows = []
    for i in range(6):
        picture(100 + i).save(folder / f"{i}.png")
        rows.append(
            {"image": f"{i}.png", "captions": [f"a river {i} .", "two planes on a long runway ."][: 1 + i % 2]}
        )
    (folder / "calibration.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def policy_path(tiny_vlm, tmp_path_factory):
    """A tiny policy that has learnt to answer any question with one of a few words, any of them."""
    import torch
    from helpers import WORDS
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(tiny_vlm)
    processor = AutoProcessor.from_pretrained(tiny_vlm)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    torch.manual_seed(0)
    for _ in range(40):
        loss = 0
        for word in WORDS:
            asked = processor.tokenizer("<|im_start|>assistant\n")["input_ids"]
            said = processor.tokenizer(f"{word}<|im_end|>")["input_ids"]
            labels = torch.tensor([[-100] * len(asked) + said])
            loss = loss + model(input_ids=torch.tensor([asked + said]), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("policy")
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """Paths of a tiny CLIP and a tiny SigLIP."""
    from rs_rlhf.models.tiny_clip import save_tiny_clip

    folder = tmp_path_factory.mktemp("clip")
    options = {"image_size": 32, "max_length": 24}
    return {family: save_tiny_clip(folder / family, family=family, **options) for family in ("clip", "siglip")}


@pytest.fixture(scope="session")
def clip(clips):
    """The tiny CLIP, loaded."""
    from rs_rlhf.models.clip import ClipModel

    return ClipModel.from_pretrained(clips["clip"], device="cpu")


BROWSER_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
).split()


@pytest.fixture(scope="session")
def chromium():
    """A real chromium, driven by selenium; skips where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("no chromium and chromedriver on this machine (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*BROWSER_FLAGS, f"--user-data-dir={profile}", "--window-size=1200,1000"):
            options.add_argument(flag)
        made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        yield made
        made.quit()


@pytest.fixture
def browser(chromium):
    """The browser on an empty page: what an earlier test's page logged, or still loads, is no part of this one."""
    chromium.get("about:blank")
    for log in ("browser", "performance"):
        chromium.get_log(log)
    yield chromium
    chromium.get("about:blank")  # a page whose server is gone asks for it again and again
