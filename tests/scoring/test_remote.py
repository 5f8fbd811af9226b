"""The remote scorer against real servers: scores as in process, errors as in process, and servers that come and go."""

import base64
import os
import pickle
import shutil
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from helpers import picture
from helpers.serving import Served
from PIL import Image
from transformers import AutoProcessor

from rs_rlhf import ImageOptions, ScoreModel, Scorer, make_group
from rs_rlhf.errors import DataError, ImageError, ModelMismatch, OptionError, ScorerUnavailable
from rs_rlhf.imagery.raster import read_image
from rs_rlhf.scoring.cards import model_hash
from rs_rlhf.scoring.load import load_scorer
from rs_rlhf.scoring.remote import RemoteScorer

TEXTS = ["a river.", "many trees beside a road.", "two planes on a runway."]
DEAD = "http://127.0.0.1:9"  # nobody listens on the discard port
BANDS = {"bands": (4, 3, 2), "stretch": "percentile"}


@pytest.fixture(scope="module")
def server(score_model_path):
    with Served(score_model_path) as served:
        yield served
        assert "Traceback" not in "".join(served.errors)


@pytest.fixture(scope="module")
def scorer(score_model_path):
    return Scorer.from_pretrained(score_model_path, device="cpu")


@pytest.fixture
def remote(server):
    return RemoteScorer(server.url, retries=1, backoff=0.05)


def same(one, other, within=1e-5):
    assert len(one) == len(other)
    for row, expected in zip(one, other, strict=True):
        assert row == pytest.approx(expected, abs=within)


def geotiff(path, bands: int, dtype: str) -> str:
    rasterio = pytest.importorskip("rasterio")
    values = np.random.default_rng(0).integers(0, 250 if dtype == "uint8" else 4000, (bands, 90, 120)).astype(dtype)
    shape = {"width": 120, "height": 90, "count": bands, "dtype": dtype}
    with rasterio.open(path, "w", driver="GTiff", **shape) as file:
        file.write(values)
    return str(path)


def test_several_models_are_combined_by_the_server(score_models, tmp_path):
    names = ",".join(str(score_models / name) for name in "abc")
    file = str(score_models / "calibration.jsonl")
    groups = [make_group("Which?", TEXTS, picture(1, 200, 150)), make_group("", TEXTS[:1])]
    with Served(names, "--score_combine", "mean-std", "--score_calibration", file) as served:
        remote = RemoteScorer(served.url, retries=1, backoff=0.05)
        scores = remote.score_groups(groups)
        card = remote.model()
        wrong = make_group("", ["a <|image_pad|> lake."], where="row 7")
        broken, good = remote.score_groups([wrong, groups[1]], on_error="return")
        plain = httpx.post(f"{served.url}/v1/score", json={"groups": [{"completions": TEXTS}]}).json()
        pair = {"problem_description": "", "completion1": TEXTS[0], "completion2": TEXTS[1]}
        rewards = httpx.post(f"{served.url}/v1/rewards", json=pair).json()["scores"]
    local = load_scorer(names, score_combine="mean-std", score_calibration=file, device="cpu")
    expected = local.score_groups(groups)
    same(scores, expected, 1e-4)
    same([[one.std for one in row] for row in scores], [[one.std for one in row] for row in expected], 1e-4)
    assert isinstance(broken, DataError) and good == pytest.approx(scores[1], abs=1e-4)
    assert [(one["mean"], one["std"]) for one in card["models"]] == [(s.mean, s.std) for s in local.standards]
    assert card["hash"] == local.card()["hash"] and card["score_combine"] == "mean-std"
    expected = local.score(None, None, [TEXTS])
    same(plain["scores"], expected, 1e-4)  # what a client reads that knows the scores alone
    same(plain["std"], [[one.std for one in row] for row in expected], 1e-4)
    assert [one["score"] for one in rewards] == pytest.approx(plain["scores"][0][:2], abs=1e-4)
    other = load_scorer(names, score_combine="min", score_calibration=file, device="cpu")
    assert other.card()["hash"] != card["hash"]
    with pytest.raises(OptionError) as error:
        load_scorer(served.url, score_calibration=file)
    assert error.value.key == "score_calibration"


