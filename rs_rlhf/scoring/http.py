"""HTTP plumbing of the reward server, its client and the curation browser: errors as sentences, bodies, addresses.

A web framework is imported only where it is used, since clients need none.
"""

from __future__ import annotations

import json
import socket
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import DataError, ImageError, OptionError, RequestError, RSRLHFError, ScoreError
from ..imagery.sources import ImageOptions
from ..options import option

if TYPE_CHECKING:
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse
    from starlette.requests import Request

TOKEN = "RS_RLHF_SERVER_TOKEN"  # the environment variable of the bearer token, at both ends
LOCAL = ("127.0.0.1", "localhost", "::1")
KEEP_ALIVE = 75  # seconds; longer than clients keep a connection, so that none is closed as it is taken up again
RETRY_AFTER = "1"  # seconds that a client is asked to wait when there is no room
ERROR_KINDS: dict[str, type[RSRLHFError]] = {"image": ImageError, "data": DataError, "score": ScoreError}


@dataclass(kw_only=True)
class Limits:
    """What one request to the server may ask for."""

    max_bytes: int = option(64 * 2**20, "Bytes of a request at most.")
    max_groups: int = option(256, "Groups of a request at most.")
    max_completions: int = option(64, "Completions of a group at most.")
    max_images: int = option(64, "Images of a group at most.")
    max_text: int = option(32_768, "Characters of a prompt or completion at most.")


def error_kind(error: Exception) -> str:
    """Returns the name of an error in an answer: `"image"`, `"data"`, `"score"` or `"server"`."""
    return next((kind for kind, cls in ERROR_KINDS.items() if isinstance(error, cls)), "server")


def error_from(kind: str, sentence: str) -> RSRLHFError:
    """Returns the error that [`error_kind`] has named."""
    return ERROR_KINDS.get(kind, ScoreError)(sentence)


def sentence_of(error: Exception | str, limit: int = 500) -> str:
    """Returns an error's message as one line of text that any encoder takes."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    return text.encode("utf-8", "replace").decode()


def needs_options(options: ImageOptions) -> bool:
    """Whether the options change what a plain 8-bit image looks like."""
    given = (options.bands, options.stretch, options.nodata)
    return bool(options.sensors) or any(value is not None for value in given)


def load_json(body: bytes) -> object:
    """Parses JSON; refuses what is none, and what Python reads beyond the standard (NaN, a key twice)."""
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except UnicodeDecodeError:
        raise RequestError(400, "the body is not UTF-8 text; send JSON.") from None
    except RecursionError:
        raise RequestError(400, "the JSON is nested too deeply.") from None
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError(400, f"the body is not JSON: {error}.") from None


def _refuse_constant(name: str) -> None:
    raise RequestError(400, f"the body holds {name}, which JSON does not have.")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise RequestError(400, f"an object of the body has the key {key[:60]!r} twice; send each key once.")
    return dict(pairs)


async def split_form(request: Request, body: bytes) -> tuple[bytes, dict[str, bytes]]:
    """Splits a multipart body into the field `request` and the files by name; any other body is the JSON itself."""
    from starlette.exceptions import HTTPException
    from starlette.requests import Request as FormRequest

    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return body, {}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    again = FormRequest(request.scope, receive)
    try:
        async with again.form(max_files=10_000, max_fields=10, max_part_size=len(body)) as form:
            parts = {name: await value.read() for name, value in form.multi_items() if not isinstance(value, str)}
            text = form.get("request")
    except (HTTPException, UnicodeDecodeError) as error:
        raise RequestError(400, f"the form cannot be read: {getattr(error, 'detail', error)}.") from None
    if text is None:
        raise RequestError(422, "the form has no field `request` with the JSON.")
    return (text.encode("utf-8", "replace") if isinstance(text, str) else parts["request"]), parts


def refusal(status: int, sentence: str) -> JSONResponse:
    """Answers with an error: one sentence, and what a client should do with its connection."""
    from fastapi.responses import JSONResponse

    headers = {"Retry-After": RETRY_AFTER} if status in (429, 503) else {}
    headers |= {"Connection": "close"} if status in (408, 413, 503) else {}
    return JSONResponse({"error": sentence_of(sentence)}, status, headers)


def add_error_handlers(app: FastAPI) -> None:
    """Makes every error an answer of one sentence."""
    from starlette.exceptions import HTTPException

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> JSONResponse:
        return refusal(error.status, error.sentence)

    @app.exception_handler(HTTPException)
    async def not_here(request: Request, error: HTTPException) -> JSONResponse:
        return refusal(error.status_code, f"{request.method} {request.url.path}: {error.detail}.")

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return refusal(500, f"the server failed ({type(error).__name__}); its log has the cause.")


def listen(host: str, port: int) -> socket.socket:
    """Binds an address, or raises OptionError, before a model is loaded, which may take minutes."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sends each answer at once; otherwise its body waits 40 ms for the client's ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise OptionError(f"cannot listen on {host}, port {port} ({error}); choose another --port.", "port") from None
    return listener
