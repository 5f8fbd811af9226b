"""What stands behind the reward server's endpoints: who may come in, how much at once, and what is counted.

A request is admitted (token, shutdown, room), read within its limits, turned into groups on a worker thread, and
scored by `batching`. This module knows requests and answers but no addresses; those are `server`'s.

Left out: limits per client, and a queue on disk.
"""

import asyncio
import hmac
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from ..errors import RequestError
from ..imagery.raster import ImageOptions
from .batching import Batcher, QueueFull, model_hash, model_settings
from .wire import TOKEN, Limits, Request, error_kind, load_json, parse_request, sentence_of

DISCARD_SECONDS = 5.0  # for which the rest of a refused request is taken in
HELD_BODIES = 16  # bodies of the largest size that may be in memory at once, all requests together


class Service:
    """What the endpoints share: the scorer behind its queue, the limits, and who is inside.

    Args:
        scorer ([`Scorer`]): The scorer; used by the service alone from now on.
        name (`str`): What the model is called.
        limits ([`Limits`]): Of one request.
        max_pending (`int`): Requests inside at once; more are answered with 429.
        read_timeout (`float`): Seconds that a body may take to arrive.
        token (`str`, *optional*): The bearer token to ask for.
    """

    def __init__(
        self,
        scorer: Any,
        name: str,
        limits: Limits | None = None,
        *,
        max_pending: int = 256,
        read_timeout: float = 30.0,
        token: str | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.max_pending, self.read_timeout, self.token = max_pending, read_timeout, token
        self.options: ImageOptions = scorer.collator.image_options
        self.card = {"name": name, "hash": model_hash(scorer), **model_settings(scorer)}
        self.card["limits"] = asdict(self.limits) | {"image_pixels": self.options.max_image_pixels}
        # Images that need bands or a stretch are read on arrival; what the scorer sees is plain.
        scorer.collator.image_options = replace(
            self.options, bands=None, stretch=None, stretch_range=None, nodata=None, allowed_hosts=()
        )
        self.metrics = Metrics()
        self.batcher = Batcher(scorer, max_pending, self.metrics.batch)
        self.draining = False
        self.inside = 0
        self.held_bytes = 0

    def check_token(self, request: Any) -> None:
        """Refuses a request without the token, where one is asked for."""
        given = request.headers.get("authorization", "").encode("latin-1", "replace")
        if self.token and not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
            raise RequestError(401, f"the bearer token is missing or wrong; set {TOKEN} as the server has it.")

    @contextmanager
    def admitted(self) -> Any:
        """Counts a request in, or refuses it for want of room; gives the place for its body."""
        if self.draining:
            raise RequestError(503, "the server is shutting down; ask another one.")
        if self.inside >= self.max_pending:
            raise RequestError(429, f"{self.inside} requests are waiting already; try again later.")
        self.inside += 1
        self.metrics.pending.set(self.inside)
        body = bytearray()
        try:
            yield body
        finally:
            self.held_bytes -= len(body)
            self.inside -= 1
            self.metrics.pending.set(self.inside)

    async def read(self, request: Any, body: bytearray) -> None:
        """Reads a body within the limits.

        Args:
            request (`starlette.requests.Request`): The request.
            body (`bytearray`): The place for it.
        """
        from starlette.requests import ClientDisconnect

        try:
            async with asyncio.timeout(self.read_timeout):
                async for chunk in request.stream():
                    body += chunk
                    self.held_bytes += len(chunk)
                    if len(body) > self.limits.bytes:
                        raise RequestError(413, f"the body is larger than {self.limits.bytes} bytes; send less.")
                    if self.held_bytes > HELD_BODIES * self.limits.bytes:
                        raise RequestError(429, "the bodies under way fill the server's memory; try again later.")
        except TimeoutError:
            raise RequestError(408, f"the body did not arrive within {self.read_timeout:g} seconds.") from None
        except ClientDisconnect:
            raise RequestError(400, "the client went away.") from None

    async def discard(self, request: Any) -> None:
        """Takes in what is still coming of a refused request: closing on it would lose the answer on its way."""
        from starlette.requests import ClientDisconnect

        try:
            async with asyncio.timeout(min(DISCARD_SECONDS, self.read_timeout)):
                async for _ in request.stream():
                    pass
        except (TimeoutError, ClientDisconnect, RuntimeError):  # starlette's word for a stream that has ended
            pass

    async def score(self, request: Any, convert: Callable[[Any], Any]) -> tuple[Any, Request, list]:
        """Answers a scoring request.

        Args:
            request (`starlette.requests.Request`): The request.
            convert (function): Turns its JSON into the form of `wire`.

        Returns:
            `tuple`: the JSON, the request, and for each group its scores or its error.

        Raises:
            RequestError: Whatever is wrong with it; with `on_error` "raise" also the first group's error.
        """
        from starlette.concurrency import run_in_threadpool

        self.check_token(request)
        with self.admitted() as body:
            await self.read(request, body)
            text, parts = await _form(request, bytes(body), self.limits)

            def parse() -> tuple[Any, Request]:
                data = load_json(text)
                return data, parse_request(convert(data), self.limits, self.options, parts)

            try:
                data, parsed = await run_in_threadpool(parse)
            except RecursionError:
                raise RequestError(400, "the JSON is nested too deeply.") from None
            if parsed.model_hash not in (None, self.card["hash"]):
                here = f"{self.card['name']} with the hash {self.card['hash']}"
                raise RequestError(409, f"the model here is {here}, not the one asked for.")
            results = parsed.groups
            if parsed.on_error == "raise":
                _raise_first(results)
            places = [i for i, group in enumerate(results) if not isinstance(group, Exception)]
            if places:
                try:
                    future = self.batcher.submit([results[i] for i in places])
                except QueueFull:
                    raise RequestError(429, "the queue is full; try again later.") from None
                for i, scores in zip(places, await asyncio.wrap_future(future), strict=True):
                    results[i] = scores
            if parsed.on_error == "raise":
                _raise_first(results)
            self.metrics.count(results)
            return data, parsed, results


def _raise_first(results: Sequence[Any]) -> None:
    error = next((result for result in results if isinstance(result, Exception)), None)
    if error is not None:
        status = 500 if error_kind(error) in ("score", "server") else 422
        raise RequestError(status, sentence_of(error)) from error


async def _form(request: Any, body: bytes, limits: Limits) -> tuple[bytes, dict[str, bytes]]:
    """Takes a multipart body apart: the field `request`, and the files by name; any other body is the JSON itself."""
    from starlette.exceptions import HTTPException
    from starlette.requests import Request as HttpRequest

    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return body, {}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    again = HttpRequest(request.scope, receive)
    try:
        async with again.form(max_files=10_000, max_fields=10, max_part_size=limits.bytes) as form:
            parts = {name: await value.read() for name, value in form.multi_items() if not isinstance(value, str)}
            text = form.get("request")
    except (HTTPException, UnicodeDecodeError) as error:
        raise RequestError(400, f"the form cannot be read: {getattr(error, 'detail', error)}.") from None
    if text is None:
        raise RequestError(422, "the form has no field `request` with the JSON.")
    return (text.encode("utf-8", "replace") if isinstance(text, str) else parts["request"]), parts


class Metrics:
    """Counters in Prometheus' form; each service has its own registry."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        on: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("rs_rlhf_requests", "Scoring requests by status.", ["path", "status"], **on)
        self.groups = Counter("rs_rlhf_groups", "Groups by result: scored, or the kind of error.", ["result"], **on)
        self.completions = Counter("rs_rlhf_completions", "Completions scored.", **on)
        self.pending = Gauge("rs_rlhf_pending_requests", "Requests being read, waiting or being scored.", **on)
        self.seconds = Histogram("rs_rlhf_request_seconds", "Time to the answer of a scoring request.", **on)
        sizes = [2**k for k in range(10)]
        self.merged = Histogram("rs_rlhf_merged_requests", "Requests scored together.", buckets=sizes, **on)
        self.merged_groups = Histogram("rs_rlhf_merged_groups", "Groups scored together.", buckets=sizes, **on)

    def batch(self, requests: int, groups: int) -> None:
        """Records a merged batch."""
        self.merged.observe(requests)
        self.merged_groups.observe(groups)

    def count(self, results: Sequence[Any]) -> None:
        """Records the results of a request's groups."""
        for result in results:
            if isinstance(result, Exception):
                self.groups.labels(error_kind(result)).inc()
            else:
                self.groups.labels("scored").inc()
                self.completions.inc(len(result))