def test_models_of_other_pixel_budgets_get_the_image_as_it_is(score_models, tmp_path):
    shutil.copytree(score_models / "b", tmp_path / "b")
    processor = AutoProcessor.from_pretrained(tmp_path / "b")
    processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": 5 * 28 * 28}
    processor.save_pretrained(tmp_path / "b")
    names, file = f"{score_models / 'a'},{tmp_path / 'b'}", str(score_models / "calibration.jsonl")
    groups = [make_group("Which?", TEXTS, picture(1, 200, 150))]
    with Served(names, "--score_calibration", file) as served:
        remote = RemoteScorer(served.url, retries=1, backoff=0.05)
        scores = remote.score_groups(groups)
        assert (remote.model()["pixel_budget"], remote.model()["image_tokens"]) == (None, 12)
    same(scores, load_scorer(names, score_calibration=file, device="cpu").score_groups(groups), 1e-4)


def test_all_forms_score_as_in_process(remote, scorer, tmp_path):
    picture(1, 200, 150).save(tmp_path / "a.png")
    picture(2, 200, 150).save(tmp_path / "b.jpg", quality=80)
    picture(3).save(tmp_path / "c.bmp")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Which?"}, {"type": "image"}, {"type": "image"}]},
    ]
    images = [
        str(tmp_path / "a.png"),
        tmp_path / "b.jpg",
        (tmp_path / "b.jpg").read_bytes(),
        {"bytes": (tmp_path / "a.png").read_bytes(), "path": "a.png"},
        str(tmp_path / "c.bmp"),
        geotiff(tmp_path / "d.tif", 3, "uint8"),
        picture(4, 300, 100),
        np.asarray(picture(5)),
        [picture(6), tmp_path / "a.png"],
        None,
        Image.new("RGBA", (60, 60), (200, 10, 10, 90)),
    ]
    prompts = ["", "What is it?", None, "", "", "", "", "Rural or urban?", messages, "Why?", ""]
    completions = [TEXTS[: 1 + i % 3] for i in range(len(images))]
    completions[8] = [[{"role": "assistant", "content": text}] for text in TEXTS]
    same(remote.score(images, prompts, completions), scorer.score(images, prompts, completions))
    assert remote.score() == remote.score(completions=[]) == [] and remote.score(completions=[[]]) == [[]]


def test_the_clients_image_options_hold(remote, score_model_path, tmp_path):
    options = ImageOptions(image_root=str(tmp_path), **BANDS)
    geotiff(tmp_path / "e.tif", 4, "uint16")
    local = Scorer.from_pretrained(score_model_path, device="cpu", image_options=options)
    remote.image_options = options
    same(remote.score(["e.tif"], None, [TEXTS]), local.score(["e.tif"], None, [TEXTS]))
    with pytest.raises(ImageError, match="row 0: .*leaves image_root"):
        remote.score(["../e.tif"], None, [TEXTS])


def test_the_servers_image_options_are_applied_once(score_model_path, tmp_path):
    path = geotiff(tmp_path / "e.tif", 4, "uint16")
    local = Scorer.from_pretrained(score_model_path, device="cpu", image_options=ImageOptions(**BANDS))
    expected = local.score([path], None, [TEXTS])
    with Served(score_model_path, "--bands", "4", "3", "2", "--stretch", "percentile") as served:
        (far,) = RemoteScorer(served.url).score([path], None, [TEXTS])
        image = {"base64": base64.b64encode(Path(path).read_bytes()).decode()}
        request = {"groups": [{"completions": TEXTS, "images": [image]}]}
        (sent,) = httpx.post(f"{served.url}/v1/score", json=request).json()["scores"]
    assert far == pytest.approx(expected[0], abs=1e-5)
    assert sent == pytest.approx(expected[0], abs=1e-5)


