"""Tables for files and terminals."""

import io
import sys

from rs_rlhf.runs.tables import markdown_table, markdown_text, print_markdown

ROWS = [["a [b]", 1], ["c", 22]]


def test_markdown():
    assert markdown_table(["x", "n"], ROWS) == "| x | n |\n|---|---:|\n| a [b] | 1 |\n| c | 22 |"
    assert markdown_table(["x", "n"], [], "rl") == "| x | n |\n|---:|---|"
    assert markdown_text("a | *b*\n<c> `[d]`\\") == r"a \| \*b\* \<c\> \`\[d\]\`\\"


def test_a_terminal_is_drawn_a_table_and_a_pipe_gets_markdown(capsys, monkeypatch):
    print_markdown(markdown_table(["x", "n"], ROWS))
    assert capsys.readouterr().out == markdown_table(["x", "n"], ROWS) + "\n"

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    print_markdown(markdown_table(["x", "n"], ROWS))
    drawn = sys.stdout.getvalue()
    assert "|---" not in drawn and "a [b]" in drawn and "22" in drawn
