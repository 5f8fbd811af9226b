"""Caption measures: by hand, and against the numbers of nltk and rouge-score."""

import shutil
import sys

import pytest

from rs_rlhf.metrics.captions import caption_figures, simple_tokens

OUTPUTS = ["a small port with many white ships", "dense houses beside a green park and a road"]
REFERENCES = [
    ["a port with some white ships", "many ships lie in a small port near the sea"],
    ["many dense houses are beside a park", "dense houses and a road beside a green park"],
]
needs_library = pytest.mark.skipif(
    not __import__("importlib.util").util.find_spec("pycocoevalcap"), reason="pycocoevalcap is not installed"
)
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="METEOR and the PTB tokenizer need java")


@pytest.fixture
def no_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


@needs_library
def test_bleu_by_hand(no_java):
    # of a, b, c, d against a, b, c, e: 3 of 4 words, 2 of 3 pairs, 1 of 2 triples, no quadruple
    figures = caption_figures(["tree road car dock"], [["tree road car ship"]])
    assert figures["BLEU-1"] == pytest.approx(3 / 4)
    assert figures["BLEU-2"] == pytest.approx((3 / 4 * 2 / 3) ** (1 / 2))
    assert figures["BLEU-3"] == pytest.approx((3 / 4 * 2 / 3 * 1 / 2) ** (1 / 3))
    assert figures["BLEU-4"] < 1e-3
    short = caption_figures(["tree road"], [["tree road car dock"]])
    assert short["BLEU-1"] == pytest.approx(2.718281828 ** (1 - 4 / 2))  # the penalty for half the length


@needs_library
def test_against_other_implementations(no_java):
    figures = caption_figures(OUTPUTS, REFERENCES)
    # nltk 3.9's corpus_bleu; rouge-score's best precision and recall of each image, with beta 1.2
    expected = [1.0, 0.8451542547285166, 0.6197980942410934, 0.39281465090051304]
    assert [figures[f"BLEU-{n}"] for n in range(1, 5)] == pytest.approx(expected)
    assert figures["ROUGE-L"] == pytest.approx((0.7800511508951408 + 0.6939704209328782) / 2)
    assert 0 < figures["CIDEr"] < 10
    assert figures["METEOR"] is None and figures["left_out"] == {"METEOR": "needs java on the PATH"}
    assert figures["tokenizer"] == "simple"


@needs_library
def test_the_references_themselves_are_best(no_java):
    own = [references[0] for references in REFERENCES]
    figures = caption_figures(own, [[one] for one in own])
    assert [figures[name] for name in ("BLEU-4", "ROUGE-L", "CIDEr")] == pytest.approx([1.0, 1.0, 10.0])
    swapped = caption_figures(own[::-1], [[one] for one in own])
    assert swapped["CIDEr"] < 0.5 and swapped["BLEU-4"] < 0.01


@needs_library
def test_empty_captions_score_nothing_and_line_breaks_are_spaces(no_java):
    silent = caption_figures(["", "..."], REFERENCES)
    assert [silent[name] for name in ("BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr")] == [0, 0, 0, 0]
    half, full = caption_figures([OUTPUTS[0], ""], REFERENCES), caption_figures(OUTPUTS, REFERENCES)
    assert 0 < half["ROUGE-L"] < full["ROUGE-L"] and 0 < half["BLEU-1"] < full["BLEU-1"]
    broken = [f"\n{one.replace(' ', chr(0x2028), 1).replace(' ', ' ||| ', 1)}\n" for one in OUTPUTS]
    assert caption_figures(broken, REFERENCES) == full


@needs_library
@needs_java
def test_ptb_tokens_keep_their_places():
    from rs_rlhf.metrics.captions import _one_line, _ptb_tokens

    captions = [["A well-kept port's piers, at 3.5 km."], [""], ["two\u2028lines\x0bhere", "..."], ["(ships)"]]
    tokens = _ptb_tokens([[_one_line(one) for one in own] for own in captions])
    assert tokens == {
        0: ["a well-kept port 's piers at 3.5 km"],
        1: [""],
        2: ["two lines here", ""],
        3: ["-lrb- ships -rrb-"],
    }
    assert " ".join(simple_tokens(captions[0][0])) == tokens[0][0]


@pytest.mark.slow
@needs_library
@needs_java
def test_meteor():
    references = [["a port with ships"], ["a big city"]]
    figures = caption_figures(["a port with boats", ""], references)
    # one segment alone has 0.85: boat and ship are synonyms; the empty one lowers the sums of counts
    assert figures["METEOR"] == pytest.approx(0.48745, abs=1e-4)
    assert figures["tokenizer"] == "PTB" and figures["left_out"] == {}
    assert caption_figures(["", "\n"], references)["METEOR"] == 0.0


def test_simple_tokens():
    assert simple_tokens("The Ships’ (white) decks — 1,000 m; it's \n BIG!") == [
        "the",
        "ships",
        "white",
        "decks",
        "1,000",
        "m",
        "it",
        "'s",
        "big",
    ]
    assert simple_tokens(" ... ") == []


@needs_library
def test_what_cannot_be_measured_is_refused(no_java):
    with pytest.raises(ValueError, match="1 captions and references of 2 images"):
        caption_figures(["a port"], REFERENCES)
    with pytest.raises(ValueError, match="0 captions"):
        caption_figures([], [])
    with pytest.raises(ValueError, match="caption 1 has the references 'a port', expected a list"):
        caption_figures(OUTPUTS, [["a port"], "a port"])
    with pytest.raises(ValueError, match="caption 0 has the references .* hold no word"):
        caption_figures(OUTPUTS, [["", "..."], ["a port"]])


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    monkeypatch.setitem(sys.modules, "pycocoevalcap.bleu.bleu", None)
    with pytest.raises(ValueError, match=r'pip install "rs-rlhf\[captions\]"'):
        caption_figures(OUTPUTS, REFERENCES)
