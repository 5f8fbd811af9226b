"""`rs-rlhf serve`: a score model as an HTTP service, for training and curation that run elsewhere.

Endpoints: `POST /v1/score` (the form of `wire`, as JSON or as a multipart form with the JSON in the field `request`),
`POST /v1/rewards` (the form of the ScoreRS authors' server, for their RL code), `GET /v1/model`, `GET /health` and
`GET /metrics`. A request is admitted (token, draining, room), read within its limits, turned into groups on a worker
thread, and scored by `batching`. Whatever is wrong with it is answered with a 4xx and `{"error": one sentence}`.

It listens on this machine only unless `--host` says otherwise; with RS_RLHF_SERVER_TOKEN set, all but `/health` ask
for it as a bearer token. SIGTERM ends it in order: what is under way is answered, what comes now gets 503.

Left out: TLS and protection against hosts of idle connections (put a proxy before it), several worker processes (one
model, one process; start several servers and give the client all their addresses), downloads of any kind.
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from ..errors import DeclarationError, RequestError
from ..imagery.arguments import add_image_flags, image_options_from
from .service import Service
from .wire import TOKEN, Limits, error_kind, rewards_request, sentence_of

LOCAL = ("127.0.0.1", "localhost", "::1")
KEEP_ALIVE = 75  # seconds; longer than clients keep a connection, so that none is closed as it is taken up again
RETRY_AFTER = "1"  # seconds that a client is asked to wait when there is no room


def create_app(service: Service) -> Any:
    """Builds the FastAPI application.

    Args:
        service ([`Service`]): What stands behind it.

    Returns:
        `fastapi.FastAPI`: Without the interactive pages, which load scripts from elsewhere.
    """
    from fastapi import FastAPI, Request, Response
    from fastapi.responses import JSONResponse
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    app = FastAPI(title="rs-rlhf", openapi_url=None, docs_url=None, redoc_url=None)

    @app.post("/v1/score")
    async def score(request: Request) -> Any:
        def answer(data: Any, parsed: Any, results: list) -> Any:
            scores = [
                {"error": sentence_of(one), "kind": error_kind(one)} if isinstance(one, Exception) else one
                for one in results
            ]
            return JSONResponse({"scores": scores, "model_hash": service.card["hash"]})

        return await _timed(service, request, lambda data: data, answer)

    @app.post("/v1/rewards")
    async def rewards(request: Request) -> Any:
        def answer(data: Any, parsed: Any, results: list) -> Any:
            ids = ("completion1", "completion2")
            scores = [{"completion_id": key, "score": value} for key, value in zip(ids, results[0], strict=True)]
            return JSONResponse({"model": sentence_of(data.get("model") or service.card["name"]), "scores": scores})

        return await _timed(service, request, rewards_request, answer)

    @app.get("/v1/model")
    async def model(request: Request) -> Any:
        service.check_token(request)
        return JSONResponse(service.card)

    @app.get("/metrics")
    async def metrics(request: Request) -> Any:
        service.check_token(request)
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/health")
    async def health() -> Any:
        if service.draining or not service.batcher.is_alive():
            return refusal(503, "shutting down." if service.draining else "the scoring thread has ended.")
        return {"status": "ok"}

    add_error_handlers(app)
    return app


def refusal(status: int, sentence: str) -> Any:
    """Answers with an error: one sentence, and what a client should do with its connection."""
    from fastapi.responses import JSONResponse

    headers = {"Retry-After": RETRY_AFTER} if status in (429, 503) else {}
    headers |= {"Connection": "close"} if status in (408, 413, 503) else {}
    return JSONResponse({"error": sentence_of(sentence)}, status, headers)


async def _timed(service: Service, request: Any, convert: Callable, answer: Callable) -> Any:
    """Scores a request, and counts it with its status and time."""
    start, status = time.perf_counter(), 500
    try:
        reply, status = answer(*await service.score(request, convert)), 200
        return reply
    except RequestError as error:
        status = error.status
        if status != 408:
            await service.discard(request)
        raise
    finally:
        service.metrics.requests.labels(request.url.path, status).inc()
        service.metrics.seconds.observe(time.perf_counter() - start)


def add_error_handlers(app: Any) -> None:
    """Makes every error an answer of one sentence."""
    from starlette.exceptions import HTTPException

    @app.exception_handler(RequestError)
    async def refused(request: Any, error: RequestError) -> Any:
        return refusal(error.status, error.sentence)

    @app.exception_handler(HTTPException)
    async def not_here(request: Any, error: HTTPException) -> Any:
        return refusal(error.status_code, f"{request.method} {request.url.path}: {error.detail}.")

    @app.exception_handler(Exception)
    async def failed(request: Any, error: Exception) -> Any:
        return refusal(500, f"the server failed ({type(error).__name__}); its log has the cause.")


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of `rs-rlhf serve`."""
    parser = argparse.ArgumentParser(
        prog="rs-rlhf serve",
        description=f"Serve a score model over HTTP. With {TOKEN} set, clients must send it as a bearer token.",
    )
    parser.add_argument("--model", required=True, help="Name in reward_models/, folder, or hub id of a score model.")
    parser.add_argument("--host", default=LOCAL[0], help="Address to listen on; by default this machine only.")
    parser.add_argument("--port", type=int, default=8000, help="Port to listen on; 0 takes a free one.")
    parser.add_argument("--device", help="Device of the model; by default accelerate's choice.")
    parser.add_argument("--dtype", help="Type of the weights, such as bfloat16; by default the checkpoint's.")
    parser.add_argument("--prompt_form", help="Layout of prompt and completion; by default the named model's.")
    parser.add_argument("--min_pixels", type=int, help="Fewest pixels an image is resized to.")
    parser.add_argument("--max_pixels", type=int, help="Most pixels an image is resized to.")
    parser.add_argument("--token_budget", type=int, default=4096, help="Tokens of a batch at most.")
    parser.add_argument("--max_length", type=int, default=16_384, help="Tokens of one prompt and completion at most.")
    add_image_flags(parser)
    parser.set_defaults(max_image_pixels=50_000_000)
    limits = Limits()
    for name, default, text in (
        ("max_bytes", limits.bytes, "Bytes of a request at most."),
        ("max_groups", limits.groups, "Groups of a request at most."),
        ("max_completions", limits.completions, "Completions of a group at most."),
        ("max_images", limits.images, "Images of a group at most."),
        ("max_text", limits.text, "Characters of a prompt or completion at most."),
        ("max_pending", 256, "Requests inside at once; more are sent away (429)."),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.add_argument("--read_timeout", type=float, default=30.0, help="Seconds that a request may take to arrive.")
    return parser


def main(argv: Sequence[str]) -> int:
    """`rs-rlhf serve --model MODEL`: serves until SIGTERM or SIGINT, then answers what is under way and ends.

    Returns:
        `int`: 0.
    """
    args = build_parser().parse_args(argv)
    if args.image_hosts:
        raise DeclarationError("the server downloads no images; leave --image_hosts out.")
    for name, value in vars(args).items():
        if name.startswith("max_") and value is not None and value < 1:
            raise DeclarationError(f"--{name} is {value}, expected at least 1.")
    missing = [name for name in ("fastapi", "uvicorn", "python_multipart", "prometheus_client") if not find_spec(name)]
    if missing:
        raise DeclarationError(f"{', '.join(missing)} not installed; install them with `pip install rs-rlhf[server]`.")
    listener = listen(args.host, args.port)

    from .scorer import Scorer

    given = {name: getattr(args, name) for name in ("device", "prompt_form", "min_pixels", "max_pixels")}
    given |= {"dtype": args.dtype} if args.dtype else {}
    options = image_options_from(args)
    scorer = Scorer.from_pretrained(args.model, image_options=options, token_budget=args.token_budget, **given)
    scorer.collator.max_length = args.max_length
    limits = Limits(args.max_bytes, args.max_groups, args.max_completions, args.max_images, args.max_text)
    token = os.environ.get(TOKEN) or None
    if token is None and args.host not in LOCAL:
        print(f"rs-rlhf serve: {args.host} may be reached by others and {TOKEN} is not set.", file=sys.stderr)
    service = Service(
        scorer, args.model, limits, max_pending=args.max_pending, read_timeout=args.read_timeout, token=token
    )
    asyncio.run(_serve(service, listener))
    service.batcher.close()
    return 0


def listen(host: str, port: int) -> Any:
    """Takes the address before the model is loaded, which may take minutes."""
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sends each answer at once; otherwise its body waits 40 ms for the client's ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise DeclarationError(f"cannot listen on {host}, port {port} ({error}); choose another --port.") from None
    return listener


async def _serve(service: Service, listener: Any) -> None:
    """Runs uvicorn; on a signal goes on answering (503 to new requests) until nobody is inside."""
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            if service.draining:
                self.should_exit = self.force_exit = True  # asked twice
            service.draining = True

    quiet: Any = {"log_level": "warning", "access_log": False, "server_header": False}
    config = uvicorn.Config(create_app(service), timeout_keep_alive=KEEP_ALIVE, **quiet)
    server = Server(config)

    async def watch() -> None:
        while not server.started:
            await asyncio.sleep(0.02)
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        print(f"Serving {service.card['name']} (hash {service.card['hash'][:12]}) on {address}", flush=True)
        while not service.draining or service.inside:
            await asyncio.sleep(0.05)
        server.should_exit = True

    watching = asyncio.create_task(watch())
    await server.serve(sockets=[listener])
    watching.cancel()
