"""Choices that a text lists by letters: initials, abbreviations, separators, and answers in any case."""

import pytest

from rs_rlhf.evaluation.lettered import letter_of, lettered, listed_choices

LISTED = [
    ("A. N. America B. S. America C. Europe D. Asia.", ["N. America", "S. America", "Europe", "Asia"]),
    ("A. N. America B. C. America C. D. Smith D. E. Asia", ["N. America", "C. America", "D. Smith", "E. Asia"]),
    ("A. B. Smith B. A. Jones", ["B. Smith", "A. Jones"]),
    ("A. Washington D.C. B. New York C. U.S.A. D. L.A.", ["Washington D.C.", "New York", "U.S.A.", "L.A."]),
    ("A. 1.5 km; B. 2.5 km; C. approx. 3 km", ["1.5 km", "2.5 km", "approx. 3 km"]),
    ("A. Vitamin C.; B. Vitamin D.; C. none", ["Vitamin C.", "Vitamin D.", "none"]),
    ("A. one; B. two, or three.", ["one", "two, or three"]),
    ("A. one. B. two. C. three.", ["one", "two", "three"]),
    ("A. Yes, B. No", ["Yes", "No"]),
    ("A. a, b B. c, d", ["a, b", "c, d"]),
    ("A. one\nB. St. Louis\n C. No. 5", ["one", "St. Louis", "No. 5"]),
    ("(A) N. America (B) S. America", ["N. America", "S. America"]),
    ("A) port B) farm", ["port", "farm"]),
    ("a. a port b. a farm c. E. Asia", ["a port", "a farm", "E. Asia"]),
    ("a) port; b) farm", ["port", "farm"]),
    ("no choices here", []),
    ("B. one A. two", []),
    ("A. one", []),
]


@pytest.mark.parametrize(("text", "choices"), LISTED, ids=[text for text, _ in LISTED])
def test_choices_of_a_text(text, choices):
    assert lettered(text) == choices
    asked = "Where is it?\n" + "\n".join(f"{chr(65 + i)}. {choice}" for i, choice in enumerate(choices))
    assert lettered(asked, by_line=True) == choices


def test_items_of_a_list_lose_letters_that_all_of_them_have():
    assert listed_choices(["N. America", "S. America"]) == ["N. America", "S. America"]
    assert listed_choices(["A. N. America", "B. S. America"]) == ["N. America", "S. America"]
    assert listed_choices(["A. port", "farm"]) == ["A. port", "farm"] and listed_choices([1, 2.5]) == ["1", "2.5"]


def test_the_letter_of_an_answer_in_any_case():
    choices = ["N. America", "Bare Land", "C. America"]
    for answer, letter in {"b": "B", "B.": "B", "(c)": "C", "bare land": "B", "N. AMERICA": "A", "A:": "A"}.items():
        assert letter_of(answer, choices) == letter
    assert [letter_of(answer, choices) for answer in ("D", "d.", "Asia", "bare", "")] == [None] * 5
    assert letter_of("x", []) is None and letter_of("same", ["same", "Same"]) is None
