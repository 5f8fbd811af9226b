"""`rs-rlhf browse`: a local web page to look through scored data and to find where to cut it.

It shows the histogram of the scores, how much a cut keeps of each source and class, and the samples on either side of
the cut, the best, the worst and random ones, with their images; at the bottom stands the `rs-rlhf curate` command that
cuts there. [`Ranked`] holds the numbers; images are read from the scored data when a sample is looked at.

Samples can also be kept or rejected by hand ([`Marks`]); nothing else is written. The page answers this machine only
unless `--host` says otherwise: requests under another name than this machine's are refused, so that no web page
elsewhere can have a browser read the data for it, and a mark is taken from JSON alone, which no form elsewhere can
send. Texts are sent as JSON and set as text; the page loads scripts from this server alone.

Left out: cutting from within the page, users and passwords.
"""

import math
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...declarations import did_you_mean
from ...errors import DataError, OptionError, RequestError
from ...imagery.arguments import RenderingOptions
from ...options import option, to_flags
from ...runs.page import render, source
from ...scoring.http import LOCAL, LocalNames, WithHeaders, add_error_handlers, listen, load_json, run_pages
from ..options import SampleOptions
from ..samples import read_scored
from .folders import name_folders
from .images import Pictures
from .marks import KEPT, Marks
from .view import Filter, Position, Ranked, drawn, kept_of

VIEWS = ("above", "below", "best", "worst", "random", "errors", "only_here", "only_there", "sorted", "marked")
CUT = ("top", "threshold")
FILTER = ("source", "label", "low", "high", "search")
PAGE = ("view", "page", "size", "seed", "sort", "order")
TOP = 0.3  # where the page begins: the share that the ScoreRS authors keep (arXiv 2503.00743)
SIZE, SEARCH = 100, 200  # samples of an answer at most, characters of a search
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; "
    "img-src 'self' blob: data:; connect-src 'self'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}


@dataclass(kw_only=True)
class BrowseOptions(SampleOptions, RenderingOptions):
    """Look through scored data in a browser, and find where to cut it."""

    scores: Path = option(help="folder that `rs-rlhf score` has written", positional=True, metavar="SCORES")
    compare: Path | None = option(
        None, "scores of the same data by another scorer, shown beside", metavar="OTHER_SCORES"
    )
    by_hand: Path | None = option(
        None,
        "folder of what is kept and rejected by hand: the log, and kept_ids.parquet for `rs-rlhf curate --ids` "
        "(default: SCORES-by-hand)",
        metavar="DIR",
        writes="folder",
    )
    viewer: Literal["browser", "spotlight"] = option(
        "browser", "where to look: our page, or Renumics Spotlight", flags=["--in"]
    )
    host: str = option(LOCAL[0], "address to listen on; by default only this machine is answered")
    port: int = option(8322, "port to listen on; 0 takes a free one")
    max_image_pixels: int | None = option(  # type: ignore[assignment]
        None, "Images of more pixels are refused before they are decoded; by default as when they were scored."
    )


def _parameters(request: Any, *known: str) -> dict[str, str]:
    query: Mapping[str, str] = request.query_params
    for name in query:
        if name not in known:
            raise RequestError(400, f"there is no parameter {name[:60]!r}{did_you_mean(name[:60], known)}")
    return dict(query)


def _number(given: Mapping[str, str], name: str) -> float | None:
    if name not in given:
        return None
    try:
        value = float(given[name])
    except ValueError:
        value = math.nan
    if not abs(value) < 3e38:  # what scores can be, as 32-bit numbers
        raise RequestError(400, f"{name} is {given[name][:60]!r}, expected a number.")
    return value


