"""HTTP plumbing of the reward server, its client and the curation browser: errors as sentences, bodies, addresses.

A web framework is imported only where it is used, since clients need none.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import logging
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import DataError, ImageError, OptionError, RequestError, RSRLHFError, ScoreError
from ..imagery.sources import ImageOptions
from ..options import option

if TYPE_CHECKING:
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

TOKEN = "RS_RLHF_SERVER_TOKEN"  # the environment variable of the bearer token, at both ends
LOCAL = ("127.0.0.1", "localhost", "::1")
KEEP_ALIVE = 75  # seconds; longer than clients keep a connection, so that none is closed as it is taken up again
BACKLOG = 2048  # connections that may wait to be accepted
RETRY_AFTER = "1"  # seconds that a client is asked to wait when there is no room
MAX_DEPTH = 32  # of brackets within brackets in a JSON body; a request has seven
WINDOW = 2**20  # bytes of a body that are looked at in one go: other threads wait for so long
_BACKSLASHES = re.compile(rb"\\*")
_PLAIN = bytes(set(range(256)) - set(b'"[]{},'))
ERROR_KINDS: dict[str, type[RSRLHFError]] = {"image": ImageError, "data": DataError, "score": ScoreError}


@dataclass(kw_only=True)
class Limits:
    """What one request to the server may ask for."""

    max_bytes: int = option(64 * 2**20, "Bytes of a request at most.")
    max_groups: int = option(256, "Groups of a request at most.")
    max_completions: int = option(64, "Completions of a group at most.")
    max_images: int = option(64, "Images of a group at most.")
    max_text: int = option(32_768, "Characters of a prompt or completion at most.")
    max_tokens: int = option(1_000_000, "Estimated tokens of a request, images included, at most.")
    max_values: int = option(500_000, "Items and keys of a request's JSON at most.")


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


def load_json(body: bytes | bytearray, max_values: int = Limits.max_values) -> object:
    """Parses JSON; refuses what is none, what Python reads beyond the standard (NaN, a key twice), and, before it is
    parsed, what would take many times its size in memory.
    """
    _check_outline(body, max_values)
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except UnicodeDecodeError:
        raise RequestError(400, "the body is not UTF-8 text; send JSON.") from None
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError(400, f"the body is not JSON: {error}.") from None


def _check_outline(body: bytes | bytearray, max_values: int) -> None:
    """Refuses JSON of too many values or too deep brackets, from its brackets and commas outside of strings."""
    outline = _outline(body)
    # A value has at most one key, hence four quotation marks; without this, the split could be large itself.
    many = outline.count(b'"') > 4 * max_values + 4
    outside = b"" if many else b"".join(outline.split(b'"')[::2])
    if many or sum(outside.count(mark) for mark in (b",", b"[", b"{")) > max_values:
        raise RequestError(413, f"the JSON has more than {max_values} values; send less in one request.")
    depth = 0
    for mark in outside.translate(None, b","):
        depth += 1 if mark in b"[{" else -1
        if depth > MAX_DEPTH:
            raise RequestError(400, f"the JSON is nested too deeply; at most {MAX_DEPTH} levels are read.")


def _outline(body: bytes | bytearray) -> bytes:
    """Returns the quotation marks that open and close strings, and all brackets and commas, in their order."""
    parts, start = [], 0
    while start < len(body):
        end = min(start + WINDOW, len(body))
        if body[end - 1] == ord("\\"):
            end = _BACKSLASHES.match(body, end).end() + 1  # type: ignore[union-attr]  # an escape must not be cut in two
        window = body[start:end].replace(rb"\\", b"").replace(rb"\"", b"")
        parts.append(window.translate(None, _PLAIN))
        start = end
    return b"".join(parts)


def _refuse_constant(name: str) -> None:
    raise RequestError(400, f"the body holds {name}, which JSON does not have.")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    known = dict(pairs)
    if len(known) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise RequestError(400, f"an object of the body has the key {key[:60]!r} twice; send each key once.")
    return known


def check_sender(request: Request) -> None:
    """Refuses what a page in a browser could make it send from elsewhere, and bodies that are no JSON and no form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and not kind.endswith("json") and kind != "multipart/form-data":
        raise RequestError(
            415, f"the Content-Type is {kind[:60]!r}, expected application/json or multipart/form-data."
        )
    if "origin" in request.headers:
        raise RequestError(403, "requests of web pages (with an Origin) are not answered.")


class LocalNames:
    """ASGI middleware that answers requests under another name than this machine's own with 403.

    A page of another site that has its name resolved to this machine (DNS rebinding) asks under that name.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands a request on, or refuses it."""
        app = self.app
        if scope["type"] != "lifespan":
            host = next((value for key, value in scope["headers"] if key == b"host"), b"").decode("latin-1")
            name = re.sub(r":\d*$", "", host).strip("[]").lower()
            if name not in LOCAL:
                app = refusal(403, f"this server answers as {LOCAL[1]} only, not as {name[:60]!r}; see --host.")
        await app(scope, receive, send)


