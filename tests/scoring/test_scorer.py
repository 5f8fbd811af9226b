"""The scorer: order, batch size, images of every form, named models, and its errors."""

import shutil
import threading

import numpy as np
import pytest
import torch
from helpers import picture
from PIL import Image

from rs_rlhf import ImageOptions, ScoreModel, Scorer, make_group
from rs_rlhf.errors import DataError, DeclarationError, ImageError, ModelError, OptionError, RSRLHFError

TEXTS = [["a river.", "many trees.", "two planes on a runway."], ["a lake."], ["a port.", "a road beside a field."]]


@pytest.fixture(scope="module")
def scorer(score_model_path):
    return Scorer.from_pretrained(score_model_path, device="cpu")


def test_images_of_every_form_give_the_same_scores(scorer, tmp_path):
    picture(1).save(tmp_path / "a.png")
    forms = [str(tmp_path / "a.png"), tmp_path / "a.png", picture(1), np.asarray(picture(1)), [picture(1)]]
    scores = scorer.score(images=forms, completions=[TEXTS[0]] * len(forms))
    for row in scores[1:]:
        assert row == pytest.approx(scores[0], abs=1e-5)
    other = scorer.score(images=[picture(2)], completions=[TEXTS[0]])
    assert max(abs(a - b) for a, b in zip(other[0], scores[0], strict=True)) > 1e-3


def test_order_batch_size_and_company_do_not_matter(score_model_path, scorer):
    images = [picture(1, 112, 56), None, [picture(2), picture(3)]]
    prompts = ["What is it?", "", "Compare."]
    expected = scorer.score(images, prompts, TEXTS)
    assert [len(row) for row in expected] == [3, 1, 2]
    order = [2, 0, 1]
    shuffled = scorer.score([images[i] for i in order], [prompts[i] for i in order], [TEXTS[i] for i in order])
    small = Scorer.from_pretrained(score_model_path, device="cpu", token_budget=40)
    alone = small.score(images, prompts, TEXTS)  # every completion in a batch of its own
    for place, i in enumerate(order):
        assert shuffled[place] == pytest.approx(expected[i], abs=1e-4)
        assert alone[i] == pytest.approx(expected[i], abs=1e-4)


def test_rows_of_one_image_are_laid_out_as_one_group(scorer, tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(2)]
    for i, path in enumerate(paths):
        picture(i).save(path)
    texts = ["a river.", "two planes on a long runway.", "many trees.", "a lake beside a road.", "a port.", "a field."]
    seen = []
    hook = scorer.model.register_forward_pre_hook(lambda _, __, inputs: seen.append(inputs), with_kwargs=True)
    groups = [make_group("", [text], paths[i % 2], row=i) for i, text in enumerate(texts)]
    groups.append(make_group("What is it?", ["a bay."], paths[0], row=6))
    together = scorer.score_groups(groups)
    assert len(seen) == 1 and seen[0]["input_ids"].shape[0] == 3 and len(seen[0]["image_grid_thw"]) == 2
    assert seen[0]["segment_ids"].max() == 3
    hook.remove()
    for group, scores in zip(groups, together, strict=True):
        assert scores == pytest.approx(scorer.score_groups([group])[0], abs=1e-4)


def test_an_error_is_that_of_its_own_row_among_rows_of_one_image(scorer, tmp_path):
    picture(1).save(tmp_path / "a.png")
    texts = ["a river.", "a <|image_pad|> lake.", "many trees."]
    groups = [make_group("", [text], str(tmp_path / "a.png"), where=f"row {i}") for i, text in enumerate(texts)]
    with pytest.raises(DataError, match="row 1: 2 image tokens"):
        scorer.score_groups(groups)
    first, wrong, last = scorer.score_groups(groups, on_error="return")
    assert str(wrong).startswith("row 1: 2 image tokens")
    expected = scorer.score_groups([groups[0], groups[2]])
    assert [first, last] == [pytest.approx(one, abs=1e-4) for one in expected]
    missing = [make_group("", [text], str(tmp_path / "b.png"), where=f"row {i}") for i, text in enumerate("ab")]
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes()[:-30])  # its header is whole
    missing += [make_group("", [text], str(tmp_path / "c.png"), where=f"row {2 + i}") for i, text in enumerate("ab")]
    for i, error in enumerate(scorer.score_groups(missing, on_error="return")):
        assert isinstance(error, ValueError) and str(error).startswith(f"row {i}: ")


