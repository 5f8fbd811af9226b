"""The page itself, in Gradio: what it shows, and which function each control calls.

Left out: what is computed (`models`, `labels`, `pairs`, `tiles`) and how it is served (`server`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ..data.group import prompt_text
from ..errors import ImageError, RequestError, RSRLHFError, disk_full
from ..imagery.options import IMAGE_SUFFIXES, STRETCHES, ImageOptions
from ..imagery.raster import read_image
from ..scoring.http import sentence_of
from . import shown
from .labels import Labelling, annotator_name
from .models import MOST, Models
from .occlusion import GRIDS, overlay
from .pairs import Pair, write_preferred
from .tiles import Tile, preview, read_as, side_by_side

TITLE = "rs-rlhf app"
KEPT_FOR = 3600  # seconds for which uploaded and shown pictures are kept
CHOICES = (("left", "← Left (1)"), ("right", "Right (2) →"), ("tie", "Tie (t)"), ("both_bad", "Both bad (b)"))


@dataclass
class Chosen:
    """What the tab "Label" works on."""

    labelling: Labelling
    output: Path
    root: str  # of the images
    options: ImageOptions

    def write(self) -> str:
        """Writes the preferences; returns what to say about it."""
        preferred, counts = self.labelling.preferred()
        if not preferred:
            return "There is no preference to write yet."
        images = write_preferred(preferred, self.output, self.root)
        left = ", ".join(
            f"{counts[key]} {key.replace('_', ' ')}" for key in ("tie", "both_bad", "divided") if counts[key]
        )
        told = f"{len(preferred)} preferences -> {self.output}"
        return told + (f"; {images} images written" if images else "") + (f"; not in it: {left}" if left else "") + "."


def told(function: Callable[..., Any]) -> Callable[..., Any]:
    """Shows a mistake of the user as a sentence."""

    @wraps(function)
    def run(*arguments: Any) -> Any:
        try:
            with disk_full():
                return function(*arguments)
        except RSRLHFError as error:
            raise gr.Error(escape(sentence_of(error)), duration=None, print_exception=False) from None

    return run


def build(
    models: Models,
    tiles: Sequence[tuple[Tile, Image.Image, str]],
    options: ImageOptions,
    chosen: Chosen | None,
    names: dict[str, str],
) -> gr.Blocks:
    """Returns the page.

    Args:
        models ([`Models`]): What answers and scores; tabs without a model are left out.
        tiles (sequence of `tuple`): Tiles to choose from, each with its thumbnail and name.
        options ([`ImageOptions`]): How uploaded files are read unless the page says otherwise.
        chosen ([`Chosen`], *optional*): What is to be chosen between.
        names (`dict`): The models by what they are called on the page.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(KEPT_FOR, KEPT_FOR)) as page:
        facts = " · ".join(f"{escape(role)}: <b>{escape(name)}</b>" for role, name in names.items())
        gr.HTML(f'<div class="rs"><h1>{TITLE}</h1><p class="note">{facts}</p></div>', padding=False)
        with gr.Row():
            tile_tabs = bool(models.policies) or models.scorer is not None
            with gr.Column(scale=2, min_width=300, visible=tile_tabs) as picker:
                tile = _picker(tiles, options)
            with gr.Column(scale=3, min_width=320), gr.Tabs():
                tabs = []
                if models.policies:
                    with gr.Tab("Ask") as tab:
                        _ask(models, tile)
                    tabs.append(tab)
                    with gr.Tab("Best of N") as tab:
                        _best(models, tile)
                    tabs.append(tab)
                if models.scorer is not None:
                    with gr.Tab("Score captions") as tab:
                        _score(models, tile)
                    tabs.append(tab)
                for tab in tabs:
                    tab.select(lambda: gr.Column(visible=True), None, picker, api_visibility="private")
                if chosen is not None:
                    with gr.Tab("Label") as tab:
                        _label(page, chosen)
                    tab.select(lambda: gr.Column(visible=False), None, picker, api_visibility="private")
    return page


def _on(event: Callable[..., Any], function: Callable[..., Any], inputs: Any, outputs: Any, **more: Any) -> Any:
    """Calls a function of ours on an event; the page's functions are no public interface."""
    return event(told(function), inputs, outputs, api_visibility="private", **more)


# --- The tile -----------------------------------------------------------------------------------------------------


