"""Results as HTML for the page. Every text of a model, a file or a person is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .models import Ranking, Scored
from .occlusion import Occlusion
from .pairs import Pair

_CHOICES = {"a": "one text", "b": "the other", "tie": "tie", "both_bad": "both bad"}
NO_PREFERENCE = "Ties and “both bad” stay in the log; no preference is made of them."


def number(value: float | None, digits: int = 3) -> str:
    """Returns a number for the page, with a true minus sign; a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def share(value: float | None) -> str:
    """Returns a share in percent; a dash for none."""
    return "–" if value is None else f"{value:.0%}"


def bars(texts: Sequence[Scored], labels: Sequence[str] | None = None, marked: str = "best") -> str:
    """Returns texts with bars of their scores, from zero; the best is marked with a word, not by colour alone.

    Scores that read the same are equal, and of equal ones alone none is the best.
    """
    scores = [one.score for one in texts if one.score is not None]
    low, high = min([0.0, *scores]), max([0.0, *scores])
    span = (high - low) or 1.0
    best: set[str] = {number(max(scores))} if len({*map(number, scores)}) > 1 else set()
    rows = []
    for i, one in enumerate(texts):
        head = [f"<b>{escape(labels[i])}</b>"] if labels else []
        head += [f"said {one.count} times"] if one.count > 1 else []
        head += [f"<strong>{marked}</strong>"] if one.score is not None and number(one.score) in best else []
        bar = ""
        if one.score is not None:
            left, width = 100 * (min(0.0, one.score) - low) / span, 100 * abs(one.score) / span
            told = number(one.score) + (f" ± {number(one.std)}" if one.std is not None else "")
            place = f"left:{left:.1f}%;width:{max(width, 0.5):.1f}%"
            kind = "bar" if one.score >= 0 else "bar below"
            bar = (
                f'<div class="track"><div class="{kind}" style="{place}"></div></div><span class="value">{told}</span>'
            )
        text = escape(one.text) if one.text else "<em>(an empty answer)</em>"
        rows.append(
            f'<li class="scored"><div class="about">{" · ".join(head)}</div><div class="text" dir="auto">{text}</div>'
            f'<div class="score">{bar}</div></li>'
        )
    return f'<ol class="bars">{"".join(rows)}</ol>' if rows else ""


def ranking(found: Ranking, n: int) -> str:
    """Returns ranked answers, and below them what votes would have said."""
    lines = [_vote("A majority", found.votes, found)]
    if found.weighted:
        lines.append(_vote("A vote weighted by the scores", found.weighted, found))
    if found.unread:
        has = "has" if found.unread == 1 else "have"
        lines.append(f"{found.unread} of {n} answers {has} no vote: empty, hedged, or without one clear answer.")
    return bars(found.answers) + "".join(f'<p class="note">{line}</p>' for line in lines)


def _vote(who: str, votes: Mapping[str, float], found: Ranking) -> str:
    if not votes:
        return f"{who} would have said nothing: no answer can be read."
    most = max(votes.values())
    first = [answer for answer, part in votes.items() if part >= most * (1 - 1e-9)]
    if len(first) > 1:
        named = ", ".join(f"<b>{escape(answer)}</b>" for answer in first[:5])
        return f"{who} would have been divided between {named} ({share(most)} each)."
    return f"{who} would have said <b>{escape(first[0])}</b> ({share(most)} of the votes)."


def occlusion(found: Occlusion, text: str) -> str:
    """Returns what the map shows, in words."""
    rows, columns = found.drops.shape
    best, worst = float(found.drops.max()), float(found.drops.min())
    told = [f"Score of “{escape(text)}” and the whole tile: <b>{number(found.score)}</b>."]
    if best > 0:
        told.append(f'<span class="key for"></span> hiding the patch lowers the score, by {number(best)} at most.')
    if worst < 0:
        told.append(f'<span class="key against"></span> hiding it raises the score, by {number(-worst)} at most.')
    if not best and not worst:
        told.append("No patch moves the score.")
    return f'<p class="note">{"<br>".join(told)}<br>{rows} × {columns} patches, hidden one at a time.</p>'


def side(pair: Pair | None, place: int) -> str:
    """Returns one of the two texts of a pair as a card."""
    name = ("Left", "Right")[place]
    text = "" if pair is None else escape(pair.sides[place])
    return f'<div class="side"><div class="about">{name}</div><div class="text" dir="auto">{text}</div></div>'


def progress(counts: Mapping[str, int]) -> str:
    """Returns how far an annotator is."""
    done, pairs = counts["done"], counts["pairs"]
    kinds = ", ".join(f"{_CHOICES[key]} {counts[key]}" for key in ("tie", "both_bad") if counts[key])
    told = f"{done} of {pairs} pairs" + (f" ({kinds})" if kinds else "")
    width = 100 * done / max(pairs, 1)
    return (
        f'<div class="progress" role="progressbar" aria-valuenow="{done}" aria-valuemax="{pairs}" aria-label="{told}">'
        f'<div style="width:{width:.1f}%"></div></div><p class="note">{told}. {NO_PREFERENCE}</p>'
    )


def agreement(found: Mapping[str, Any], counts: Mapping[str, int], elsewhere: int) -> str:
    """Returns how far annotators agree with one another and with the score model, and what the pairs come to."""
    people = [
        [*map(escape, one["annotators"]), str(one["n"]), share(one["agree"]), number(one["kappa"], 2)]
        for one in found["people"]
    ]
    model = [
        [escape(name), str(one["n"]), share(one["accuracy"]), " – ".join(map(share, one["interval"]))]
        for name, one in found["model"].items()
    ]
    parts = [_counts(counts)]
    if people:
        parts.append(_table(["annotator", "annotator", "shared pairs", "agree", "Cohen’s κ"], people))
    if model:
        parts.append(_table(["annotator", "decided pairs", "score model agrees", "95% interval"], model))
    if elsewhere:
        parts.append(f'<p class="note">{elsewhere} choices of the log are on pairs that these data do not hold.</p>')
    return "".join(parts)


def _counts(counts: Mapping[str, int]) -> str:
    names = {
        "written": "with a preference",
        "tie": "ties",
        "both_bad": "both bad",
        "divided": "divided",
        "open": "open",
    }
    told = ", ".join(f"{counts[key]} {name}" for key, name in names.items() if counts[key])
    return f'<p class="note">Pairs over all annotators: {told or "none"}.</p>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{name}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'