def test_a_plain_caption_is_an_answer_to_the_empty_question(scorer):
    plain = scorer.score(images=[picture(1)], completions=[["a river."]])
    messages = [{"role": "user", "content": [{"type": "image"}]}]
    spoken = [{"role": "assistant", "content": "a river."}]
    assert scorer.score([picture(1)], [messages], [[spoken]]) == plain


def test_user_turn_form_puts_the_caption_before_the_generation_prompt(score_model_path):
    scorer = Scorer.from_pretrained(score_model_path, device="cpu", prompt_form="user-turn")
    batch = scorer.collator([__import__("rs_rlhf").make_group("", ["a river.", "a lake."], picture(1))])
    segments = batch["segment_ids"][0]
    text = scorer.processor.tokenizer.decode(batch["input_ids"][0][segments == 1])
    assert text.endswith("river.<|im_end|>\n<|im_start|>assistant\n")
    answers = Scorer.from_pretrained(score_model_path, device="cpu")
    texts = [["a river.", "a lake."]]
    assert scorer.score([picture(1)], None, texts) != answers.score([picture(1)], None, texts)


def test_image_root_and_pixel_budget_are_kept(score_model_path, tmp_path):
    (tmp_path / "in").mkdir()
    picture(1, 200, 200).save(tmp_path / "in" / "a.png")
    picture(1).save(tmp_path / "out.png")
    options = ImageOptions(image_root=str(tmp_path / "in"))
    scorer = Scorer.from_pretrained(score_model_path, device="cpu", image_options=options, max_pixels=56 * 56)
    batch = scorer.collator([__import__("rs_rlhf").make_group("", ["a."], "a.png")])
    assert batch["image_grid_thw"].tolist() == [[1, 4, 4]]
    with pytest.raises(ImageError, match=r"row 0.*out\.png"):
        scorer.score(images=["../out.png"], completions=[["a."]])


def test_wrong_calls_are_explained(scorer, tmp_path):
    with pytest.raises(OptionError, match="images has 1 entries but completions has 2"):
        scorer.score(images=[None], completions=[["a"], ["b"]])
    with pytest.raises(OptionError, match="must be a list of lists"):
        scorer.score(completions=["a river."])
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(ImageError, match=r"row 1.*bad\.png|bad\.png.*row 1"):
        scorer.score(images=[picture(1), tmp_path / "bad.png"], completions=[["a"], ["b"]])
    with pytest.raises(DataError, match="image tokens in the text but 0 images"):
        scorer.score(completions=[["a <|image_pad|> river"]])


def test_a_model_that_is_no_score_model_is_refused(tiny_vlm):
    with pytest.raises(ModelError, match="is not a score model"):
        Scorer.from_pretrained(tiny_vlm)


def test_uses_the_models_dtype(score_model_path):
    scorer = Scorer.from_pretrained(score_model_path, device="cpu", dtype="bfloat16")
    assert scorer.model.dtype == torch.bfloat16
    exact = Scorer.from_pretrained(score_model_path, device="cpu")
    images = [Image.new("RGB", (56, 56), (30, 90, 30))]
    low, full = (s.score(images=images, completions=[TEXTS[0]])[0] for s in (scorer, exact))
    assert low == pytest.approx(full, abs=0.3) and isinstance(exact.model, ScoreModel)


def test_empty_question_form_is_for_captions_only(score_model_path, scorer):
    captions = Scorer.from_pretrained(score_model_path, device="cpu", prompt_form="empty-question")
    assert captions.score([picture(1)], None, [["a river."]]) == scorer.score([picture(1)], None, [["a river."]])
    with pytest.raises(DataError, match="row 0: the prompt form is empty-question"):
        captions.score([picture(1)], ["What is it?"], [["a river."]])


def test_a_model_that_a_device_map_placed_is_left_there(score_model_path, monkeypatch):
    monkeypatch.setattr(ScoreModel, "to", lambda *_: pytest.fail("moved"))
    scorer = Scorer.from_pretrained(score_model_path, device_map="cpu")
    assert len(scorer.score(images=[picture(1)], completions=[TEXTS[0]])[0]) == 3
    with pytest.raises(OptionError, match="device and device_map cannot both be given"):
        Scorer.from_pretrained(score_model_path, device_map="auto", device="cpu")


