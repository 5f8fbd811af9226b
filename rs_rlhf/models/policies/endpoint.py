"""Sampling from a model behind an OpenAI-compatible address.

Left out: whatever a server does to an image after it was sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ...data.group import Group
from ...errors import EndpointError, OptionError
from ...imagery.raster import ImageOptions
from ..pixel_budget import image_sizes
from .chat_client import ChatClient, chat_messages, endpoint_address
from .policy import RequestPolicy
from .sampling import SamplingOptions

KEY_VARIABLES = ("RS_RLHF_EVAL_KEY", "OPENAI_API_KEY")


class EndpointPolicy(RequestPolicy):
    """A model behind an OpenAI-compatible address; images go as PNGs in data URLs, at their own size.

    Requests run in parallel. What may pass is tried again; then the run stops, since an answer that was not given is
    not a wrong one. The key, if one is asked for, is read from RS_RLHF_EVAL_KEY or OPENAI_API_KEY.

    Args:
        url (`str`): Base address, such as `"http://localhost:8000/v1"`.
        model (`str`): Name of the model that is asked for.
        image_options ([`ImageOptions`], *optional*): How images are found and read.
        timeout (`float`): Seconds that a request may take.
        tries (`int`): Attempts at a request.
        wait (`float`): Seconds before the second attempt; twice as long before each further one.
        parallel (`int`): Requests at a time.
    """

    def __init__(
        self,
        url: str,
        model: str = "default",
        image_options: ImageOptions | None = None,
        *,
        timeout: float = 300.0,
        tries: int = 6,
        wait: float = 1.0,
        parallel: int = 8,
    ) -> None:
        if min(tries, parallel) < 1 or timeout <= 0:
            raise OptionError(f"tries ({tries}) and parallel ({parallel}) must be at least 1, timeout above 0.")
        self.url, self.model = endpoint_address(url), model
        self.image_options = image_options or ImageOptions()
        self.timeout, self.tries, self.wait, self.parallel = timeout, tries, wait, parallel
        self.handed_over = 2 * parallel

    def pixels(self, group: Group) -> list[tuple[int, int]]:
        """Returns `(width, height)` of each image as it is sent; what the server makes of it is not known."""
        return image_sizes(group, self.image_options)

    def _ask(
        self, groups: Sequence[Group], requests: Sequence[tuple[int, int]], sampling: SamplingOptions
    ) -> list[str]:
        body: dict[str, Any] = {"model": self.model, "temperature": sampling.temperature, "top_p": sampling.top_p}
        body |= {"max_tokens": sampling.max_new_tokens}
        body |= {"extra_body": {"top_k": sampling.top_k}} if sampling.top_k else {}
        pool = ThreadPoolExecutor(self.parallel)

        def ask(request: tuple[int, int]) -> str:
            place, seed = request
            messages = chat_messages(groups[place], self.image_options)
            try:
                return client.ask({**body, "seed": seed, "messages": messages})
            except EndpointError as error:
                raise self._explained(error, groups[place].where or f"question {place}") from None

        try:
            with ChatClient(self.url, KEY_VARIABLES, self.timeout, self.tries, self.wait) as client:
                return list(pool.map(ask, requests))
        finally:  # the client is closed by now, so that requests still under way are not tried again
            pool.shutdown(cancel_futures=True)

    def _explained(self, error: EndpointError, question: str) -> EndpointError:
        check = f"that it serves {self.model!r} and takes images"
        if error.status in (401, 403):
            check = f"the key in {' or '.join(KEY_VARIABLES)}"
        return EndpointError(
            f"{question}: the endpoint {error}; check {check}, then run the same command again: what was answered "
            "before is kept.",
            error.status,
        )