@pytest.mark.parametrize("side", ["client", "server"])
def test_each_image_of_a_group_is_read_by_its_sensor(score_model_path, tmp_path, side):
    optical, radar = geotiff(tmp_path / "s2.tif", 4, "uint16"), geotiff(tmp_path / "s1.tif", 2, "uint16")
    file = tmp_path / "options.yaml"
    file.write_text(
        "s2: {path: s2.*, bands: [4, 3, 2], stretch: percentile}\ns1: {path: s1.*, bands: [2], stretch: percentile}"
    )
    local = Scorer.from_pretrained(score_model_path, device="cpu", image_options=ImageOptions(sensors=file))
    read = [ImageOptions(**BANDS), ImageOptions(bands=(2,), stretch="percentile")]
    pictures = [read_image(*pair) for pair in zip((optical, radar), read, strict=True)]
    groups = [make_group("Compare.", TEXTS, [optical, radar])]
    (expected,) = Scorer.from_pretrained(score_model_path, device="cpu").score_groups(
        [make_group("Compare.", TEXTS, pictures)]
    )
    assert local.score_groups(groups)[0] == pytest.approx(expected, abs=1e-6)
    flags, options = (["--image_options", str(file)], None) if side == "server" else ([], ImageOptions(sensors=file))
    with Served(score_model_path, *flags, "--image_root", str(tmp_path)) as served:
        (far,) = RemoteScorer(served.url, image_options=options).score_groups(groups)
        assert far == pytest.approx(expected, abs=1e-5)
        if side == "server":
            sent = {"prompt": "Compare.", "completions": TEXTS, "images": [{"path": "s2.tif"}, {"path": "s1.tif"}]}
            (told,) = httpx.post(f"{served.url}/v1/score", json={"groups": [sent]}).json()["scores"]
            assert told == pytest.approx(expected, abs=1e-5)


def test_the_hash_is_the_models_wherever_it_lies(remote, score_model_path, tmp_path):
    shutil.copytree(score_model_path, tmp_path / "copy")
    copy = Scorer.from_pretrained(tmp_path / "copy", device="cpu")
    assert model_hash(copy) == remote.model()["hash"]
    sensors = {"image_options": ImageOptions(sensors={"s1": {"path": "s1/*", "bands": [1]}})}
    for change in ({"prompt_form": "user-turn"}, {"max_pixels": 56 * 56}, {"positions": "sequential"}, sensors):
        assert model_hash(Scorer.from_pretrained(tmp_path / "copy", device="cpu", **change)) != model_hash(copy)


def test_errors_are_those_of_the_scorer(remote, scorer, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    picture(1).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:100])
    sources = [picture(1), tmp_path / "bad.png", tmp_path / "cut.png", tmp_path / "none.png", None, picture(2)]
    texts = [["a"], ["b"], ["c"], ["d"], ["<|image_pad|>"], ["f", "g"]]
    groups = [make_group("", texts[i], sources[i], row=i, where=f"row {i}") for i in range(6)]
    far = remote.score_groups(groups, on_error="return")
    near = scorer.score_groups(groups, on_error="return")
    for i, kind in enumerate([list, ImageError, ImageError, ImageError, DataError, list]):
        assert type(far[i]) is type(near[i]) is kind
        if kind is not list:
            assert str(far[i]).startswith(f"row {i}: ")
    same([far[0], far[5]], [near[0], near[5]])
    with pytest.raises(ImageError, match=r"row 1: .*bad\.png"):
        remote.score_groups(groups)
    with pytest.raises(DataError, match="row 4: 1 image tokens in the text but 0 images"):
        remote.score_groups(groups[4:])
    with pytest.raises(OptionError, match="images has 1 entries but completions has 2"):
        remote.score([None], None, [["a"], ["b"]])


def test_large_jobs_go_in_requests_of_the_servers_size(remote, scorer):
    shared = picture(1)
    groups = [make_group("", [f"text {i}"], shared) for i in range(150)] + [make_group("", ["a b"] * 70, shared)]
    chunks = list(remote._chunks(groups, [[]] * len(groups), "raise"))
    assert [len(chunk.groups) for chunk in chunks] == [64, 64, 24] and {len(chunk.images) for chunk in chunks} == {1}
    same(remote.score_groups(groups), scorer.score_groups(groups), 1e-4)


