"""The client of an OpenAI-compatible chat endpoint: messages in, the text of one reply out, or one clear sentence.

Judges ask through it, and so does a policy that runs elsewhere. What may pass (no connection, 408, 429, 5xx) is tried
again, after a wait that doubles or that the server asks for; everything else stops at once. No reply is made up.

Left out: streaming, tools, log-probabilities, and a `Retry-After` that is a date rather than seconds.
"""

from __future__ import annotations

import base64
import io
import os
import time
from typing import Any

from ...data.group import Group, completion_text
from ...errors import EndpointError, OptionError
from ...imagery.raster import ImageOptions, read_image

LONGEST_WAIT = 60.0  # seconds between two tries at most, whatever the server asks for


def endpoint_address(url: str) -> str:
    """Returns the address that is asked, given the base address (`…/v1`) or the address itself.

    Raises:
        ValueError: It does not begin with http:// or https://.
    """
    if not url.startswith(("http://", "https://")):
        raise OptionError(f"the endpoint is {url!r}, expected an address such as http://localhost:8000/v1.")
    url = url.rstrip("/")
    return url if url.endswith("/chat/completions") else url + "/chat/completions"


def endpoint_client(timeout: float, key_variables: tuple[str, ...]) -> Any:
    """Opens an `httpx.Client`, to be used by any number of threads and closed by the caller.

    Args:
        timeout (`float`): Seconds that a request may take.
        key_variables (`tuple` of `str`): Environment variables that may hold the key; the first that is set is used.
    """
    import httpx

    key = next(filter(None, map(os.environ.get, key_variables)), None)
    return httpx.Client(timeout=timeout, headers={"Authorization": f"Bearer {key}"} if key else {})


def ask_endpoint(client: Any, address: str, body: dict[str, Any], *, tries: int, wait: float) -> str:
    """Asks for one reply.

    Args:
        client (`httpx.Client`): From [`endpoint_client`].
        address (`str`): From [`endpoint_address`].
        body (`dict`): The request.
        tries (`int`): Attempts at most.
        wait (`float`): Seconds before the second attempt; twice as long before each further one.

    Returns:
        `str`: The text of the reply's first choice; may be empty, as where a reasoning server has spent all tokens on
        its thoughts.

    Raises:
        EndpointError: No attempt gave a reply, or the reply is not one.
    """
    import httpx

    detail, status, asked_wait = "", None, 0.0
    for attempt in range(tries):
        if attempt:
            time.sleep(min(max(wait * 2 ** (attempt - 1), asked_wait), LONGEST_WAIT))
        try:
            reply = client.post(address, json=body)
        except httpx.RequestError as error:
            detail, status, asked_wait = f"cannot be reached ({type(error).__name__}: {error})", None, 0.0
            continue
        status = reply.status_code
        if status == 200:
            return _content(reply, address)
        detail = f"answers {status} ({reply.text.strip()[:200] or reply.reason_phrase})"
        if status < 500 and status not in (408, 429):
            raise EndpointError(f"{address} {detail}", status)
        asked_wait = _seconds(reply.headers.get("retry-after"))
    raise EndpointError(f"{address} {detail}, {tries} {'try' if tries == 1 else 'tries'} in all", status)


def chat_messages(group: Group, options: ImageOptions) -> list[dict[str, Any]]:
    """Returns a group's prompt as an endpoint takes it, images as data URLs in their places.

    Turns without images are plain text, which every server takes for system turns.

    Raises:
        ImageError: An image cannot be read; names its file and row.
    """
    images = iter(group.images)
    messages = []
    for message in group.prompt:
        content: Any = completion_text([message])
        if any(part["type"] == "image" for part in message["content"]):
            content = [
                {"type": "image_url", "image_url": {"url": data_url(next(images), options, group.where)}}
                if part["type"] == "image"
                else dict(part)
                for part in message["content"]
            ]
        messages.append({"role": message["role"], "content": content})
    return messages


def data_url(image: Any, options: ImageOptions, where: str = "") -> str:
    """Returns an image as a PNG in a data URL.

    Args:
        image: What the row holds.
        options ([`ImageOptions`]): How it is found and read.
        where (`str`): File and row, for messages.
    """
    buffer = io.BytesIO()
    read_image(image, options, where).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _content(reply: Any, address: str) -> str:
    try:
        choice = reply.json()["choices"][0]
        content = choice["message"].get("content")
        if content is None and choice.get("finish_reason") == "length":
            content = ""  # the tokens went into thoughts: an answer that was never given, and will not be next time
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        content = None
    if not isinstance(content, str):
        raise EndpointError(f"{address} answers 200, but without a text as its choice ({reply.text[:200]!r})", 200)
    return content


def _seconds(value: str | None) -> float:
    try:
        return max(0.0, float(value or 0))
    except ValueError:
        return 0.0


__all__ = ["EndpointError", "ask_endpoint", "chat_messages", "data_url", "endpoint_address", "endpoint_client"]