def test_a_model_that_is_not_there_is_one_sentence(tmp_path, monkeypatch, score_model_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DeclarationError, match="^out/score-modle is neither a folder here nor could .* the hub: .+$"):
        Scorer.from_pretrained("out/score-modle")
    (tmp_path / "mine.yaml").write_text("model: out/mine/reward\nlicence: MIT\nrecipe: mine\n")
    with pytest.raises(DeclarationError, match="no folder out/mine/reward .* run the recipe mine"):
        Scorer.from_pretrained("mine.yaml")
    shutil.copytree(score_model_path, tmp_path / "half")
    (tmp_path / "half" / "model.safetensors").unlink()
    with pytest.raises(DeclarationError, match="^the folder half cannot be loaded: .+$"):
        Scorer.from_pretrained("half")


def mixed_groups(tmp_path):
    """Twelve groups with an image of their own; the 4th is no image, the 7th is cut short, the 10th has a bad text."""
    groups = []
    for i in range(12):
        path = tmp_path / f"{i}.png"
        picture(i, 84 + 28 * (i % 3)).save(path)
        texts = ["a river.", "a <|image_pad|> river." if i == 9 else "two planes beside a runway."]
        groups.append(make_group("What is it?" * (i % 2), texts, str(path), where=f"row {i}"))
    (tmp_path / "3.png").write_bytes(b"not a picture")
    (tmp_path / "6.png").write_bytes((tmp_path / "6.png").read_bytes()[:100])
    return groups


@pytest.mark.parametrize("budget", [4096, 200, 60])
def test_threads_change_neither_scores_nor_errors(score_model_path, tmp_path, budget):
    groups = mixed_groups(tmp_path)
    plain = Scorer.from_pretrained(score_model_path, device="cpu", token_budget=budget)
    ahead = Scorer.from_pretrained(score_model_path, device="cpu", token_budget=budget, num_workers=3)
    expected, scores = (one.score_groups(groups, on_error="return") for one in (plain, ahead))
    assert [i for i, one in enumerate(expected) if isinstance(one, Exception)] == [3, 6, 9]
    for i, (one, other) in enumerate(zip(expected, scores, strict=True)):
        if i in (3, 6, 9):
            assert str(one) == str(other) and f"row {i}: " in str(one)
        else:
            assert one == other and one == pytest.approx(plain.score_groups([groups[i]])[0], abs=1e-4)
    messages = []
    for scorer in (plain, ahead):
        with pytest.raises(RSRLHFError, match="row ") as error:
            scorer.score_groups(groups[4:])
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def collating():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_threads_end_when_the_scoring_is_stopped(score_model_path, stop):
    scorer = Scorer.from_pretrained(score_model_path, device="cpu", token_budget=40, num_workers=2)
    groups = [make_group("", ["a river."], picture(i)) for i in range(10)]
    seen = []

    def at_the_third(*_):
        seen.append(len(collating()))
        if len(seen) == 3:
            raise stop

    hook = scorer.model.register_forward_pre_hook(at_the_third)
    with pytest.raises(stop) as caught:
        scorer.score_groups(groups)
    assert seen[0] > 0 and not collating() and caught.value is not None
    hook.remove()
    assert len(scorer.score_groups(groups)) == 10 and not collating()


def test_threads_share_a_tokenizer_that_was_saved_with_padding_and_truncation(score_model_path):
    groups = [make_group("", [f"a river with {i} boats."], picture(i)) for i in range(16)]
    expected = Scorer.from_pretrained(score_model_path, device="cpu", token_budget=40).score_groups(groups)
    for _ in range(3):
        scorer = Scorer.from_pretrained(score_model_path, device="cpu", token_budget=40, num_workers=8)
        scorer.processor.tokenizer.backend_tokenizer.enable_padding(length=300)
        scorer.processor.tokenizer.backend_tokenizer.enable_truncation(5)
        assert scorer.score_groups(groups) == expected
    with pytest.raises(OptionError, match="num_workers is -1; it must be at least 0"):
        Scorer(scorer.model, scorer.processor, num_workers=-1)
