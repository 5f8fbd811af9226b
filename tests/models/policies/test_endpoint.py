"""A model behind an address: requests in parallel, what may pass is tried again, the rest stops in one sentence."""

import base64
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from helpers import picture
from PIL import Image

from rs_rlhf.data.group import make_group
from rs_rlhf.errors import EndpointError
from rs_rlhf.models.policies.endpoint import KEY_VARIABLES, EndpointPolicy
from rs_rlhf.models.policies.load import load_policy
from rs_rlhf.models.policies.sampling import SamplingOptions, as_groups


@pytest.fixture
def endpoint():
    """A chat endpoint on this machine: `.replies` (status, bytes, headers) come first, then echoes of the question."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = json.dumps(body["messages"][-1]["content"])
            echo = f"{len(text)}-{body['seed'] if body['temperature'] else 'greedy'}"
            reply = (200, json.dumps({"choices": [{"message": {"content": echo}}]}).encode(), {})
            with self.server.lock:
                self.server.seen.append((self.path, self.headers, body, time.monotonic()))
                if self.server.replies:
                    reply = self.server.replies.pop(0)
            time.sleep(self.server.delay)
            self.send_response(reply[0])
            for name, value in {**reply[2], "Content-Length": str(len(reply[1]))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply[1])

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.replies, server.delay, server.lock = [], [], 0.0, threading.Lock()
    server.handle_error = lambda *_: None  # a client that waited no longer
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_conversation_arrives_with_its_images(endpoint, monkeypatch):
    monkeypatch.delenv("RS_RLHF_EVAL_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    policy = load_policy("big", endpoint=endpoint.url)
    assert isinstance(policy, EndpointPolicy)
    prompt = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "<image>Rural or urban?"}]
    group = make_group(prompt, [], picture(1))
    assert policy.pixels(group) == [(84, 56)]
    (answer,) = policy.sample([group], 2, temperature=0, top_p=0.9, max_new_tokens=7)
    assert answer[0] == answer[1] and "greedy" in answer[0]
    ((path, headers, body, _),) = endpoint.seen
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer k"
    assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == ("big", 0, 0.9, 7)
    assert "top_k" not in body and body["messages"][0] == {"role": "system", "content": "Be short."}
    image, text = body["messages"][1]["content"]
    assert text == {"type": "text", "text": "Rural or urban?"}
    shown = Image.open(io.BytesIO(base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))))
    assert shown.tobytes() == picture(1).tobytes()


def test_many_requests_keep_their_places(endpoint, items, monkeypatch):
    for name in KEY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    policy = load_policy(endpoint.url)
    answers = policy.sample(items, 3, max_new_tokens=4, batch_size=2)
    assert {body["model"] for _, _, body, _ in endpoint.seen} == {"default"} and len(endpoint.seen) == 15
    assert not any("Authorization" in headers for _, headers, _, _ in endpoint.seen)
    assert len({text for own in answers for text in own}) == 15  # every answer has a seed of its own
    assert policy.sample(items, 3, max_new_tokens=4) == answers != policy.sample(items, 3, seed=1)
    assert [own[0].split("-")[0] for own in answers][0] == [own[0].split("-")[0] for own in answers][4]
    groups = as_groups(items)
    shares = [
        list(policy.sample_batches(groups, SamplingOptions(3, batch_size=2), share=(rank, 2))) for rank in (0, 1)
    ]
    assert [i for share in shares for batch, _ in share for i in batch] == [0, 1, 4, 2, 3]
    assert {i: own for share in shares for one in share for i, own in zip(*one, strict=True)} == dict(
        enumerate(answers)
    )
    policy.sample(items[:1], top_k=5)
    assert endpoint.seen[-1][2]["top_k"] == 5
    left = [batch for batch, _ in policy.sample_batches(groups, SamplingOptions(batch_size=2), done={0, 1, 2})]
    assert left == [[2, 3], [4]]


def test_what_may_pass_is_tried_again(endpoint):
    policy = EndpointPolicy(endpoint.url, wait=0.01, parallel=1)
    endpoint.replies = [(500, b"busy", {}), (503, b"", {}), (429, b"", {"Retry-After": "0.3"})]
    assert policy.sample([("a", None)], temperature=0) == [["3-greedy"]]
    times = [when for *_, when in endpoint.seen]
    assert len(times) == 4 and times[3] - times[2] >= 0.3 > times[1] - times[0]


@pytest.mark.parametrize(
    ("replies", "message"),
    [
        ([(500, b"out of memory", {})] * 3, "answers 500 .out of memory., 3 tries in all; check that it serves 'm'"),
        ([(200, b"<html>", {})], "answers 200, but without a text as its choice .'<html>'.; check"),
        ([(200, b'{"choices": []}', {})], "answers 200, but without a text"),
        ([(200, b'{"choices": [{"message": {"content": null}}]}', {})], "answers 200, but without a text"),
        ([(200, b'{"choices": [{"finish_reason": "stop", "message": {}}]}', {})], "answers 200, but without a text"),
        ([(400, b"no images here", {})], "answers 400 .no images here.; check"),
        ([(401, b"", {})], "answers 401 .Unauthorized.; check the key in RS_RLHF_EVAL_KEY or OPENAI_API_KEY"),
    ],
)
def test_what_does_not_pass_stops(endpoint, replies, message):
    policy = EndpointPolicy(endpoint.url, "m", tries=3, wait=0.01, parallel=1)
    items = [make_group("a", [], where=f"q.jsonl, line {i}") for i in (1, 2)]
    answered = policy.sample_batches(items, SamplingOptions(temperature=0, batch_size=1))
    assert next(answered) == ([0], [["3-greedy"]])
    endpoint.replies = list(replies)
    asked = len(endpoint.seen)
    with pytest.raises(
        EndpointError,
        match=f"q.jsonl, line 2: the endpoint http://.*/chat/completions {message}.*what was answered before is kept",
    ):
        next(answered)
    assert len(endpoint.seen) == asked + len(replies) and endpoint.replies == []


def test_a_reply_that_spent_its_tokens_on_thoughts_is_the_empty_answer(endpoint):
    choice = {"finish_reason": "length", "message": {"content": None, "reasoning_content": "let me see"}}
    bare = {"finish_reason": "length", "message": {"role": "assistant"}}
    endpoint.replies = [(200, json.dumps({"choices": [one]}).encode(), {}) for one in (choice, bare)]
    policy = EndpointPolicy(endpoint.url, parallel=1)
    assert policy.sample([("a", None), ("b", None), ("c", None)], temperature=0) == [[""], [""], ["3-greedy"]]


def test_slow_and_absent_servers_stop_too(endpoint):
    endpoint.delay = 0.5
    policy = EndpointPolicy(endpoint.url, tries=2, wait=0.01, timeout=0.1)
    with pytest.raises(EndpointError, match="question 0: .*cannot be reached .ReadTimeout.*2 tries in all"):
        policy.sample([("a", None)])
    assert len(endpoint.seen) == 2
    policy = EndpointPolicy("http://127.0.0.1:1/v1", tries=1)
    with pytest.raises(EndpointError, match="127.0.0.1:1/v1/chat/completions cannot be reached .*1 try in all"):
        policy.sample([("a", None)])
