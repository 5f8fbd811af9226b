"""Request handling for the reward server: authentication, admission control, reading, scoring, metrics."""

import asyncio
import hmac
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from ..data.group import Group
from ..errors import RequestError
from ..imagery.sources import ImageOptions
from .base import raise_first
from .batching import Batcher, QueueFull
from .cards import model_hash, model_settings
from .http import TOKEN, Limits, error_kind, load_json, sentence_of, split_form
from .scorer import Scorer
from .wire import ScoreForm, parse_request

DISCARD_SECONDS = 5.0  # for which the rest of a refused request is taken in
HELD_BODIES = 16  # bodies of the largest size that may be in memory at once, all requests together


class Service:
    """What the endpoints share: the scorer behind its queue, which it owns from now on, the limits, and who is inside.

    More than `max_pending` requests at once are answered with 429; a body may take `read_timeout` seconds to arrive.
    """

    def __init__(
        self,
        scorer: Scorer,
        name: str,
        limits: Limits | None = None,
        max_pending: int = 256,
        read_timeout: float = 30.0,
        token: str | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.max_pending, self.read_timeout, self.token = max_pending, read_timeout, token
        self.options: ImageOptions = scorer.collator.image_options
        self.card = {"name": name, "hash": model_hash(scorer), **model_settings(scorer)}
        numbers = {field.name[4:]: getattr(self.limits, field.name) for field in fields(Limits)}
        self.card["limits"] = numbers | {"image_pixels": self.options.max_image_pixels}
        # Images that need bands or a stretch are read on arrival; what the scorer sees is plain.
        scorer.collator.image_options = replace(
            self.options, bands=None, stretch=None, stretch_range=None, nodata=None, sensors=(), allowed_hosts=()
        )
        self.metrics = Metrics()
        self.batcher = Batcher(scorer, max_pending, self.metrics.batch)
        self.draining = False
        self.inside = 0
        self.held_bytes = 0

    def check_token(self, request: HttpRequest) -> None:
        """Refuses a request without the token, if one is asked for."""
        given = request.headers.get("authorization", "").encode("latin-1", "replace")
        if self.token and not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
            raise RequestError(401, f"the bearer token is missing or wrong; set {TOKEN} as the server has it.")

    @contextmanager
    def admitted(self) -> Iterator[bytearray]:
        """Counts a request in, or refuses it for want of room; gives the buffer of its body."""
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

    async def read(self, request: HttpRequest, body: bytearray) -> None:
        """Reads a body into a buffer, within the limits."""
        try:
            async with asyncio.timeout(self.read_timeout):
                async for chunk in request.stream():
                    body += chunk
                    self.held_bytes += len(chunk)
                    if len(body) > self.limits.max_bytes:
                        raise RequestError(413, f"the body is larger than {self.limits.max_bytes} bytes; send less.")
                    if self.held_bytes > HELD_BODIES * self.limits.max_bytes:
                        raise RequestError(429, "the bodies under way fill the server's memory; try again later.")
        except TimeoutError:
            raise RequestError(408, f"the body did not arrive within {self.read_timeout:g} seconds.") from None
        except ClientDisconnect:
            raise RequestError(400, "the client went away.") from None

    async def discard(self, request: HttpRequest) -> None:
        """Takes in what is still coming of a refused request: closing on it would lose the answer on its way."""
        try:
            async with asyncio.timeout(min(DISCARD_SECONDS, self.read_timeout)):
                async for _ in request.stream():
                    pass
        except (TimeoutError, ClientDisconnect, RuntimeError):  # RuntimeError: starlette's stream has ended
            pass

    async def score(
        self, request: HttpRequest, convert: Callable[[object], object] = lambda data: data
    ) -> tuple[Any, list[Any]]:
        """Returns a request's JSON, which `convert` makes one of `/v1/score`, and each group's scores or error.

        Whatever is wrong with it raises RequestError; with `on_error` "raise" also the first group's error.
        """
        self.check_token(request)
        with self.admitted() as body:
            await self.read(request, body)
            text, parts = await split_form(request, bytes(body))

            def parse() -> tuple[Any, ScoreForm, list[Group | Exception]]:
                data = load_json(text)
                return data, *parse_request(convert(data), self.limits, self.options, parts)

            try:
                data, form, groups = await run_in_threadpool(parse)
            except RecursionError:
                raise RequestError(400, "the JSON is nested too deeply.") from None
            if form.model_hash not in (None, self.card["hash"]):
                here = f"{self.card['name']} with the hash {self.card['hash']}"
                raise RequestError(409, f"the model here is {here}, not the one asked for.")
            if form.on_error == "raise":
                _refuse_first(groups)
            good = [group for group in groups if not isinstance(group, Exception)]
            try:
                scores = await asyncio.wrap_future(self.batcher.submit(good)) if good else []
            except QueueFull:
                raise RequestError(429, "the queue is full; try again later.") from None
            supply = iter(scores)
            results = [group if isinstance(group, Exception) else next(supply) for group in groups]
            if form.on_error == "raise":
                _refuse_first(results)
            self.metrics.count(results)
            return data, results


def _refuse_first(results: Sequence[object]) -> None:
    try:
        raise_first(results)
    except Exception as error:
        status = 500 if error_kind(error) in ("score", "server") else 422
        raise RequestError(status, sentence_of(error)) from error


class Metrics:
    """Counters in Prometheus' form; each service has its own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        to: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("rs_rlhf_requests", "Scoring requests by status.", ["path", "status"], **to)
        self.groups = Counter("rs_rlhf_groups", "Groups by result: scored, or the kind of error.", ["result"], **to)
        self.completions = Counter("rs_rlhf_completions", "Completions scored.", **to)
        self.pending = Gauge("rs_rlhf_pending_requests", "Requests being read, waiting or being scored.", **to)
        self.seconds = Histogram("rs_rlhf_request_seconds", "Time to the answer of a scoring request.", **to)
        sizes = [2**k for k in range(10)]
        self.merged = Histogram("rs_rlhf_merged_requests", "Requests scored together.", buckets=sizes, **to)
        self.merged_groups = Histogram("rs_rlhf_merged_groups", "Groups scored together.", buckets=sizes, **to)

    def batch(self, requests: int, groups: int) -> None:
        """Records a merged batch."""
        self.merged.observe(requests)
        self.merged_groups.observe(groups)

    def count(self, results: Sequence[list[float] | Exception]) -> None:
        """Records the results of a request's groups."""
        for result in results:
            if isinstance(result, Exception):
                self.groups.labels(error_kind(result)).inc()
            else:
                self.groups.labels("scored").inc()
                self.completions.inc(len(result))
