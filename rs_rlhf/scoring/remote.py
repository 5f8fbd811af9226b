"""`RemoteScorer`: the client of reward servers (`rs-rlhf serve`), called as [`Scorer`] is.

Images are found and read here, with this machine's paths and options, and sent losslessly: a plain PNG or JPEG as the
file it is, anything else as a PNG of what the model should see, already within its pixel budget. Servers take turns;
one that fails is skipped, and only if none has answered for minutes does scoring stop, with the cause. Every request
names the model's hash, so that a server that was restarted with another model is refused rather than mixed in.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import random
import threading
import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.group import Group, ImageSource
from ..errors import DataError, ImageError, ModelMismatch, OptionError, ScorerUnavailable
from ..imagery.identity import source_key
from ..imagery.raster import read_image
from ..imagery.sources import ImageOptions, locate
from ..models.pixel_budget import completion_length, fit_pixel_budget, text_length
from ..models.policies.chat_client import retry_after
from .base import ScoreTexts, ahead, raise_first, scoring_progress, with_spread
from .cards import filled_options
from .http import TOKEN, error_from, needs_options, sentence_of

if TYPE_CHECKING:
    import httpx

REQUEST_GROUPS = 64
REQUEST_BYTES = 8 * 2**20  # of images and texts, after which a request is sent
REQUEST_TOKENS = 131_072  # estimated, of images and texts, that a request of several groups has at most
LONGEST_WAIT = 10.0  # seconds between two rounds at most, unless a server asks for more
ASKED_WAIT = 60.0  # seconds that a server may ask for (Retry-After) at most
DOWN = 10.0  # seconds for which a server that failed is asked last
CONNECT = 5.0  # seconds to wait for a connection at most
UNUSABLE = "the server's answer does not have one finite score per completion."


@dataclass
class _Chunk:
    """One request: parts of groups with the table of their images."""

    parts: list[tuple[int, int]] = field(default_factory=list)  # (group, its first completion) of each entry
    groups: list[dict] = field(default_factory=list)  # JSON
    images: list[dict] = field(default_factory=list)  # JSON of the distinct images
    places: dict[Hashable, int] = field(default_factory=dict)  # of the images in the table, by their key
    bytes: int = 0  # about how large it is
    tokens: int = 0  # likewise, at most


class RemoteScorer(ScoreTexts):
    """Scores completions on one or more reward servers.

    Args:
        urls (`str` or `list[str]`): Addresses such as `"http://127.0.0.1:8000"`, in a string separated by commas. All
            must serve the same model.
        timeout (`float`): Seconds to wait for one answer.
        wait (`float`): Seconds for which servers are asked again while none answers. Then scoring stops.
        retries (`int`, *optional*): Ask again so many times instead. Then, with `on_error="return"`, the groups have
            the error and scoring goes on.
        backoff (`float`): Seconds before the second round, doubled for each further one.
        token (`str`, *optional*): Bearer token; by default that of the environment variable RS_RLHF_SERVER_TOKEN.
        expected_hash (`str`, *optional*): Hash that `/v1/model` must give; by default whatever it gives first.
        image_options ([`ImageOptions`], *optional*): How images are found and read here; what they leave open is the
            served model's.

    Example:
        >>> from rs_rlhf.scoring.remote import RemoteScorer  # doctest: +SKIP
        >>> scorer = RemoteScorer("http://127.0.0.1:8000")  # doctest: +SKIP
        >>> scorer.score(images=["a.png"], completions=[["a river.", "a forest."]])  # doctest: +SKIP
        [[1.73, 0.41]]
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        timeout: float = 300.0,
        wait: float = 600.0,
        retries: int | None = None,
        backoff: float = 1.0,
        token: str | None = None,
        expected_hash: str | None = None,
        image_options: ImageOptions | None = None,
    ) -> None:
        listed = urls.split(",") if isinstance(urls, str) else list(urls)
        self.urls = [url.strip().rstrip("/") for url in listed if url.strip()]
        if not self.urls or not all(url.startswith(("http://", "https://")) for url in self.urls):
            raise OptionError(f"urls is {urls!r}, expected one or more addresses such as http://127.0.0.1:8000.")
        self.timeout, self.wait, self.retries, self.backoff = timeout, wait, retries, backoff
        self.token = token if token is not None else os.environ.get(TOKEN) or None
        self.model_hash = expected_hash
        self.image_options = image_options or ImageOptions()
        self.__setstate__({})

    def __getstate__(self) -> dict[str, Any]:
        """What a copy in another process needs: no open connection; `model_hash` goes along."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Starts without a connection."""
        vars(self).update(state)
        self._client: httpx.Client | None = None
        self._pid, self._turn, self._lock = -1, random.randrange(len(self.urls)), threading.Lock()
        self._card: dict[str, Any] | None = None
        self._down: dict[str, float] = {}
        self._silent_since: float | None = None  # no server has answered since, whoever asked

    def model(self) -> dict[str, Any]:
        """Returns what `/v1/model` says, asked once; raises ModelMismatch if its hash is not the expected one."""
        if self._card is None:
            card = self._ask("GET", "/v1/model")
            if not isinstance(card, dict) or not {"hash", "limits", "image_options", "pixel_budget"} <= set(card):
                raise ScorerUnavailable(f"{', '.join(self.urls)}: the answer to /v1/model is not of a reward server.")
            if self.model_hash not in (None, card["hash"]):
                raise ModelMismatch(f"the server's model has the hash {card['hash']}, expected {self.model_hash}.")
            self.model_hash, self._card = card["hash"], card
        return self._card

    def score_groups(
        self, groups: Sequence[Group], *, on_error: str = "raise", show_progress: bool | None = None
    ) -> list[Any]:
        """Scores groups, see [`GroupScorer.score_groups`]; images are read when their request is due.

        Raises ScorerUnavailable if no server gave an answer, which is no group's error, and ModelMismatch.
        """
        if on_error not in ("raise", "return"):
            raise OptionError(f'on_error must be "raise" or "return", got {on_error!r}.')
        scores: list[Any] = [[0.0] * len(group.completions) for group in groups]
        self._silent_since = None
        try:
            if any(group.completions for group in groups):
                self.model()
        except ScorerUnavailable as error:
            if on_error == "raise" or self.retries is None:
                raise
            return [error if group.completions else [] for group in groups]
        with scoring_progress(len(groups), "group", show_progress, many=256) as advance:
            chunks = self._chunks(groups, scores, on_error)
            for chunk, results in ahead(self._scored, chunks, 2 * len(self.urls)):
                if on_error == "raise":
                    raise_first(results)
                for (i, first), result in zip(chunk.parts, results, strict=True):
                    if isinstance(result, Exception):
                        scores[i] = result
                    elif not isinstance(scores[i], Exception):
                        scores[i][first : first + len(result)] = result
                advance(len(chunk.parts))
        return scores

    def _chunks(self, groups: Sequence[Group], scores: list, on_error: str) -> Iterator[_Chunk]:
        """Yields requests of the servers' size; a group whose image cannot be read has its error entered."""
        limits = self.model()["limits"]
        chunk = _Chunk()
        for i, group in enumerate(groups):
            try:
                for first in range(0, len(group.completions), limits["completions"]):
                    part = replace(group, completions=group.completions[first : first + limits["completions"]])
                    tokens = self._tokens(part)
                    full = len(chunk.groups) >= min(REQUEST_GROUPS, limits["groups"])
                    full |= chunk.bytes >= min(REQUEST_BYTES, limits["bytes"] // 4)
                    full |= chunk.tokens + tokens > min(REQUEST_TOKENS, limits.get("tokens", REQUEST_TOKENS))
                    if chunk.groups and full:
                        yield chunk
                        chunk = _Chunk()
                    self._add(chunk, i, first, part)
                    chunk.tokens += tokens
            except (DataError, ImageError) as error:
                if on_error == "raise":
                    raise
                scores[i] = error
        if chunk.groups:
            yield chunk

    def _tokens(self, group: Group) -> int:
        """Estimates the tokens of a group as the server does, but for images, which may be as large as they can."""
        card, budget = self.model(), self.model()["pixel_budget"]
        each = budget["max_pixels"] // budget["factor"] ** 2 if budget else card["image_tokens"]
        return text_length(group) + len(group.images) * each + sum(map(completion_length, group.completions))

    def _add(self, chunk: _Chunk, i: int, first: int, group: Group) -> None:
        where = group.where or f"row {group.row if group.row >= 0 else i}"
        refs = []
        for source in group.images:
            key = source_key(source)
            if key not in chunk.places:
                image = self._encode(source, where)
                chunk.places[key] = len(chunk.images)
                chunk.images.append(image)
                chunk.bytes += len(image["base64"])
            refs.append({"ref": chunk.places[key]})
        entry = {"prompt": group.prompt, "completions": group.completions, "images": refs, "name": where[:500]}
        chunk.bytes += len(json.dumps(entry))
        chunk.parts.append((i, first))
        chunk.groups.append(entry)

    def _encode(self, source: ImageSource, where: str) -> dict[str, Any]:
        """Returns the JSON of one image: the file as it is, or a PNG of what the model should see."""
        card = self.model()
        rendered = getattr(source, "mode", "") == "RGB"  # a picture already: its bands have been chosen
        options = self.image_options if rendered else filled_options(self.image_options, card["image_options"])
        options = options.of_image(source)
        located, _ = locate(source, options, where)
        if isinstance(located, bytes | Path) and not needs_options(options):
            content = located if isinstance(located, bytes) else located.read_bytes()
            if content[:8] == b"\x89PNG\r\n\x1a\n" or content[:3] == b"\xff\xd8\xff":
                return {"base64": base64.b64encode(content).decode()}
        image = read_image(source, options, where)
        if card["pixel_budget"]:  # else the server's processor resizes
            image = fit_pixel_budget(image, **card["pixel_budget"], where=where)
        stream = io.BytesIO()
        image.save(stream, "PNG", compress_level=1)
        return {"base64": base64.b64encode(stream.getvalue()).decode(), "ready": True}

    def _scored(self, chunk: _Chunk) -> tuple[_Chunk, Sequence[list[float] | Exception]]:
        """Asks for a request's scores; the result of each part is its scores or an error."""
        request = {"groups": chunk.groups, "images": chunk.images, "on_error": "return", "model_hash": self.model_hash}
        try:
            answer = self._ask("POST", "/v1/score", request)
            scores = answer.get("scores") if isinstance(answer, dict) else None
            if not isinstance(scores, list) or len(scores) != len(chunk.groups):
                raise ScorerUnavailable(UNUSABLE)
            stds = answer.get("std") or [None] * len(scores)  # of several models that the server combines
            if not isinstance(stds, list) or len(stds) != len(scores):
                raise ScorerUnavailable(UNUSABLE)
            return chunk, [_result(*entry) for entry in zip(scores, stds, chunk.groups, strict=True)]
        except (ScorerUnavailable, DataError) as error:
            if isinstance(error, ScorerUnavailable) and self.retries is None:
                raise
            return chunk, [error] * len(chunk.parts)

    def _ask(self, method: str, path: str, request: dict | None = None) -> Any:
        """Asks the servers in turn until one answers, or one refuses for a reason that trying again cannot mend."""
        import httpx

        client = self._connections()
        body = None if request is None else json.dumps(request).encode()
        for turn in count():
            start, cause, asked = time.monotonic(), "", 0.0
            for url in self._in_turn():
                try:
                    reply = client.request(method, url + path, content=body)
                    if reply.status_code == 200:
                        answer = json.loads(reply.content)
                        self._silent_since = None
                        return answer
                except (httpx.HTTPError, ValueError) as error:
                    cause = f"{url}: {type(error).__name__}: {sentence_of(error)}"
                    self._down[url] = time.monotonic() + DOWN
                    continue
                cause = f"{url} answered {reply.status_code}: {_reason(reply)}"
                if reply.status_code == 409:
                    raise ModelMismatch(f"{cause} Scores of two models must not be mixed; expected {self.model_hash}.")
                if reply.status_code in (401, 403, 404, 405):
                    raise ScorerUnavailable(cause)
                if reply.status_code < 500 and reply.status_code not in (408, 429):
                    raise DataError(f"the reward server refused the request ({reply.status_code}): {_reason(reply)}")
                asked = max(asked, retry_after(reply.headers))
            if self._silent_since is None:
                self._silent_since = start
            left = self._silent_since + self.wait - time.monotonic()
            if left <= 0 if self.retries is None else turn >= self.retries:
                tried = f"for {self.wait:g} seconds" if self.retries is None else f"in {turn + 1} tries"
                raise ScorerUnavailable(f"no reward server answered {tried}; the last: {cause}")
            pause = min(self.backoff * 2 ** min(turn, 10), LONGEST_WAIT) * random.uniform(0.8, 1.2)
            pause = max(pause, min(asked, ASKED_WAIT))
            time.sleep(pause if self.retries is not None else min(pause, left))

    def _connections(self) -> httpx.Client:
        import httpx

        with self._lock:
            if self._client is None or self._pid != os.getpid():  # a connection must not be shared after a fork
                headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
                headers["Content-Type"] = "application/json"
                timeout = httpx.Timeout(self.timeout, connect=min(CONNECT, self.timeout))
                limits = httpx.Limits(max_keepalive_connections=4 * len(self.urls))
                self._client = httpx.Client(timeout=timeout, headers=headers, limits=limits, trust_env=False)
                self._pid = os.getpid()
            return self._client

    def _in_turn(self) -> list[str]:
        with self._lock:
            self._turn = (self._turn + 1) % len(self.urls)
            turn = self.urls[self._turn :] + self.urls[: self._turn]
        now = time.monotonic()
        return sorted(turn, key=lambda url: self._down.get(url, 0.0) > now)


def _result(entry: Any, std: Any, group: dict) -> list[float] | Exception:
    """Returns a group's entry of an answer: an error, or one finite number per completion, perhaps with its spread."""
    if isinstance(entry, dict) and isinstance(entry.get("error"), str):
        return error_from(str(entry.get("kind")), entry["error"])
    for numbers in (entry,) if std is None else (entry, std):
        finite = isinstance(numbers, list) and all(isinstance(x, float) and math.isfinite(x) for x in numbers)
        if not finite or len(numbers) != len(group["completions"]):
            raise ScorerUnavailable(UNUSABLE)
    return with_spread(entry, std)


def _reason(reply: httpx.Response) -> str:
    try:
        return sentence_of(json.loads(reply.content)["error"])
    except (ValueError, KeyError, TypeError):
        return sentence_of(reply.reason_phrase or "no reason given")
