"""Request handling for the reward server: authentication, admission control, reading, scoring, metrics."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import fields
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from ...data.group import Group
from ...errors import ImageError, RequestError
from ...imagery.sources import ImageOptions
from ...models.pixel_budget import completion_length, estimated_length
from ..base import raise_first, spread
from ..ensemble import EnsembleScorer
from ..http import TOKEN, Limits, check_sender, error_kind, load_json, sentence_of, split_form, token_given
from ..scorer import Scorer
from .batching import MERGED_TOKENS, Batcher, QueueFull
from .wire import ScoreForm, parse_request

DISCARD_SECONDS = 5.0  # for which the rest of a refused request is taken in
HELD_BODIES = 8  # bodies of the largest size that may be in memory at once, all requests together
LARGE = 2**20  # bytes of a body from which on only one is parsed at a time
GONE = 499  # status, as nginx counts it, of a request whose client has gone; nobody sees it but the metrics
BATCHES = 8  # of the scorer's size that are scored in one go

T = TypeVar("T")


class _Body(bytearray):
    """The buffer of a request's body; `held` is what counts for it, also once it is parsed and emptied."""

    held = 0


class Service:
    """What the endpoints share: the scorer behind its queue, which it owns from now on, the limits, and who is inside.

    Beyond `max_pending` requests or `max_queued_tokens` waiting tokens the answer is 429. A body may take
    `read_timeout` seconds.
    """

    def __init__(
        self,
        scorer: Scorer | EnsembleScorer,
        name: str,
        limits: Limits | None = None,
        max_pending: int = 256,
        read_timeout: float = 30.0,
        token: str | None = None,
        max_queued_tokens: int = 4_000_000,
    ) -> None:
        self.limits = limits or Limits()
        self.max_pending, self.read_timeout, self.token = max_pending, read_timeout, token
        self.options: ImageOptions = scorer.parts[0].collator.image_options
        self.card = {"name": name, **scorer.card()}
        numbers = {field.name[4:]: getattr(self.limits, field.name) for field in fields(Limits)}
        self.card["limits"] = numbers | {"image_pixels": self.options.max_image_pixels}
        # Images that need bands or a stretch are read on arrival; what the scorer sees is plain.
        for part in scorer.parts:
            part.collator.image_options = self.options.plain()
        self.metrics = Metrics()
        self.scorer = scorer
        merged = max(MERGED_TOKENS, BATCHES * scorer.parts[0].token_budget)
        self.batcher = Batcher(scorer, max_pending, max_queued_tokens, merged, self.metrics.batch)
        self.large = ThreadPoolExecutor(1, "large bodies")
        self.draining = False
        self.inside = 0
        self.held_bytes = 0

    def check_token(self, request: HttpRequest) -> None:
        """Refuses a request without the token, if one is asked for."""
        if self.token and not token_given(request.headers.get("authorization", ""), self.token):
            raise RequestError(401, f"the bearer token is missing or wrong; set {TOKEN} as the server has it.")

    @contextmanager
    def admitted(self) -> Iterator[_Body]:
        """Counts a request in, or refuses it for want of room; gives the buffer of its body."""
        if self.draining:
            raise RequestError(503, "the server is shutting down; ask another one.")
        if self.inside >= self.max_pending:
            raise RequestError(429, f"{self.inside} requests are waiting already; try again later.")
        self.inside += 1
        self.metrics.pending.set(self.inside)
        body = _Body()
        try:
            yield body
        finally:
            with suppress(BufferError):  # the parser of a request whose client has gone still reads it
                body.clear()
            self.held_bytes -= body.held
            self.inside -= 1
            self.metrics.pending.set(self.inside)

    async def read(self, request: HttpRequest, body: _Body) -> None:
        """Reads a body into a buffer, within the limits."""
        try:
            async with asyncio.timeout(self.read_timeout):
                async for chunk in request.stream():
                    body += chunk
                    body.held += len(chunk)
                    self.held_bytes += len(chunk)
                    if len(body) > self.limits.max_bytes:
                        raise RequestError(413, f"the body is larger than {self.limits.max_bytes} bytes; send less.")
                    if self.held_bytes > HELD_BODIES * self.limits.max_bytes:
                        raise RequestError(429, "the bodies under way fill the server's memory; try again later.")
        except TimeoutError:
            raise RequestError(408, f"the body did not arrive within {self.read_timeout:g} seconds.") from None
        except ClientDisconnect:
            raise RequestError(GONE, "the client went away.") from None

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
        check_sender(request)
        with self.admitted() as body:
            await self.read(request, body)
            return await _unless_gone(request, self._scored(request, body, convert))

    async def _scored(
        self, request: HttpRequest, body: _Body, convert: Callable[[object], object]
    ) -> tuple[Any, list[Any]]:
        def parse() -> tuple[Any, ScoreForm, list[Group | Exception], list[int]]:
            text, parts = split_form(request, body)
            data: Any = load_json(text, self.limits.max_values)
            form, groups = parse_request(convert(data), self.limits, self.options, parts)
            return data.get("model"), form, *self._measured(groups)

        large = len(body) > LARGE
        loop = asyncio.get_running_loop()
        parsed = await (loop.run_in_executor(self.large, parse) if large else run_in_threadpool(parse))
        model, form, groups, tokens = parsed
        body.clear()  # the groups have the images' bytes
        if form.model_hash not in (None, self.card["hash"]):
            here = f"{self.card['name']} with the hash {self.card['hash']}"
            raise RequestError(409, f"the model here is {here}, not the one asked for.")
        if form.on_error == "raise":
            _refuse_first(groups)
        if (total := sum(tokens)) > (most := self.limits.max_tokens):
            raise RequestError(413, f"the request has about {total} tokens, at most {most} are taken; send less.")
        good = [group for group in groups if not isinstance(group, Exception)]
        try:
            scores = await asyncio.wrap_future(self.batcher.submit(good, tokens)) if good else []
        except QueueFull:
            raise RequestError(429, "the queue is full; try again later.") from None
        supply = iter(scores)
        results = [group if isinstance(group, Exception) else next(supply) for group in groups]
        if form.on_error == "raise":
            _refuse_first(results)
        self.metrics.count(results)
        return model, results

    def stds(self, results: Sequence[list[float] | Exception]) -> dict[str, Any]:
        """Returns the part of an answer that says how far several models are apart: `std`, beside `scores`.

        It is `{}` for one model. A client that knows only `scores` reads the combined ones as any other scores.
        """
        if "score_combine" not in self.card:
            return {}
        return {"std": [None if isinstance(row, Exception) else [spread(score) for score in row] for row in results]}

    def _measured(self, groups: Sequence[Group | Exception]) -> tuple[list[Group | Exception], list[int]]:
        """Returns groups, with the error of those whose images have no readable header, and the others' tokens."""
        checked: list[Group | Exception] = []
        tokens = []
        for group in groups:
            if not isinstance(group, Exception):
                try:
                    lengths = [
                        estimated_length(group, part.processor, part.collator.image_options)
                        for part in self.scorer.parts
                    ]
                    tokens.append(max(lengths) + sum(map(completion_length, group.completions)))
                except ImageError as error:
                    group = error
            checked.append(group)
        return checked, tokens


async def _unless_gone(request: HttpRequest, work: Coroutine[Any, Any, T]) -> T:
    """Returns the outcome of work for a request whose body has been read; cancels it when the client goes away."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise RequestError(GONE, "the client went away.")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        del working, leaving  # an error's traceback has this frame: with the task that has the error, a cycle


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