def _picker(tiles: Sequence[tuple[Tile, Image.Image, str]], options: ImageOptions) -> gr.State:
    """A tile from the gallery or a file; the state holds it."""
    first = tiles[0][0] if tiles else None
    state = gr.State(first)
    picture = gr.Image(
        preview(first.read()) if first else None,
        label="Tile",
        interactive=False,
        format="png",
        height=320,
        buttons=["fullscreen"],
        elem_id="tile",
    )
    gallery = gr.Gallery(
        [(thumbnail, name) for _, thumbnail, name in tiles],
        label="Choose a tile",
        columns=3,
        height=230,
        buttons=[],
        allow_preview=False,
        object_fit="cover",
        elem_id="tiles",
    )
    upload = gr.File(
        label="or upload one", file_types=list(IMAGE_SUFFIXES), type="filepath", height=140, elem_id="upload"
    )
    with gr.Accordion("How an uploaded file is read", open=False, elem_id="reading"):
        bands = gr.Textbox(label="Bands, counted from 1", placeholder="such as 4 3 2", elem_id="bands")
        kinds = [("as stored", ""), *((name, name) for name in STRETCHES)]
        stretch = gr.Radio(kinds, value="", label="Stretch to 8 bits", elem_id="stretch")
        with gr.Row():
            span = gr.Textbox(label="Its range", placeholder="such as 2 98", elem_id="range", min_width=90)
            nodata = gr.Textbox(label="No-data value", elem_id="nodata", min_width=90)
        again = gr.Button("Read again", size="sm", elem_id="read_again")

    def take(path: str | None, *fields: str | None) -> tuple[Tile | None, Image.Image | None]:
        """The uploaded file; one that cannot be read leaves no tile, so that nothing is asked about another one."""
        try:
            if not path:
                raise RequestError(400, "there is no uploaded file; choose a tile or upload one.")
            read = Tile(path, read_as(options, *fields))
            return read, preview(_named(read))
        except RSRLHFError as error:
            gr.Warning(escape(sentence_of(error)), duration=None, title="Not read")
            return None, None

    def choose(event: gr.SelectData) -> tuple[Tile, Image.Image]:
        one = tiles[event.index][0]
        return one, preview(one.read())

    fields = [upload, bands, stretch, span, nodata]
    _on(upload.upload, take, fields, [state, picture])
    _on(again.click, take, fields, [state, picture])
    _on(gallery.select, choose, None, [state, picture])
    return state


def _named(tile: Tile) -> Image.Image:
    """Reads a tile; an error names the file without the folder of uploads."""
    try:
        return tile.read()
    except ImageError as error:
        raise ImageError(str(error).replace(tile.path, Path(tile.path).name)) from None


def _read(tile: Tile | None) -> Image.Image:
    if tile is None:
        raise RequestError(400, "choose a tile first.")
    return _named(tile)


# --- Asking and scoring -------------------------------------------------------------------------------------------


def _ask(models: Models, tile: gr.State) -> None:
    question = gr.Textbox(label="Question", value="What does this image show?", elem_id="ask_question")
    button = gr.Button("Ask", variant="primary", elem_id="ask")
    answers = gr.HTML(elem_id="answers", elem_classes="rs")

    def ask(tile: Tile | None, text: str) -> str:
        found = models.ask(_read(tile), text)
        several = len(found) > 1
        names = [f"Policy {one.policy}" if several else "Answer" for one in found]
        return f'<div class="{"beside" if several else ""}">{shown.bars(found, names, "scored higher")}</div>'

    for event in (button.click, question.submit):
        _on(event, ask, [tile, question], answers)


def _best(models: Models, tile: gr.State) -> None:
    question = gr.Textbox(label="Question", value="What does this image show?", elem_id="best_question")
    with gr.Row():
        policies = list(models.policies)
        policy = gr.Radio(policies, value=policies[0], label="Policy", visible=len(policies) > 1, min_width=100)
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31, min_width=90)
    with gr.Row():  # a narrower slider has a scroll bar below it
        n = gr.Slider(2, MOST, value=8, step=1, label="Answers", elem_id="best_n", min_width=140)
        temperature = gr.Slider(0.1, 2.0, value=1.0, step=0.05, label="Temperature", min_width=140)
    button = gr.Button("Sample and rank", variant="primary", elem_id="best")
    ranking = gr.HTML(elem_id="ranking", elem_classes="rs")

    def best(tile: Tile | None, text: str, policy: str, n: int, temperature: float, seed: int) -> str:
        return shown.ranking(models.rank(_read(tile), text, policy, n, temperature, seed or 0), int(n))

    _on(button.click, best, [tile, question, policy, n, temperature, seed], ranking)


def _score(models: Models, tile: gr.State) -> None:
    question = gr.Textbox(label="Question (empty for captions)", elem_id="score_question")
    texts = gr.Textbox(label="Texts, one a line", lines=4, max_lines=12, elem_id="score_texts")
    button = gr.Button("Score", variant="primary", elem_id="score")
    scores = gr.HTML(elem_id="scores", elem_classes="rs")
    with gr.Row():
        text = gr.Dropdown([], label="What moves the score of", elem_id="map_text", scale=1, min_width=220)
        grid = gr.Slider(*GRIDS, value=8, step=1, label="Patches along a side", elem_id="map_grid", min_width=220)
    show = gr.Button("Hide patches one at a time", elem_id="map")
    picture = gr.Image(
        label="Orange speaks for the text, blue against it",
        interactive=False,
        format="png",
        height=360,
        buttons=["fullscreen"],
        elem_id="map_picture",
    )
    words = gr.HTML(elem_id="map_words", elem_classes="rs")

    def score(tile: Tile | None, question: str, texts: str) -> tuple[str, Any]:
        lines = list(dict.fromkeys(line.strip() for line in (texts or "").splitlines() if line.strip()))
        found = models.score(_read(tile), question, lines)
        found.sort(key=lambda one: -(one.score or 0.0))
        return shown.bars(found), gr.Dropdown(lines, value=found[0].text)

    def explain(tile: Tile | None, question: str, text: str | None, grid: int) -> tuple[Image.Image, str]:
        if not text:
            raise RequestError(400, "score some texts first, then choose one.")
        image = _read(tile)
        found = models.occlusion(image, question, text, grid)
        return overlay(preview(image), found), shown.occlusion(found, text)

    _on(button.click, score, [tile, question, texts], [scores, text])
    _on(show.click, explain, [tile, question, text, grid], [picture, words])


