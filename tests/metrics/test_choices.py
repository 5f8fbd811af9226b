"""Which text or choice is meant."""

import pytest

from rs_rlhf.metrics.choices import bare, labelled, own_words, read_choice, read_text

TEXTS = ["rural", "urban", "a river", "river bank"]


@pytest.mark.parametrize(
    ("piece", "place"),
    [
        ("B", 1),
        ("b)", 1),
        ("B) urban", 1),
        ("B) rural", None),
        ("an urban area", 1),
        ("urban, not rural", 1),
        ("urban, rural", None),
        ("B. There are roofs", 1),
        ("B. It looks quite rural", None),
        ("river bank", 3),
        ("the river", 2),
        ("river and bank", None),
        ("B is the right answer", 1),
        ("urban because the river has banks", 1),
        ("B because it is rural", None),
    ],
)
def test_read_choice(piece, place):
    assert read_choice(piece, "ABCD", TEXTS) == place


def test_letters_are_those_of_the_choices():
    assert labelled(["B. rural", "A. urban"]) == ("BA", ["rural", "urban"])
    assert labelled(["N. America", "S. America"]) == ("AB", ["N. America", "S. America"])
    assert labelled(["rural", "urban"]) == ("AB", ["rural", "urban"])
    assert labelled(["c", "d"]) == ("CD", ["c", "d"])
    assert labelled([str(i) for i in range(27)])[0] == ""


def test_texts():
    assert bare("This is an urban area.") == "urban" and bare("area") == "area"
    assert read_text("urban, not rural") == "urban" and read_text("urban, rural") is None
    assert read_text("urban or rural") is None and read_text("not urban") is None
    assert read_text("urban with few houses") == "urban"
    assert own_words("Maybe.", ["yes", "maybe"]) == 1 and own_words("may", ["maybe"]) is None