def _whole(text: str, name: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise RequestError(400, f"{name} is {text[:60]!r}, expected a whole number from 0 on.")
    return int(text)


def _cut_of(given: Mapping[str, str], ranked: Ranked) -> Position:
    top, threshold = _number(given, "top"), _number(given, "threshold")
    if top is not None and threshold is not None:
        raise RequestError(400, "top and threshold are both given; send one of them.")
    if top is not None and not 0 < top <= 1:
        raise RequestError(400, f"top is {top}, expected a share of more than 0 and at most 1.")
    return ranked.cut(TOP if top is None and threshold is None else top, threshold)


def _filter_of(given: Mapping[str, str], ranked: Ranked) -> Filter:
    for name, names in (("source", ranked.sources.names), ("label", ranked.labels.names)):
        if name in given and given[name] not in names:
            raise RequestError(400, f"no sample has the {name} {given[name][:60]!r}{did_you_mean(given[name], names)}")
    low, high = _number(given, "low"), _number(given, "high")
    if low is not None and high is not None and low > high:
        raise RequestError(400, f"low is {low} and high {high}; the range is the wrong way round.")
    search = given.get("search", "")
    if len(search) > SEARCH:
        raise RequestError(400, f"search has {len(search)} characters, at most {SEARCH} are looked for.")
    return Filter(given.get("source"), given.get("label"), low, high, search)


def summary(ranked: Ranked, given: Mapping[str, str], marks: Marks) -> dict[str, Any]:
    """Returns the answer of `/api/summary`: what is kept, and the histogram. `RequestError`: a parameter is wrong."""
    position, chosen = _cut_of(given, ranked), _filter_of(given, ranked)
    everything = Filter()
    ranks, failed = ranked.select(chosen)
    rows = kept_of(ranked.rows, position.k)
    low, high = _range(ranked, chosen)
    narrowed = chosen not in (everything, Filter(low=chosen.low, high=chosen.high))
    selected = {"samples": len(ranks), "kept": kept_of(ranks, position.k), "errors": len(failed)}
    comparison = None
    if (other := ranked.other) is not None:
        comparison = {"name": other.name, "common": other.common, "correlation": other.correlation}
        comparison["both"] = other.both(position)
    return {
        "title": ranked.title,
        "facts": ranked.facts(),
        "unit": "samples" if ranked.several else "texts",
        "cut": {
            "top": position.top,
            "threshold": position.threshold,
            "threshold_text": str(np.float32(position.threshold)),
            "equal_dropped": ranked.equal_dropped(position.k) if "threshold" not in given else 0,
            "command": command_by_hand(ranked, marks) if marks.by_number else command(ranked, given, position),
        },
        "kept": {
            "samples": [position.k, len(ranked.scores)],
            "texts": ranked.text_count(position.k),
            "rows": [rows, len(ranked.rows)],
        },
        "selected": selected if chosen != everything else None,
        "histogram": {
            "low": low,
            "high": high,
            "counts": ranked.histogram(chosen, low, high),
            "all": ranked.histogram(everything, low, high) if narrowed else None,
        },
        "sources": ranked.sources.counts(position.k, rows),
        "labels": ranked.labels.counts(position.k, rows),
        "compared": comparison,
        "sortable": list(ranked.sortable),
        "marks": marks.counts(),
    }


def _range(ranked: Ranked, chosen: Filter) -> tuple[float, float]:
    """The range of the histogram: that of the request, or of all scores."""
    ends = (float(ranked.scores[-1]), float(ranked.scores[0])) if len(ranked.scores) else (0.0, 1.0)
    low = ends[0] if chosen.low is None else chosen.low
    high = ends[1] if chosen.high is None else chosen.high
    room = max(0.5, abs(low) * 0.01)
    return (low, high) if low < high else (low - room, low + room)


def command(ranked: Ranked, given: Mapping[str, str], position: Position) -> str:
    """Returns the `rs-rlhf curate` command that keeps what is above the cut."""
    folder = str(ranked.folder)
    cut = f"--threshold={np.float32(position.threshold)!s}" if "threshold" in given else f"--keep={position.top:.12g}"
    return shlex.join(["rs-rlhf", "curate", folder, cut, *ranked.flags, "--output", f"{folder.rstrip('/')}-kept"])


def command_by_hand(ranked: Ranked, marks: Marks) -> str:
    """Returns the `rs-rlhf curate` command that keeps what [`Marks.write`] lists."""
    manifest = ranked.manifest
    flags = [f"--{name}={manifest[name]}" for name in ("split", "image_root") if manifest.get(name)]
    columns = [f"{name}={column}" for name, column in (manifest.get("columns") or {}).items()]
    flags += ["--columns", *columns] if columns else []
    data = ["--ids", str(marks.folder / KEPT), "--input", str(manifest["input"])]
    return shlex.join(["rs-rlhf", "curate", *data, *flags, "--output", f"{str(ranked.folder).rstrip('/')}-kept"])


def rows(ranked: Ranked, pictures: Pictures, given: Mapping[str, str], marks: Marks) -> dict[str, Any]:
    """Returns the answer of `/api/rows`: a page of samples. `RequestError`: a parameter is wrong."""
    view = given.get("view", "best")
    if view not in VIEWS:
        raise RequestError(400, f"there is no view {view[:60]!r}{did_you_mean(view[:60], VIEWS)}")
    if view in ("only_here", "only_there") and ranked.other is None:
        raise RequestError(400, f"the view {view} needs a second score folder; start with --compare.")
    page, size, seed = (
        _whole(given.get(name, default), name) for name, default in (("page", "0"), ("size", "24"), ("seed", "0"))
    )
    if not 1 <= size <= SIZE:
        raise RequestError(400, f"size is {size}, expected 1 to {SIZE}.")
    sort, order = given.get("sort", "score"), given.get("order", "down")
    for name, value, known in (("sort", sort, list(ranked.sortable)), ("order", order, ["down", "up"])):
        if value not in known:
            raise RequestError(400, f"{name} is {value[:60]!r}{did_you_mean(value[:60], known)}")
    position = _cut_of(given, ranked)
    ranks, failed = ranked.select(_filter_of(given, ranked))
    k = kept_of(ranks, position.k)
    if view == "sorted":
        ranks = ranked.sorted_by(sort, ranks, order == "up")
    elif view == "marked":
        by_hand = ranked.rank_of[np.array(list(marks.by_number), np.int64)]
        ranks = by_hand[np.isin(by_hand, ranks)][::-1]  # the last mark first
    elif view == "random":
        ranks = drawn(ranks, seed)
    elif ranked.other is not None and view in ("only_here", "only_there"):
        ranks = ranked.other.differing(position, ranks, view == "only_here")
    else:
        ranks = {"above": ranks[:k][::-1], "below": ranks[k:], "best": ranks, "worst": ranks[::-1]}.get(view, ranks)
    total = len(failed) if view == "errors" else len(ranks)
    part = slice(page * size, (page + 1) * size)
    numbers = (failed[part] if view == "errors" else ranked.order[ranks[part]]).tolist()
    pictures.expect(numbers)
    return {
        "view": view,
        "page": page,
        "size": size,
        "total": total,
        "ranked": len(ranked.scores),
        "compared": ranked.other and ranked.other.name,
        "rows": [_row(ranked, number, position.k) | {"mark": marks.by_number.get(number)} for number in numbers],
    }


def _row(ranked: Ranked, number: int, k: int) -> dict[str, Any]:
    _, lines, count = ranked.sample(number)
    rank = int(ranked.rank_of[number])
    scored = rank < len(ranked.scores)
    texts = [
        {key: line[key] for key in ("text", "tokens", "error")}
        | {"index": line["text_index"], "score": _finite(line["score"])}
        for line in lines
    ]
    return {
        "row": number,
        "id": lines[0]["row_id"],
        "rank": rank if scored else None,
        "kept": rank < k,
        "score": float(ranked.scores[rank]) if scored else None,
        "compared": _finite(float(ranked.other.scores[number])) if ranked.other else None,
        "source": ranked.sources.names[ranked.sources.by_sample[number]],
        "label": ranked.labels.names[ranked.labels.by_sample[number]],
        "texts": texts,
        "more": count - len(texts),
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def create_app(ranked: Ranked, pictures: Pictures, marks: Marks, any_name: bool = False) -> Any:
    """Builds the FastAPI application; with `any_name` it answers under any host name, not only this machine's own."""
    from fastapi import FastAPI, Request, Response
    from fastapi.responses import JSONResponse

    app = FastAPI(title="rs-rlhf browse", openapi_url=None, docs_url=None, redoc_url=None)
    page = render("curation/browser/browse.html", title=ranked.title)
    script = source("runs/base.js") + source("curation/browser/browse.js")

    app.add_middleware(WithHeaders, headers=HEADERS)
    if not any_name:
        app.add_middleware(LocalNames)

    @app.get("/")
    def index() -> Any:
        return Response(page, media_type="text/html")

    @app.get("/browse.js")
    def code() -> Any:
        return Response(script, media_type="text/javascript")

    @app.get("/api/summary")
    def of_cut(request: Request) -> Any:
        return JSONResponse(summary(ranked, _parameters(request, *CUT, *FILTER), marks))

    @app.get("/api/rows")
    def of_page(request: Request) -> Any:
        return JSONResponse(rows(ranked, pictures, _parameters(request, *CUT, *FILTER, *PAGE), marks))

    @app.get("/api/row/{number}")
    def of_row(number: str) -> Any:
        return JSONResponse(pictures.about(_whole(number, "the sample's number")))

    @app.get("/api/image/{number}/{place}")
    def image(number: str, place: str, large: bool = False) -> Any:
        read = pictures.large if large else pictures.thumbnail
        content = read(_whole(number, "the sample's number"), _whole(place, "the image's number"))
        return Response(content, media_type="image/jpeg")

    @app.post("/api/mark")
    async def by_hand(request: Request) -> Any:
        sent = await _sent(request, "row", "keep")
        number, keep = sent["row"], sent["keep"]
        if type(number) is not int or not 0 <= number < len(ranked.samples.first):
            raise RequestError(400, f"row is {number!r:.60}, expected the number of a sample.")
        if keep not in (True, False, None) or type(keep) is int:
            raise RequestError(400, f"keep is {keep!r:.60}, expected true, false, or null to take a mark back.")
        if keep and ranked.rank_of[number] >= len(ranked.scores):
            raise RequestError(400, "the sample has no score, and `curate` keeps only what has one.")
        await _written(marks.mark, ranked, number, keep)
        return JSONResponse(marks.counts())

    @app.post("/api/kept_ids")
    async def keep_ids(request: Request) -> Any:
        cut = {name: str(value) for name, value in (await _sent(request, *CUT)).items() if value is not None}
        return JSONResponse(await _written(marks.write, ranked, _cut_of(cut, ranked).k))

    add_error_handlers(app)
    return app


async def _sent(request: Any, *known: str) -> dict[str, Any]:
    """The JSON object of a request, with `None` for what it lacks of `known`."""
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        raise RequestError(415, "a mark is sent as application/json.")
    sent = load_json(await request.body(), 10)
    if not isinstance(sent, dict) or not set(sent) <= set(known):
        raise RequestError(400, f"the body is {sent!r:.60}, expected an object of {', '.join(known)}.")
    return dict.fromkeys(known) | sent


async def _written(write: Callable[..., Any], *arguments: Any) -> Any:
    """Calls what writes, in a thread; what cannot be written is one sentence."""
    from fastapi.concurrency import run_in_threadpool

    try:
        return await run_in_threadpool(write, *arguments)
    except DataError as error:
        raise RequestError(422, str(error)) from None
    except OSError as error:
        raise RequestError(
            507, f"cannot be written ({error.strerror}): {error.filename}; choose another --by_hand."
        ) from None


def browse(options: BrowseOptions) -> None:
    """Shows the page until SIGTERM or Ctrl-C."""
    if options.viewer == "spotlight":
        from .spotlight import show

        show(options)
        return
    missing = [name for name in ("fastapi", "uvicorn") if not find_spec(name)]
    if missing:
        raise OptionError(f"{', '.join(missing)} not installed; install them with `pip install rs-rlhf[server]`.")
    listener = listen(options.host, options.port)
    print(f"Reading the scores in {options.scores} …", flush=True)
    flags = to_flags(options, [field.name for field in fields(SampleOptions)])
    scored = read_scored(options.scores, options, options.compare)
    folders = name_folders(scored)
    marks = Marks(options.by_hand or Path(f"{str(options.scores).rstrip('/')}-by-hand"), scored)
    ranked = Ranked(scored, flags, folders)
    del scored  # its columns of text would be most of the memory
    rendering = options.recorded([field.name for field in fields(RenderingOptions)])
    rendering["sensors"] = rendering.pop("image_options", None)
    pictures = Pictures(ranked, {name: value for name, value in rendering.items() if value is not None})
    if options.host not in LOCAL:
        print(f"rs-rlhf browse: whoever can reach {options.host} can read the data.", file=sys.stderr)
    run_pages(create_app(ranked, pictures, marks, options.host not in LOCAL), listener, f"Browsing {ranked.title}")
