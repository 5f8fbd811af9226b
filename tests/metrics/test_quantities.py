"""Numbers in words: normal forms, bounds, units and buckets, worked out by hand."""

from fractions import Fraction
from math import inf

import pytest

from rs_rlhf.errors import OptionError
from rs_rlhf.metrics.quantities import Quantity, bucket, only_quantity, plain, quantities, same_quantity


@pytest.mark.parametrize(
    ("number", "low"),
    [
        (0, "0"),
        (1, "between 0 and 10"),
        (10, "between 0 and 10"),
        (11, "between 10 and 100"),
        (100, "between 10 and 100"),
        (101, "between 100 and 1000"),
        (1000, "between 100 and 1000"),
        (1001, "more than 1000"),
        (-3, None),
    ],
)
def test_bucket_edges(number, low):
    assert bucket(str(number), "rsvqa_lr") == low
    high = low and " ".join(f"{word}m2" if word.isdigit() else word for word in low.split())
    assert bucket(f"{number}m2", "rsvqa_hr") == high
    assert bucket(str(number), "rsvqa_hr") is None and bucket(f"{number}m2", "rsvqa_lr") is None
    if low is not None:
        assert bucket(low, "rsvqa_lr") == low and bucket(high, "rsvqa_hr") == high


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("ninety-nine", "99"),
        ("nineteen thousand two hundred", "19200"),
        ("3 thousand", "3000"),
        ("one two", "1 2"),
        ("zero five", "0 5"),
        ("twenty twenty", "20 20"),
        ("salt and pepper", "salt and pepper"),
        ("007", "7"),
        (".50", "0.5"),
        ("a", "a"),
        ("the", "the"),
        ("A car's roof", "cars roof"),
        ("5 sq. m", "5m2"),
        ("5 hectares", "5ha"),
        ("1,5", "1 5"),
        ("2 million", "2000000"),
        ("1.5 million", "1500000"),
        ("two dozen", "24"),
        ("half a dozen", "6"),
        ("3k", "3000"),
        ("1e3", "1000"),
        ("10^3", "1000"),
        ("10 000", "10000"),
        ("minus three", "-3"),
        ("1/2", "1/2"),
        (">= 3", "at least 3"),
        ("3+", "3 or more"),
        ("3-5", "3 to 5"),
        ("5 ft^2", "5ft2"),
        ("10 per cent", "10percent"),
        ("", ""),
    ],
)
def test_plain(text, form):
    assert plain(text) == form


@pytest.mark.parametrize(
    ("text", "low", "high", "unit", "is_open"),
    [
        ("3", 3, 3, "", False),
        ("1/2", Fraction(1, 2), Fraction(1, 2), "", False),
        ("3 or more", 3, inf, "", False),
        ("more than 3", 3, inf, "", True),
        ("no fewer than 3 m", 3, inf, "m", False),
        ("up to 3", -inf, 3, "", False),
        ("under 3 km2", -inf, 3, "km2", True),
        ("between 3 and 5 ha", 3, 5, "ha", False),
        ("3 – 5", 3, 5, "", False),
    ],
)
def test_quantities(text, low, high, unit, is_open):
    assert only_quantity(text) == Quantity(low, high, unit, is_open) and quantities(text) == [only_quantity(text)]


def test_what_is_no_plain_amount():
    assert quantities("about 3") == quantities("5 to 3") == quantities("step 3") == quantities("3 or so") == [None]
    assert quantities("third") == quantities("3rd") == [] and only_quantity("3 ships") is None


def test_units_are_converted():
    def same(said, reference):
        return same_quantity(only_quantity(said), only_quantity(reference))

    assert same("1 ha", "10000m2") and same("0.1 km2", "100000 m2") and same("1.5 km", "1500 m") and same("2", "2 ha")
    assert same("2 acres", "2 ha") is False and same("3 m", "3") is None and same("3 m", "3 m2") is None
    assert same("3 or more", "3") is None and same("at least 3", "3+") is True and same("3", "3+") is False
    assert str(only_quantity("1 ha")) == "10000m2" and str(only_quantity("over 1 km")) == "more than 1000m"


def test_an_unknown_scheme_is_refused():
    with pytest.raises(OptionError):
        bucket("12", "lr")
