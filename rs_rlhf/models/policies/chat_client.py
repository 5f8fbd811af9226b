"""A client of OpenAI-compatible chat endpoints: messages in, the text of one reply out, or one sentence.

Judges and `EndpointPolicy` ask through it. What may pass (no connection, 408, 429, 5xx) is tried again, after a wait
that doubles or that the server asks for; everything else stops at once. No reply is made up.

Left out: streaming, tools, log-probabilities, and a `Retry-After` that is a date rather than seconds.
"""

from __future__ import annotations

import base64
import io
import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

from ...data.group import Group, ImageSource, completion_text
from ...errors import EndpointError, OptionError
from ...imagery.raster import ImageOptions, read_image

LONGEST_WAIT = 60.0  # seconds between two tries at most, whatever the server asks for
_PATH = "/chat/completions"


def endpoint_address(url: str) -> str:
    """Returns the base address (`…/v1`), given that or the full address of the chat completions; an [`OptionError`]
    for others.
    """
    if not url.startswith(("http://", "https://")):
        expected = "expected an address such as http://localhost:8000/v1"
        raise OptionError(f"the endpoint is {url!r:.80}, {expected}.", "endpoint")
    return url.rstrip("/").removesuffix(_PATH)


def is_endpoint(model: str, endpoint: str | None = None) -> bool:
    """Whether a model is behind an address, where nobody can look at its config or its processor."""
    return endpoint is not None or model.startswith(("http://", "https://"))


class ChatClient:
    """A client that any number of threads may use; a context manager.

    Args:
        url (`str`): Base address (`…/v1`) or the full address of the chat completions.
        key_variables (`tuple` of `str`): Environment variables that may hold the key; the first that is set is used.
        timeout (`float`): Seconds that a request may take.
        tries (`int`): Attempts at a request.
        wait (`float`): Seconds before the second attempt; twice as long before each further one.

    Raises:
        OptionError: The address is none, or the package `openai` is not installed.
    """

    def __init__(self, url: str, key_variables: tuple[str, ...], timeout: float, tries: int, wait: float) -> None:
        try:
            from openai import Omit, OpenAI
        except ImportError:
            raise OptionError("a chat endpoint needs openai; `pip install rs-rlhf[endpoint]`.") from None
        key = next(filter(None, map(os.environ.get, key_variables)), None)
        base = endpoint_address(url)
        # Without a key the client would look for one that is not meant for this server.
        self._client = OpenAI(base_url=base, api_key=key or "none", timeout=timeout, max_retries=0)
        self._headers = {} if key else {"Authorization": Omit()}
        self.address, self.tries, self.wait = base + _PATH, tries, wait

    def __enter__(self) -> ChatClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, body: Mapping[str, Any]) -> str:
        """Asks for one reply and returns the text of its first choice, empty if all tokens went into thoughts.

        `body` is the request; fields that OpenAI does not know are in its `extra_body`. An [`EndpointError`] has the
        last HTTP status.
        """
        from openai import APIConnectionError, APIStatusError

        post = self._client.chat.completions.with_raw_response.create
        detail, status, asked_wait = "", None, 0.0
        for attempt in range(self.tries):
            if attempt:
                time.sleep(min(max(self.wait * 2 ** (attempt - 1), asked_wait), LONGEST_WAIT))
                if self._client.is_closed():
                    break
            try:
                return _content(post(**body, extra_headers=self._headers).http_response.text, self.address)
            except APIStatusError as error:
                status = error.status_code
                detail = f"answers {status} ({error.response.text.strip()[:200] or error.response.reason_phrase})"
                if status < 500 and status not in (408, 429):
                    raise EndpointError(f"{self.address} {detail}", status) from None
                asked_wait = retry_after(error.response.headers)
            except APIConnectionError as error:
                cause = error.__cause__ or error
                detail, status, asked_wait = f"cannot be reached ({type(cause).__name__}: {cause})", None, 0.0
        tries = "1 try" if self.tries == 1 else f"{self.tries} tries"
        raise EndpointError(f"{self.address} {detail}, {tries} in all", status)


def chat_messages(
    group: Group, options: ImageOptions, shown: Callable[[Image.Image], Image.Image] | None = None
) -> list[dict[str, Any]]:
    """Returns a group's prompt as an endpoint takes it, images as data URLs in their places.

    Turns without images are plain text, which every server takes for system turns. `shown` changes each image before
    it is sent.

    Raises:
        ImageError: An image cannot be read; names its file and row.
    """
    images = iter(group.images)
    messages = []
    for message in group.prompt:
        content: Any = completion_text([message])
        if any(part["type"] == "image" for part in message["content"]):
            content = [
                image_part(next(images), options, group.where, shown) if part["type"] == "image" else dict(part)
                for part in message["content"]
            ]
        messages.append({"role": message["role"], "content": content})
    return messages


def image_part(
    image: ImageSource,
    options: ImageOptions,
    where: str = "",
    shown: Callable[[Image.Image], Image.Image] | None = None,
) -> dict[str, Any]:
    """Returns an image, read with these options and changed by `shown`, as a message's part: a PNG in a data URL."""
    picture, buffer = read_image(image, options, where), io.BytesIO()
    (shown(picture) if shown else picture).save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def _content(reply: str, address: str) -> str:
    """Returns the text of the first choice of a reply."""
    try:
        choice = json.loads(reply)["choices"][0]
        content = choice["message"].get("content")
        if content is None and choice.get("finish_reason") == "length":
            content = ""  # the tokens went into thoughts: an answer that was never given, and will not be next time
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        content = None
    if not isinstance(content, str):
        raise EndpointError(f"{address} answers 200, but without a text as its choice ({reply[:200]!r})", 200)
    return content


def retry_after(headers: Mapping[str, str]) -> float:
    """Returns the seconds that a server asks a client to wait; 0 if it does not, or in another form."""
    try:
        return max(0.0, float(headers.get("retry-after", 0)))
    except ValueError:
        return 0.0
