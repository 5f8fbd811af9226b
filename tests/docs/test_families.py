"""The table of `docs/families.md` is what `models/families.py` says, which the tests of families hold."""

from helpers import ROOT

from rs_rlhf.models.families import KNOWN

HEAD = ["| family | `model_type` | scores | tree form | images once | pixel budget | policy | notes |"]
HEAD += ["|---|---|---|---|---|---|---|---|"]


def table():
    rows = []
    for kind, family in KNOWN.items():
        once = "image" if family.pixels else "list of a row"
        cells = [family.title, f"`{kind}`", "yes", "yes" if family.tree else "never", once]
        rows.append("| " + " | ".join([*cells, "yes" if family.pixels else "refused", "yes", family.note]) + " |")
    return [*HEAD, *rows]


def test_the_table_is_true():
    lines = (ROOT / "docs" / "families.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("|")] == [line.replace("|  |", "| |") for line in table()]