class OwnPages:
    """ASGI middleware for pages of our own: requests that pages of other sites make are answered with 403.

    A browser sends `Origin` with whatever may change something; a page's own requests name the host that it is on.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands a request on, or refuses it."""
        app, headers = self.app, dict(scope.get("headers") or ())
        if scope["type"] != "lifespan" and (origin := headers.get(b"origin")):
            if origin.partition(b"://")[2] != headers.get(b"host"):
                app = refusal(403, f"requests of pages of {origin.decode('latin-1')[:60]!r} are not answered.")
        await app(scope, receive, send)


class WithHeaders:
    """ASGI middleware that adds headers to every answer."""

    def __init__(self, app: ASGIApp, headers: Mapping[str, str]) -> None:
        self.app = app
        self.headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands a request on."""

        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                ours = {name for name, _ in self.headers}
                theirs = [header for header in message["headers"] if header[0].lower() not in ours]
                message = {**message, "headers": [*theirs, *self.headers]}
            await send(message)

        await self.app(scope, receive, sent)


class TokenAsked:
    """ASGI middleware that asks for a token: as a bearer token, or as the password that a browser asks for."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands a request on, or answers with 401."""
        app = self.app
        if scope["type"] != "lifespan":
            given = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
            if not token_given(given, self.token):
                app = refusal(401, f"give the token of {TOKEN} as the password; any name will do.")
                app.headers["WWW-Authenticate"] = 'Basic realm="rs-rlhf"'
        await app(scope, receive, send)


def token_given(authorization: str, token: str) -> bool:
    """Whether an `Authorization` header has the token, as a bearer token or as a password (RFC 7617)."""
    kind, _, text = authorization.partition(" ")
    value = text.encode("latin-1", "replace")
    if kind.lower() == "basic":
        try:
            value = base64.b64decode(value, validate=True).partition(b":")[2]
        except ValueError:
            return False
    elif kind != "Bearer":
        return False
    return hmac.compare_digest(value, token.encode())


def split_form(request: Request, body: bytes | bytearray) -> tuple[bytes | bytearray, dict[str, bytes]]:
    """Splits a multipart body into the field `request` and the files by name; any other body is the JSON itself.

    Call it on a worker thread: it takes long for a large form.
    """
    from starlette.exceptions import HTTPException
    from starlette.requests import Request as FormRequest

    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return body, {}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    async def read() -> tuple[str | None, dict[str, bytes]]:
        again = FormRequest(request.scope, receive)
        async with again.form(max_files=10_000, max_fields=10, max_part_size=len(body)) as form:
            parts = {name: await value.read() for name, value in form.multi_items() if not isinstance(value, str)}
            text = form.get("request")
            return text if isinstance(text, str) else None, parts

    try:
        text, parts = asyncio.run(read())
    except (HTTPException, UnicodeDecodeError) as error:
        raise RequestError(400, f"the form cannot be read: {getattr(error, 'detail', error)}.") from None
    if text is None and "request" not in parts:
        raise RequestError(422, "the form has no field `request` with the JSON.")
    return parts["request"] if text is None else text.encode("utf-8", "replace"), parts


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
    """Listens on an address, or raises OptionError, before a model is loaded, which may take minutes."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sends each answer at once; otherwise its body waits 40 ms for the client's ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)  # two sockets can be bound to an address; one can listen
    except (OSError, OverflowError) as error:
        listener.close()
        raise OptionError(f"cannot listen on {host}, port {port} ({error}); choose another --port.", "port") from None
    return listener


def run_pages(app: ASGIApp, listener: socket.socket, said: str) -> None:
    """Serves pages until a signal, and then ends; prints `said` and the address once they are there."""
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            self.force_exit = self.should_exit  # the second time
            self.should_exit = True
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # answers without end are cut off

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            host, port = listener.getsockname()[:2]
            print(f"{said} on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)

    quiet: Any = {"log_level": "warning", "access_log": False, "server_header": False}
    Server(uvicorn.Config(app, timeout_keep_alive=KEEP_ALIVE, timeout_graceful_shutdown=1, **quiet)).run([listener])


@contextmanager
def not_ready(listener: socket.socket, sentence: str) -> Iterator[None]:
    """Answers every request with 503 and the sentence, so that clients ask another server meanwhile."""
    body = json.dumps({"error": sentence}).encode()
    head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: {RETRY_AFTER}\r\n"
    answer = f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    ready = threading.Event()

    def run() -> None:
        while not ready.is_set():
            with suppress(OSError):  # nobody came, or whoever came is gone
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(1.0)
                    connection.recv(2**16)
                    connection.sendall(answer)

    listener.settimeout(0.05)
    thread = threading.Thread(target=run, name="not ready", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ready.set()
        thread.join()
        listener.settimeout(None)
