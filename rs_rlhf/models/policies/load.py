"""Models that answer questions about images, whichever way they run: all have the interface of [`Policy`].

[`load_answerer`] chooses: [`Policy`] for the Qwen2-VL families, [`HFPolicy`] for any other image-text-to-text model
that transformers loads and whose processor has a chat template, [`VLLMPolicy`] on request, [`EndpointPolicy`] for a
model behind an OpenAI-compatible address. `sample_batches` takes the same options and yields the same things, so the
evaluation does not know what it asks; `pixels` says how large the model saw an image.

Left out: adapters under vLLM (merge them), and whatever an endpoint does to an image after it was sent.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ...data.group import Group
from ...errors import EndpointError, OptionError
from ...imagery.raster import ImageOptions
from ..collator import seen_sizes, set_pixel_budget
from ..score_model import FAMILIES
from .chat_client import ask_endpoint, chat_messages, endpoint_address, endpoint_client
from .hf import HFPolicy, image_sizes, placeholder_tokens
from .policy import Policy, load_vlm
from .sampling import as_groups, check_sampling, consecutive_batches

BACKENDS = ("auto", "vllm")
KEY_VARIABLES = ("RS_RLHF_EVAL_KEY", "OPENAI_API_KEY")
Batches = Iterator[tuple[list[int], list[list[str]]]]
Requests = Sequence[tuple[int, int]]  # (place of the item, seed) of each


def load_answerer(
    path: str | os.PathLike[str],
    *,
    backend: str = "auto",
    endpoint: str | None = None,
    image_options: ImageOptions | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    dtype: Any = None,
    device: str | None = None,
    **kwargs: Any,
) -> Any:
    """Makes what answers for a model.

    Args:
        path (`str`): Checkpoint, LoRA adapter's folder or hub id; the model's name at an `endpoint`. An address
            (http:// or https://) is an endpoint whose model is called `"default"`.
        backend (`str`): `"auto"`: transformers; `"vllm"`.
        endpoint (`str`, *optional*): Base address of an OpenAI-compatible server, such as `"http://localhost:8000/v1"`.
        image_options ([`ImageOptions`], *optional*): How images are found and read.
        min_pixels, max_pixels (`int`, *optional*): Pixel budget, for the Qwen2-VL families only.
        dtype, device: As in [`Policy.from_pretrained`]; not for an endpoint.
        **kwargs: Passed to `from_pretrained`, to `vllm.LLM`, or to [`EndpointPolicy`].

    Returns:
        [`Policy`], [`HFPolicy`], [`VLLMPolicy`] or [`EndpointPolicy`].

    Raises:
        ValueError: The model cannot answer, or an option does not go with it; says which and what to do.

    Example:
        >>> from rs_rlhf.models.policies.load import load_answerer  # doctest: +SKIP
        >>> load_answerer("out/captioner").sample([("Rural or urban?", "a.png")], temperature=0)  # doctest: +SKIP
        [['rural']]
    """
    path, budget = str(path), {"min_pixels": min_pixels, "max_pixels": max_pixels}
    if backend not in BACKENDS:
        raise OptionError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}.")
    if endpoint is None and path.startswith(("http://", "https://")):
        path, endpoint = "default", path
    if endpoint is not None:
        given = [name for name, value in {**budget, "dtype": dtype, "device": device}.items() if value is not None]
        if given or backend != "auto":
            raise OptionError(
                f"{(given or ['backend'])[0]} has no effect on a model behind an endpoint; leave it out."
            )
        return EndpointPolicy(endpoint, path, image_options, **kwargs)
    if backend == "vllm":
        if device is not None:
            raise OptionError("device has no effect on the vllm backend, which takes the GPU it sees; leave it out.")
        return VLLMPolicy(path, image_options, dtype=dtype, **budget, **kwargs)
    model, processor = load_vlm(path, dtype=dtype, device=device, **kwargs)
    _set_budget(path, model.config, processor, min_pixels, max_pixels)
    kind = Policy if model.config.model_type in FAMILIES else HFPolicy
    return kind(model, processor, image_options)


class EndpointPolicy:
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

    sample = Policy.sample

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
        self.address, self.model = endpoint_address(url), model
        self.image_options = image_options or ImageOptions()
        self.timeout, self.tries, self.wait, self.parallel = timeout, tries, wait, parallel

    def sample_batches(
        self,
        items: Sequence[Any],
        n: int = 1,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        max_new_tokens: int = 64,
        seed: int = 0,
        token_budget: int = 16384,
        batch_size: int | None = None,
        done: Collection[int] = (),
        share: tuple[int, int] = (0, 1),
    ) -> Batches:
        """Yields `(places in the input, their answers)`; arguments as in [`Policy.sample_batches`].

        A batch is `batch_size` items, by default twice as many as there are parallel requests; `token_budget` is the
        server's business. Every answer is a request with a seed of its own; whether a server heeds it is its own
        affair, as is `top_k`, which is sent only if it is set.

        Raises:
            EndpointError: No usable reply; names address, status and question.
        """
        check_sampling(n, temperature, top_p, top_k, max_new_tokens, share)
        groups = as_groups(items)
        options = {"model": self.model, "temperature": temperature, "top_p": top_p, "max_tokens": max_new_tokens}
        options |= {"top_k": top_k} if top_k else {}
        pool = ThreadPoolExecutor(self.parallel)
        try:
            with endpoint_client(self.timeout, KEY_VARIABLES) as client:

                def ask(todo: Requests) -> list[str]:
                    return list(pool.map(lambda one: self._ask(client, groups[one[0]], one, options), todo))

                size = batch_size or 2 * self.parallel
                yield from _asked_batches(ask, len(groups), n if temperature else 1, n, seed, size, done, share)
        finally:  # the client is closed by now, so that requests still under way are not tried again
            pool.shutdown(cancel_futures=True)

    def pixels(self, group: Group) -> list[tuple[int, int]]:
        """Returns `(width, height)` of each image as it is sent; what the server makes of it is not known."""
        return image_sizes(group, self.image_options)

    def _ask(self, client: Any, group: Group, one: tuple[int, int], options: dict[str, Any]) -> str:
        place, seed = one
        body = {**options, "seed": seed, "messages": chat_messages(group, self.image_options)}
        try:
            return ask_endpoint(client, self.address, body, tries=self.tries, wait=self.wait)
        except EndpointError as error:
            check = f"that it serves {self.model!r} and takes images"
            if error.status in (401, 403):
                check = f"the key in {' or '.join(KEY_VARIABLES)}"
            raise EndpointError(
                f"{group.where or f'question {place}'}: the endpoint {error}; check {check}, then run the same "
                "command again: what was answered before is kept.",
                error.status,
            ) from None


class VLLMPolicy:
    """A model in vLLM's offline engine. Not run by us: written after vLLM's documentation, no test has the engine.

    Args:
        path (`str`): Checkpoint or hub id; an adapter must be merged first.
        image_options ([`ImageOptions`], *optional*): How images are found and read.
        dtype (`str`, *optional*): By default the checkpoint's.
        min_pixels, max_pixels (`int`, *optional*): Pixel budget, for the Qwen2-VL families only.
        **kwargs: Passed to `vllm.LLM` (`max_model_len`, `tensor_parallel_size`, …).

    Raises:
        ValueError: vLLM is not installed, or the path is an adapter.
    """

    sample = Policy.sample

    def __init__(
        self,
        path: str,
        image_options: ImageOptions | None = None,
        *,
        dtype: Any = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        **kwargs: Any,
    ) -> None:
        try:
            import vllm
        except ImportError:
            raise OptionError(
                "the backend vllm needs vLLM, which is not installed; `pip install vllm`, or leave the backend out."
            ) from None
        from transformers import AutoConfig, AutoProcessor

        if (Path(path) / "adapter_config.json").is_file():
            raise OptionError(
                f"{path} is an adapter, which the backend vllm does not load; merge it, or leave it out."
            )
        self.processor, config = AutoProcessor.from_pretrained(path), AutoConfig.from_pretrained(path)
        _set_budget(path, config, self.processor, min_pixels, max_pixels)
        budget = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        budget = {name: value for name, value in budget.items() if value is not None}
        kwargs |= {"mm_processor_kwargs": budget} if budget else {}
        self.llm, self.params = vllm.LLM(model=path, dtype=dtype or "auto", **kwargs), vllm.SamplingParams
        self.image_options, self.budgeted = image_options or ImageOptions(), config.model_type in FAMILIES
        self.never = placeholder_tokens(config, self.processor)

    def sample_batches(
        self,
        items: Sequence[Any],
        n: int = 1,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        max_new_tokens: int = 64,
        seed: int = 0,
        token_budget: int = 16384,
        batch_size: int | None = None,
        done: Collection[int] = (),
        share: tuple[int, int] = (0, 1),
    ) -> Batches:
        """Yields `(places in the input, their answers)`; arguments as in [`Policy.sample_batches`].

        vLLM makes its own batches: one here is what is handed over at a time, by default 256 items.
        """
        check_sampling(n, temperature, top_p, top_k, max_new_tokens, share)
        groups = as_groups(items)
        options: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "top_k": top_k or -1}
        options |= {"max_tokens": max_new_tokens, "logit_bias": dict.fromkeys(self.never, -100.0)}

        def ask(todo: Requests) -> list[str]:
            messages = [chat_messages(groups[i], self.image_options) for i, _ in todo]
            params = [self.params(seed=own, **options) for _, own in todo]
            return [one.outputs[0].text for one in self.llm.chat(messages, params, use_tqdm=False)]

        yield from _asked_batches(ask, len(groups), n if temperature else 1, n, seed, batch_size or 256, done, share)

    def pixels(self, group: Group) -> list[tuple[int, int]]:
        """Returns `(width, height)` of each image: as the model sees it where that is known, else its own."""
        if self.budgeted:
            return seen_sizes(group, self.processor, self.image_options)
        return image_sizes(group, self.image_options)


def _asked_batches(
    ask: Callable[[Requests], list[str]],
    count: int,
    distinct: int,
    n: int,
    seed: int,
    batch_size: int,
    done: Collection[int],
    share: tuple[int, int],
) -> Batches:
    """Yields batches in the order of the input, of `distinct` requests an item, repeated to n answers."""
    for batch in consecutive_batches(count, batch_size, share, done):
        texts = ask([(i, _seed(seed, i, k)) for i in batch for k in range(distinct)])
        yield batch, [texts[k : k + distinct] * (n // distinct) for k in range(0, len(texts), distinct)]


def _seed(seed: int, place: int, number: int) -> int:
    """A seed for one answer, of 31 bits since some servers take no more."""
    return int.from_bytes(hashlib.sha256(f"{seed} {place} {number}".encode()).digest()[:4], "big") >> 1


def _set_budget(path: str, config: Any, processor: Any, low: int | None, high: int | None) -> None:
    if config.model_type in FAMILIES:
        set_pixel_budget(processor, low, high)
    elif low is not None or high is not None:
        raise OptionError(
            f"{path} is a {config.model_type}, whose processor has no pixel budget; leave min_pixels and "
            "max_pixels out."
        )


__all__ = ["EndpointPolicy", "VLLMPolicy", "load_answerer"]
