"""Start of `rs-rlhf app`: the options are checked before Gradio and the models are imported."""

from __future__ import annotations

from .options import AppOptions


def main(options: AppOptions) -> None:
    """Serves the page until SIGTERM or Ctrl-C."""
    options.check()
    from .server import serve

    serve(options)
