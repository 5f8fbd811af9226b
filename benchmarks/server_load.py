"""The reward server under hostile and heavy load: `/health`, memory, and whether an answer is lost.

    python benchmarks/server_load.py --output benchmarks/results/server_load.json

Three loads on a server with a tiny score model, each from clients on the same machine, while another process asks for
`/health`:

- 16 bodies of 63 MB at once, of four kinds: one image, brackets, small objects, escapes.
- 64 clients with 50 requests each (one image and 3 completions), by `RemoteScorer`; each answer is compared with the
  scores made in process.
- 3 requests of 16,000 completions whose clients go away, then one request of one completion.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import torch
from PIL import Image
from transformers import AutoProcessor

from rs_rlhf import ScoreModel, Scorer, make_group
from rs_rlhf.models.tiny_vlm import save_tiny_vlm
from rs_rlhf.scoring.remote import RemoteScorer

SERVE = [sys.executable, "-m", "rs_rlhf", "serve"]
SIZE = 63_000_000
BODIES = {
    "image": lambda: b'{"groups":[{"completions":["a"],"images":[{"base64":"' + b"A" * SIZE + b'"}]}]}',
    "brackets": lambda: b"[" * SIZE,
    "objects": lambda: b'{"groups":[' + b'{"a":1},' * (SIZE // 8) + b"1]}",
    "escapes": lambda: b'{"groups":["' + b'\\"' * (SIZE // 2) + b'"]}',
}


PROBE = """
import http.client, json, select, sys, time
waits = []
while not select.select([sys.stdin], [], [], 0.02)[0]:
    start = time.monotonic()
    connection = http.client.HTTPConnection(sys.argv[1], timeout=120)
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
    connection.close()
    waits.append(round(time.monotonic() - start, 4))
print(json.dumps(waits))
"""


class Server:
    """A server process with its address and memory."""

    def __init__(self, model: str) -> None:
        command = [*SERVE, "--model", model, "--device", "cpu", "--port", "0"]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1]

    def megabytes(self, key: str = "VmRSS") -> float:
        """Returns its resident memory, or with `"VmHWM"` the most that it was."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return round(int(re.search(rf"{key}:\s+(\d+)", status)[1]) / 1000)  # type: ignore[index]

    def watched(self, work: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
        """Returns what the work returns, and the latencies of `/health` in seconds meanwhile, as another process
        measures them.
        """
        command = [sys.executable, "-c", PROBE, self.url.removeprefix("http://")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as probe:
            time.sleep(1.0)
            result = work()
            waits = json.loads(probe.communicate()[0])
        return result, {"asked": len(waits), "median": statistics.median(waits), "longest": max(waits)}


def big_bodies(server: Server, count: int) -> dict[str, Any]:
    """Sends the bodies at once."""
    makers = [list(BODIES.values())[i % len(BODIES)] for i in range(count)]
    bodies = [make() for make in makers]
    before = server.megabytes()

    def send() -> list[int]:
        with ThreadPoolExecutor(count) as pool:
            replies = pool.map(lambda body: httpx.post(f"{server.url}/v1/score", content=body, timeout=600), bodies)
            return sorted(reply.status_code for reply in replies)

    start = time.monotonic()
    replies, health = server.watched(send)
    statuses = {str(status): replies.count(status) for status in replies}
    memory = {"before": before, "most": server.megabytes("VmHWM"), "after": server.megabytes()}
    seconds = round(time.monotonic() - start, 1)
    return {"statuses": statuses, "seconds": seconds, "health_seconds": health, "memory_mb": memory}


def many_clients(server: Server, scorer: Scorer, clients: int, requests: int) -> dict[str, Any]:
    """Scores one group per request; counts the answers that are those of the scorer."""
    groups = [
        make_group("What?", [f"a river {i}.", f"trees {i}.", "a road."], Image.effect_noise((112, 84), 9 + i))
        for i in range(16)
    ]
    expected = scorer.score_groups(groups)
    before = server.megabytes()

    def run(number: int) -> int:
        remote, right = RemoteScorer(server.url), 0
        for turn in range(requests):
            i = (number * 7 + turn) % len(groups)
            (row,) = remote.score_groups([groups[i]])
            right += max(abs(a - b) for a, b in zip(row, expected[i], strict=True)) < 1e-4
        return right

    def ask() -> int:
        with ThreadPoolExecutor(clients) as pool:
            return sum(pool.map(run, range(clients)))

    start = time.monotonic()
    right, health = server.watched(ask)
    seconds = time.monotonic() - start
    return {
        "asked": clients * requests,
        "right": right,
        "requests_per_second": round(clients * requests / seconds, 1),
        "health_seconds": health,
        "memory_mb": {"before": before, "after": server.megabytes()},
    }


def abandoned(server: Server, count: int) -> dict[str, Any]:
    """Leaves requests, then times a small one."""
    host, port = server.url.removeprefix("http://").split(":")
    many = {"groups": [{"completions": [f"a river {i}." for i in range(64)]}] * 250}
    body = json.dumps(many).encode()
    left = [socket.create_connection((host, int(port))) for _ in range(count)]
    for one in left:
        one.sendall(f"POST /v1/score HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    time.sleep(1.0)
    for one in left:
        one.close()
    start = time.monotonic()
    RemoteScorer(server.url).score(completions=[["a river."]])
    return {"abandoned": count, "seconds_of_the_next": round(time.monotonic() - start, 2)}


def main() -> None:
    """Runs the loads and prints their numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bodies", type=int, default=16)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--output")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = save_tiny_vlm(f"{folder}/vlm", max_pixels=12 * 28 * 28)
        torch.manual_seed(0)
        ScoreModel.from_pretrained(path).save_pretrained(f"{folder}/scorer")
        AutoProcessor.from_pretrained(path).save_pretrained(f"{folder}/scorer")
        server = Server(f"{folder}/scorer")
        try:
            scorer = Scorer.from_pretrained(f"{folder}/scorer", device="cpu")
            results: dict[str, Any] = {"cores": os.cpu_count(), "load_average_before": round(os.getloadavg()[0], 1)}
            results["clients that go away"] = abandoned(server, 3)
            results["many clients"] = many_clients(server, scorer, args.clients, args.requests)
            results["big bodies"] = big_bodies(server, args.bodies)
        finally:
            server.process.terminate()
    print(json.dumps(results, indent=2))
    if args.output:
        Path(args.output).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
