"""Tables for files and terminals."""

import io
import sys

from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from rs_rlhf.runs.tables import markdown_table, markdown_text, print_markdown

ROWS = [["a [b]", 1], ["c", 22]]


def test_markdown():
    assert markdown_table(["x", "n"], ROWS) == "| x | n |\n|---|---:|\n| a [b] | 1 |\n| c | 22 |"
    assert markdown_table(["x", "n"], [], "rl") == "| x | n |\n|---:|---|"
    assert markdown_text("a | *b*\n<c> `[d]`\\") == r"a \| \*b\* \<c\> \`[d]\`\\"
    assert markdown_table(["x"], [["a|b\nc"]]) == "| x |\n|---|\n| a\\|b c |"
    assert markdown_text("rsvqa_lr [0.1, 0.2] a & b #3") == "rsvqa_lr [0.1, 0.2] a & b #3", "read as they are"


def read(text):
    """What Markdown with tables shows: the inline tokens' kinds and the text, by block."""
    blocks, block = {}, ""
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text):
        assert token.type not in ("html_block", "fence", "code_block")
        if token.type == "inline":
            kinds = {child.type for child in token.children} - {"text", "text_special"}
            assert not kinds, f"{token.content} is markup: {kinds}"
            blocks.setdefault(block, []).append("".join(child.content for child in token.children))
        block = token.type
    return blocks


MARKUP = "<script>alert(1)</script> | `a` *b* __c__ _d_ ~~e~~ ![f](g) [h][i] &lt; &#60; <j@k.l> \\ # ##"


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("a1 <>/|`*_~!()[]&;:#-+=.\\\n\t\x1b"), min_size=1).map(lambda text: f"a{text}z"))
@example(MARKUP)
@example("a\n# b\n| c |\n```\n<d>\n\x1b[2J\x00\x85")
@example("C #")
def test_texts_of_data_are_no_markup(text):
    shown = markdown_text(text)
    assert shown.isprintable()
    plain = "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(text.split()))
    assert read(f"# {shown}\n\n- {shown}\n\n{markdown_table([text], [[text]])}") == {
        "heading_open": [plain],
        "paragraph_open": [plain],
        "th_open": [plain],
        "td_open": [plain],
    }


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
