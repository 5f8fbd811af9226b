"""`rs-rlhf serve`: the reward server's options and start."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any

from ..errors import OptionError
from ..imagery.arguments import PixelOptions, ReadingOptions
from ..options import option
from ..scoring.http import LOCAL, TOKEN, Limits, listen, not_ready
from ..scoring.several import SeveralOptions, is_url

NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "pydantic")


@dataclass(kw_only=True)
class ServeOptions(SeveralOptions, Limits, PixelOptions, ReadingOptions):
    """Serve a score model over HTTP.

    With RS_RLHF_SERVER_TOKEN set, clients must send it as a bearer token.
    """

    model: str = option(
        help="Name in reward_models/, folder, or hub id of a score model; several (a,b,c) are combined.",
        reads="model",
    )
    host: str = option(LOCAL[0], "Address to listen on; by default this machine only.")
    port: int = option(8000, "Port to listen on; 0 takes a free one.")
    device: str | None = option(None, "Device of the model; by default accelerate's choice.")
    dtype: str | None = option(None, "Type of the weights, such as bfloat16; by default the checkpoint's.")
    prompt_form: str | None = option(None, "Layout of prompt and completion; by default the named model's.")
    token_budget: int = option(4096, "Tokens of a batch at most.")
    max_length: int = option(16_384, "Tokens of one prompt and completion at most.")
    max_image_pixels: int = option(50_000_000, "Images of more pixels are refused before they are decoded.")
    max_pending: int = option(256, "Requests inside at once; more are sent away (429).")
    max_queued_tokens: int = option(
        4_000_000, "Estimated tokens waiting at once; requests beyond are sent away (429)."
    )
    read_timeout: float = option(30.0, "Seconds that a request may take to arrive.")

    def check(self) -> None:
        """Refuses options that cannot be used, and a server whose packages are missing."""
        if is_url(self.model):
            raise OptionError("--model is the address of a server; give a score model that is here.", "model")
        self.check_several(self.model, "model")
        if self.image_hosts:
            raise OptionError("the server downloads no images; leave --image_hosts out.", "image_hosts")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith("max_") and value is not None and value < 1:
                raise OptionError(f"--{field.name} is {value}, expected at least 1.", field.name)
        if missing := [name for name in NEEDED if not find_spec(name)]:
            raise OptionError(f"{', '.join(missing)} not installed; install them with `pip install rs-rlhf[server]`.")


def main(options: ServeOptions) -> None:
    """Serves until SIGTERM or SIGINT, then answers what is under way and ends."""
    options.check()
    listener = listen(options.host, options.port)

    with not_ready(listener, "the model is being loaded; ask again."):
        from ..scoring.load import load_scorer
        from ..scoring.serving.server import serve
        from ..scoring.serving.service import Service

        names = ("device", "dtype", "prompt_form", "min_pixels", "max_pixels", "token_budget")
        given: dict[str, Any] = {name: getattr(options, name) for name in names}
        scorer: Any = load_scorer(options.model, options.reader_options(), **given, **options.several())
        for part in scorer.parts:
            part.collator.max_length = options.max_length
        token = os.environ.get(TOKEN) or None
        if token is None and options.host not in LOCAL:
            print(f"rs-rlhf serve: {options.host} may be reached by others and {TOKEN} is not set.", file=sys.stderr)
        room = {"max_pending": options.max_pending, "max_queued_tokens": options.max_queued_tokens}
        service = Service(scorer, options.model, options, read_timeout=options.read_timeout, token=token, **room)
    asyncio.run(serve(service, listener, options.host not in LOCAL))
    service.batcher.close()
