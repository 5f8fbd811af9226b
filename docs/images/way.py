"""Draws `way.svg`, the picture of the README: `python docs/images/way.py`.

One SVG that follows the reader's light or dark scheme by itself, so that it needs neither two files nor a background.
"""

from __future__ import annotations

from pathlib import Path

WIDTH, HEIGHT = 920, 300
STYLE = """
text { font-family: -apple-system, "Segoe UI", "DejaVu Sans", Helvetica, Arial, sans-serif; fill: #1f2328; }
.title { font-size: 17px; font-weight: 600; } .note { font-size: 13px; fill: #57606a; }
.box { fill: #f6f8fa; stroke: #8c959f; stroke-width: 1.5; } .core { fill: #d9f2ee; stroke: #00796b; }
.arrow { fill: none; stroke: #57606a; stroke-width: 1.8; } .head { fill: #57606a; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .note { fill: #9da7b3; }
  .box { fill: #161b22; stroke: #6e7681; } .core { fill: #0b3d38; stroke: #4db6ac; }
  .arrow { stroke: #9da7b3; } .head { fill: #9da7b3; }
}
"""
# left, top, width, height, title, notes
BOXES = {
    "data": (5, 100, 180, 100, "images + texts", ["captions, questions,", "preferences, classes"]),
    "score": (240, 100, 190, 100, "score model", ["how good is this text", "for this image?"]),
    "curate": (485, 12, 190, 76, "curate", ["keep the best data"]),
    "reward": (485, 112, 190, 76, "reward", ["GRPO, RAFT, DPO, KTO"]),
    "best": (485, 212, 190, 76, "best of N", ["keep the best answer"]),
    "gain": (735, 100, 180, 100, "measured gain", ["held-out, with", "95% intervals"]),
}
ARROWS = [("data", "score"), *(("score", use) for use in ("curate", "reward", "best"))]
ARROWS += [(use, "gain") for use in ("curate", "reward", "best")]


def box(name: str) -> str:
    """A rounded box with a title and lines of notes, centred."""
    left, top, width, height, title, notes = BOXES[name]
    kind = "box core" if name == "score" else "box"
    middle, first = left + width / 2, top + height / 2 - 9 * len(notes) + 5
    lines = [f'<rect class="{kind}" x="{left}" y="{top}" width="{width}" height="{height}" rx="10"/>']
    lines.append(f'<text class="title" x="{middle:g}" y="{first:g}" text-anchor="middle">{title}</text>')
    for place, note in enumerate(notes, 1):
        y = first + 3 + 18 * place
        lines.append(f'<text class="note" x="{middle:g}" y="{y:g}" text-anchor="middle">{note}</text>')
    return "\n".join(lines)


def arrow(start: str, end: str) -> str:
    """A smooth line from the right side of a box to the left side of another."""
    left, top, width, height, *_ = BOXES[start]
    to, above, _, tall, *_ = BOXES[end]
    x, y, far, down = left + width, top + height / 2, to - 8, above + tall / 2
    if end == "gain":  # the three uses meet
        down += (y - down) / 5
    half = (x + far) / 2
    return f'<path class="arrow" d="M{x:g} {y:g} C{half:g} {y:g} {half:g} {down:g} {far:g} {down:g}"/>\n' + (
        f'<path class="head" d="M{to:g} {down:g} l-11 -5.5 v11 z"/>'
    )


def drawn() -> str:
    """The picture as the text of its file."""
    parts = [arrow(*ends) for ends in ARROWS] + [box(name) for name in BOXES]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    title = (
        "<title>Images and texts train a score model, which curates data, rewards training or picks answers</title>"
    )
    return "\n".join([head, title, f"<style>{STYLE}</style>", *parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("way.svg").write_text(drawn(), encoding="utf-8")