# --- Choosing -----------------------------------------------------------------------------------------------------


def _label(page: gr.Blocks, chosen: Chosen) -> None:
    labelling = chosen.labelling
    kept, current = gr.BrowserState(""), gr.State("")
    name = gr.Textbox(label="Your name", max_lines=1, elem_id="annotator", placeholder="choices are kept by name")
    progress = gr.HTML(elem_id="progress", elem_classes="rs")
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            picture = gr.Image(
                label="Image", interactive=False, format="png", height=330, buttons=["fullscreen"], elem_id="pair"
            )
        with gr.Column(scale=3, min_width=300):
            question = gr.HTML(elem_id="pair_question", elem_classes="rs")
            with gr.Row():
                sides = [
                    gr.HTML(elem_id=f"side_{word}", elem_classes="rs", padding=False) for word in ("left", "right")
                ]
    with gr.Row():
        buttons = {word: gr.Button(text, elem_id=f"choose_{word}", min_width=90) for word, text in CHOICES}
        undo = gr.Button("Undo (u)", elem_id="choose_undo", min_width=90)
    shows = [kept, current, progress, picture, question, *sides]

    def start(who: str) -> list[Any]:
        return _pair(chosen, who, labelling.next(annotator_name(who)) if (who or "").strip() else None)

    def leave(who: str, before: str) -> Any:
        """Leaving the field shows the next pair only if the name is another one."""
        return gr.skip() if (who or "").strip() == before else start(who)

    def choose(word: str) -> Callable[[str, str], list[Any]]:
        def run(who: str, pair_id: str) -> list[Any]:
            who = annotator_name(who or "")
            if pair_id:
                labelling.choose(who, pair_id, word)
            return _pair(chosen, who, labelling.next(who))

        return run

    def back(who: str) -> list[Any]:
        who = annotator_name(who or "")
        return _pair(chosen, who, labelling.undo(who) or labelling.next(who))

    # One after the other: an earlier event must not show its pair after a later one.
    in_turn = {"concurrency_id": "label", "concurrency_limit": 1}
    for word, button in buttons.items():
        _on(button.click, choose(word), [name, current], shows, show_progress="hidden", **in_turn)
    _on(undo.click, back, [name], shows, show_progress="hidden", **in_turn)
    _on(name.submit, start, [name], shows, **in_turn)
    _on(name.blur, leave, [name, kept], shows, **in_turn)
    # A name that is being typed as the page loads stays.
    again = page.load(lambda who: who or gr.skip(), [kept], [name], api_visibility="private")
    _on(again.then, start, [name], shows, **in_turn)
    _agreement(chosen)


def _agreement(chosen: Chosen) -> None:
    """What is counted of the choices, and the button that writes the preferences."""
    with gr.Accordion("Agreement and preferences", open=False, elem_id="agreement"):
        table = gr.HTML(elem_id="agreement_table", elem_classes="rs")
        with gr.Row():
            count = gr.Button("Count", size="sm", elem_id="count")
            write = gr.Button("Write the preferences", size="sm", elem_id="write")

    def counted() -> str:
        return shown.agreement(
            chosen.labelling.agreement(), chosen.labelling.preferred()[1], chosen.labelling.elsewhere()
        )

    _on(count.click, counted, None, table)
    _on(write.click, lambda: f'<p class="note">{escape(chosen.write())}</p>' + counted(), None, table)


def _pair(chosen: Chosen, who: str, pair: Pair | None) -> list[Any]:
    """What the page shows an annotator of a pair; `None` after the last, and without a name."""
    who = (who or "").strip()
    counts = chosen.labelling.progress(annotator_name(who)) if who else None
    bar = "" if counts is None else shown.progress(counts)
    sides = [shown.side(pair, place) for place in (0, 1)]
    if pair is None:
        words = "Write your name to begin." if counts is None else "You have chosen on every pair. Thank you."
        return [who, "", bar, None, f'<p class="question">{words}</p>', *sides]
    question = (
        f'<p class="question">{escape(prompt_text(pair.group.prompt)) or "Which text fits the image better?"}</p>'
    )
    try:
        images = [read_image(image, chosen.options, str(pair.group.where)) for image in pair.group.images]
    except ImageError as error:
        images, question = [], question + f'<p class="note">{escape(sentence_of(error))}</p>'
    return [who, pair.id, bar, preview(side_by_side(images)) if images else None, question, *sides]
