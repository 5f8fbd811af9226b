"""Sampling from a model behind an OpenAI-compatible address.

Left out: whatever a server does to an image after it was sent.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ...data.group import Group
from ...errors import EndpointError, OptionError
from ...imagery.raster import ImageOptions
from ..pixel_budget import image_sizes
from .chat_client import ChatClient, chat_messages, endpoint_address
from .policy import Policy
from .sampling import Batches, Requests, SamplingOptions, requested_batches

KEY_VARIABLES = ("RS_RLHF_EVAL_KEY", "OPENAI_API_KEY")


class EndpointPolicy(Policy):
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

    def sample_batches(
        self,
        groups: Sequence[Group],
        sampling: SamplingOptions,
        *,
        done: Collection[int] = (),
        share: tuple[int, int] = (0, 1),
    ) -> Batches:
        """As [`Policy.sample_batches`], in the order of the input.

        A batch is `batch_size` prompts, by default twice as many as there are parallel requests; `token_budget` has no
        effect. Every answer is a request with a seed of its own; the server may ignore it, as it may `top_k`, which is
        sent only if it is set.

        Raises:
            EndpointError: No usable reply; names address, status and question.
        """
        body: dict[str, Any] = {"model": self.model, "temperature": sampling.temperature, "top_p": sampling.top_p}
        body |= {"max_tokens": sampling.max_new_tokens} | ({"top_k": sampling.top_k} if sampling.top_k else {})
        size = sampling.batch_size or 2 * self.parallel
        pool = ThreadPoolExecutor(self.parallel)
        try:
            with ChatClient(self.url, KEY_VARIABLES, self.timeout, self.tries, self.wait) as client:

                def ask(requests: Requests) -> list[str]:
                    return list(pool.map(lambda request: self._ask(client, groups, request, body), requests))

                yield from requested_batches(ask, len(groups), sampling, size, share, done)
        finally:  # the client is closed by now, so that requests still under way are not tried again
            pool.shutdown(cancel_futures=True)

    def pixels(self, group: Group) -> list[tuple[int, int]]:
        """Returns `(width, height)` of each image as it is sent; what the server makes of it is not known."""
        return image_sizes(group, self.image_options)

    def _ask(
        self, client: ChatClient, groups: Sequence[Group], request: tuple[int, int], body: Mapping[str, Any]
    ) -> str:
        place, seed = request
        group = groups[place]
        try:
            return client.ask({**body, "seed": seed, "messages": chat_messages(group, self.image_options)})
        except EndpointError as error:
            check = f"that it serves {self.model!r} and takes images"
            if error.status in (401, 403):
                check = f"the key in {' or '.join(KEY_VARIABLES)}"
            raise EndpointError(
                f"{group.where or f'question {place}'}: the endpoint {error}; check {check}, then run the same "
                "command again: what was answered before is kept.",
                error.status,
            ) from None