def test_a_copy_in_another_process_scores_too(remote, scorer):
    expected = scorer.score(completions=[TEXTS])
    same(remote.score(completions=[TEXTS]), expected)
    copy = pickle.loads(pickle.dumps(remote))
    same(copy.score(completions=[TEXTS]), expected)
    assert copy.model_hash == remote.model_hash
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # the open connection must be left alone
        os.write(writer, str(remote.score(completions=[TEXTS])[0][0]).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert float(os.read(reader, 100)) == pytest.approx(expected[0][0], abs=1e-5)
    same(remote.score(completions=[TEXTS]), expected)


def test_a_dead_server_is_passed_over_and_none_is_an_error(server, scorer):
    several = RemoteScorer(f"{DEAD}, {server.url}/", retries=0)
    for _ in range(4):
        same(several.score(completions=[TEXTS]), scorer.score(completions=[TEXTS]))
    nobody = RemoteScorer([DEAD], retries=1, backoff=0.01)
    with pytest.raises(ScorerUnavailable, match=r"no reward server answered in 2 tries; the last: http.*Connect"):
        nobody.score(completions=[TEXTS])
    failed, empty = nobody.score_groups([make_group("", ["a"]), make_group("", [])], on_error="return")
    assert isinstance(failed, ScorerUnavailable) and empty == []
    for wrong in ("", "localhost:8000", []):
        with pytest.raises(OptionError, match="expected one or more addresses"):
            RemoteScorer(wrong)


def test_servers_are_waited_for_by_time_and_given_up_by_all_at_once():
    remote = RemoteScorer([DEAD], wait=0.6, backoff=0.05)
    groups = [make_group("", ["a"] * 64, where=f"row {i}") for i in range(200)]  # four requests
    for on_error in ("raise", "return"):  # it is no group's error
        start = time.monotonic()
        with pytest.raises(
            ScorerUnavailable, match=r"no reward server answered for 0\.6 seconds; the last: http.*Connect"
        ):
            remote.score_groups(groups, on_error=on_error)
        assert 0.6 <= time.monotonic() - start < 5
    remote.model_hash, remote._card = "x", {"limits": {"completions": 64, "groups": 64, "bytes": 2**20}}
    remote._card |= {"hash": "x", "image_options": {}, "pixel_budget": {"max_pixels": 784, "factor": 28}}
    start = time.monotonic()
    with pytest.raises(ScorerUnavailable):
        remote.score_groups(groups, on_error="return")
    assert time.monotonic() - start < 1.5  # together, not one after the other


def test_requests_stay_within_the_servers_tokens(score_model_path, scorer):
    texts = [f"a river {i} " * 200 for i in range(12)]  # about 800 tokens each
    groups = [make_group("", [text]) for text in texts]
    with Served(score_model_path, "--max_tokens", "2000") as served:
        far = RemoteScorer(served.url).score_groups(groups)
        same(far, scorer.score_groups(groups), 1e-4)
        (refused,) = RemoteScorer(served.url).score_groups([make_group("", texts)], on_error="return")
        assert isinstance(refused, DataError) and "at most 2000" in str(refused)


def test_a_restart_is_waited_for_and_another_model_refused(score_model_path, scorer, tmp_path):
    from transformers import AutoProcessor

    expected = scorer.score([picture(1), None], None, [TEXTS, TEXTS[:1]])
    first = Served(score_model_path, token="sesame")
    with pytest.raises(ScorerUnavailable, match="answered 401: the bearer token"):
        RemoteScorer(first.url, token="wrong").score(completions=[TEXTS])
    with pytest.raises(ModelMismatch, match="expected 0000"):
        RemoteScorer(first.url, token="sesame", expected_hash="0" * 64).score(completions=[TEXTS])
    remote = RemoteScorer(first.url, token="sesame", wait=120, backoff=0.2)
    answers, under_way = [], threading.Event()

    def run() -> None:
        for turn in range(100):
            answers.append(remote.score([picture(1), None], None, [TEXTS, TEXTS[:1]]))
            if turn == 20:
                under_way.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert under_way.wait(60)
    first.kill()
    with Served(score_model_path, port=first.port, token="sesame"):
        thread.join(90)
        assert len(answers) == 100  # none was lost
    for answer in answers:
        same(answer, expected)

    torch.manual_seed(1)
    other = ScoreModel.from_pretrained(score_model_path)
    other.reward_head.weight.data.normal_()
    other.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(score_model_path).save_pretrained(tmp_path)
    with Served(tmp_path, port=first.port, token="sesame"):
        with pytest.raises(ModelMismatch, match="Scores of two models must not be mixed"):
            remote.score_groups([make_group("", TEXTS)], on_error="return")
