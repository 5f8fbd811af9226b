"""FastAPI application of the reward server, `rs-rlhf serve`: a score model as an HTTP service.

A request is admitted (token, draining, room), read within limits, turned into groups on a worker thread, and scored by
`batching`; a mistake is answered with a 4xx and `{"error": one sentence}`. `/health` and `/openapi.json` need no
token. A request whose client has gone is not scored. After SIGTERM requests under way are answered and new ones get
503; a second signal ends the server at once.

Left out: a page of the request forms (FastAPI's loads its scripts from a public host), TLS and protection against
hosts of idle connections (put a proxy before it), several worker processes (start several servers and give the client
all their addresses), downloads of any kind.
"""

import asyncio
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from uvicorn import Config, Server

from ... import __version__
from ...errors import RequestError
from ..http import BACKLOG, KEEP_ALIVE, LocalNames, add_error_handlers, error_kind, refusal, sentence_of
from .service import Service
from .wire import RewardsForm, ScoreForm, rewards_request


def create_app(service: Service, any_name: bool = True) -> FastAPI:
    """Builds the FastAPI application before a service; without `any_name` it answers as this machine only."""
    app = FastAPI(title="rs-rlhf reward server", version=__version__, docs_url=None, redoc_url=None)
    if not any_name:
        app.add_middleware(LocalNames)

    @app.post("/v1/score", openapi_extra=_body(ScoreForm, multipart=True))
    async def score(request: Request) -> Response:
        """Scores groups of completions."""
        async with _counted(service, request):
            _, results = await service.score(request)
            std = service.stds(results)
            for i, result in enumerate(results):
                if isinstance(result, Exception):
                    results[i] = {"error": sentence_of(result), "kind": error_kind(result)}
            return JSONResponse({"scores": results, **std, "model_hash": service.card["hash"]})

    @app.post("/v1/rewards", openapi_extra=_body(RewardsForm))
    async def rewards(request: Request) -> Response:
        """Scores two completions, in the form of the ScoreRS authors' server."""
        async with _counted(service, request):
            model, (pair,) = await service.score(request, rewards_request)
            ids = ("completion1", "completion2")
            scores = [{"completion_id": key, "score": value} for key, value in zip(ids, pair, strict=True)]
            return JSONResponse({"model": sentence_of(model or service.card["name"]), "scores": scores})

    @app.get("/v1/model")
    async def model(request: Request) -> Response:
        """Describes the model: its hash, how its inputs are made, and the limits of a request."""
        service.check_token(request)
        return JSONResponse(service.card)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        """Gives the counters in Prometheus' form."""
        service.check_token(request)
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/health")
    async def health() -> Response:
        """Says whether the server scores."""
        if service.draining or not service.batcher.thread.is_alive():
            return refusal(503, "shutting down." if service.draining else "the scoring thread has ended.")
        return JSONResponse({"status": "ok"})

    add_error_handlers(app)
    return app


def _body(form: type[BaseModel], multipart: bool = False) -> dict[str, Any]:
    """Describes the body of an endpoint that reads it itself, within the limits."""
    schema = form.model_json_schema()
    content = {"application/json": {"schema": schema}}
    if multipart:
        file = {"type": "string", "format": "binary", "description": "A file that an image names by `part`."}
        fields = {"type": "object", "properties": {"request": schema}, "additionalProperties": file}
        content["multipart/form-data"] = {"schema": fields}
    return {"requestBody": {"required": True, "content": content}}


@asynccontextmanager
async def _counted(service: Service, request: Request) -> AsyncIterator[None]:
    """Counts a scoring request with its status and time, and takes in what is left of a refused one."""
    start, status = time.perf_counter(), 500
    try:
        yield
        status = 200
    except RequestError as error:
        status = error.status
        if status != 408:
            await service.discard(request)
        raise
    finally:
        service.metrics.requests.labels(request.url.path, status).inc()
        service.metrics.seconds.observe(time.perf_counter() - start)


async def serve(service: Service, listener: socket.socket, any_name: bool = True) -> None:
    """Runs uvicorn; after a signal, answers 503 to new requests until nobody is inside; a second one ends all."""

    class Draining(Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if service.draining:
                print(
                    f"rs-rlhf serve: ended at once, {service.inside} requests unanswered.", file=sys.stderr, flush=True
                )
                os._exit(128 + sig)  # not even the scoring under way is waited for
            service.draining = True

    quiet: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False}
    server = Draining(Config(create_app(service, any_name), timeout_keep_alive=KEEP_ALIVE, backlog=BACKLOG, **quiet))

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
