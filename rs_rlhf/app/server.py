"""`rs-rlhf app`: loads what the options name, and serves the page until a signal.

The page is Gradio's, on the server of the project's other pages: this machine alone unless `--host` says otherwise, no
requests of other sites' pages, a token if one is set, uploads within limits. Nothing is asked of the network or
reported: Gradio's analytics, fonts, history and public links are off, and the page may load from here alone. Uploads
lie in a folder of their own, which goes with the process.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.rows import image_folder
from ..scoring.http import LOCAL, TOKEN, LocalNames, OwnPages, TokenAsked, WithHeaders, listen, not_ready, run_pages
from .options import AppOptions

if TYPE_CHECKING:
    from ..imagery.options import ImageOptions
    from ..scoring.base import GroupScorer
    from .labels import ChoiceLog
    from .models import Models
    from .page import Chosen
    from .pairs import Pair

# Gradio evaluates code of its own page and styles parts of it in place; everything comes from this server.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'self'"
)
HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_RUN_HISTORY": "False"}


def serve(options: AppOptions) -> None:
    """Serves until SIGTERM or SIGINT; then writes the preferences that people have chosen."""
    listener = listen(options.host, options.port)
    with tempfile.TemporaryDirectory(prefix="rs-rlhf-app-") as folder:
        os.environ.update(QUIET, GRADIO_TEMP_DIR=folder)
        with not_ready(listener, "the models are being loaded; load this page again."):
            texts = (
                None if options.label is None else _texts(options)
            )  # first, since mistakes in them are told soonest
            models = _models(options)
            from .page import TITLE, build
            from .tiles import example_tiles

            chosen = None if texts is None else _chosen(options, *texts, models.scorer)
            rendering = _only_plain(models.scorer, options.reader_options())
            drawn = Path(folder) / "scenes"
            drawn.mkdir()
            tiles = example_tiles(options.tiles, rendering, drawn)
            page = build(models, tiles, rendering, chosen, _names(options))
            app = create_app(page, options.host not in LOCAL, os.environ.get(TOKEN) or None, options.max_bytes)
        if not os.environ.get(TOKEN) and options.host not in LOCAL:
            print(f"rs-rlhf app: {options.host} may be reached by others and {TOKEN} is not set.", file=sys.stderr)
        try:
            run_pages(app, listener, f"Showing {TITLE}")
        finally:
            if chosen is not None:
                if chosen.labelling.choices():
                    print(chosen.write(), flush=True)
                chosen.labelling.log.close()


def create_app(page: Any, any_name: bool = False, token: str | None = None, max_bytes: int | None = None) -> Any:
    """Builds the application around a page; with `any_name` it answers under any host name."""
    import gradio as gr
    from fastapi import FastAPI

    app = FastAPI(title="rs-rlhf app", openapi_url=None, docs_url=None, redoc_url=None)

    app.add_middleware(WithHeaders, headers=HEADERS)
    if token is not None:
        app.add_middleware(TokenAsked, token=token)
    app.add_middleware(OwnPages)
    if not any_name:
        app.add_middleware(LocalNames)
    here = Path(__file__).parent
    system = ("system-ui", "sans-serif")  # fonts of the machine: the default ones come from a public host
    theme = gr.themes.Default(font=system, font_mono=("ui-monospace", "monospace"))
    return gr.mount_gradio_app(
        app,
        page,
        "/",
        theme=theme,
        css=(here / "app.css").read_text(encoding="utf-8"),
        js=(here / "app.js").read_text(encoding="utf-8"),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=False,
        max_file_size=max_bytes,
    )


def _models(options: AppOptions) -> Models:
    from .models import Models

    plain = options.reader_options().plain()  # the page hands over pictures that have been read
    policies: dict[str, Any] = {}
    for letter, name in (("A", options.policy), ("B", options.policy_b)):
        if name is not None:
            from ..models.policies.load import load_policy

            given = {name: getattr(options, name) for name in ("min_pixels", "max_pixels", "dtype", "device")}
            policies[letter] = load_policy(name, image_options=plain, **given)
    return Models(policies, _scorer(options), max_new_tokens=options.max_new_tokens, seed=options.seed)


def _scorer(options: AppOptions) -> GroupScorer | None:
    """The score model, which reads files as the options and its own settings say."""
    if options.score_name is None:
        return None
    from ..scoring.load import load_scorer

    given: dict[str, Any] = {name: getattr(options, name) for name in ("min_pixels", "max_pixels", "dtype")}
    return load_scorer(options.score_name, options.reader_options(), options.device, **given, **options.several())


def _only_plain(scorer: GroupScorer | None, given: ImageOptions) -> ImageOptions:
    """Has a scorer take pictures as the page hands them over, read already; returns how it read files before."""
    parts: list[Any] = getattr(scorer, "parts", [scorer])
    before = given
    for part in parts:
        reader = getattr(part, "collator", part)  # a client of servers reads images itself
        before = getattr(reader, "image_options", before)
        if hasattr(reader, "image_options"):
            reader.image_options = before.plain()
    return replace(before, image_root=None, allowed_hosts=())


def _texts(options: AppOptions) -> tuple[list[Pair], Counter[str], ChoiceLog]:
    """The pairs to choose between, what else was counted, and the log of choices."""
    from .labels import ChoiceLog
    from .pairs import read_pairs

    reading: dict[str, Any] = {"columns": options.named_columns(), "image_root": options.image_root}
    pairs, counts = read_pairs(str(options.label), options.label_split, **reading, seed=options.seed)
    settings = {"label": options.label, "seed": options.seed, "order": options.order}
    return pairs, counts, ChoiceLog(options.log, settings | {"score_model": options.score_name})


def _chosen(
    options: AppOptions, pairs: list[Pair], counts: Counter[str], log: ChoiceLog, scorer: GroupScorer | None
) -> Chosen:
    """What the tab "Label" works on: the pairs, scored and ordered, and the log."""
    from ..scoring.cards import model_stamp
    from .labels import Labelling
    from .page import Chosen
    from .pairs import PairScore, ordered, score_pairs

    scores: dict[str, PairScore] = {}
    if scorer is not None:
        by = [options.score_name, model_stamp(options.score_name), *options.combination(options.score_name).values()]
        kept = log.path.with_name(f"{log.path.name.removesuffix('.jsonl')}.scores.jsonl")
        scores, counts["rows without a score"] = score_pairs(pairs, lambda: scorer, kept, str(by))
    margins = {name: score.margin for name, score in scores.items()}
    labelling = Labelling(ordered(pairs, options.order, options.seed, scores), log, margins)
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    print(f"{options.label}: {len(pairs)} pairs to choose between ({told}); choices -> {log.path}", flush=True)
    root = options.image_root or image_folder(options.file)
    return Chosen(labelling, options.output, root, replace(options.reader_options(), image_root=None))


def _names(options: AppOptions) -> dict[str, str]:
    given = {"Policy A" if options.policy_b else "Policy": options.policy, "Policy B": options.policy_b}
    given |= {"Score model": options.score_name, "To label": options.label}
    return {role: Path(name).name if Path(name).exists() else name for role, name in given.items() if name is not None}
