"""Every way of answering has one interface: a LLaVA through `generate`, and a model behind an address."""

import base64
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from helpers import picture
from PIL import Image

from rs_rlhf.data.group import make_group
from rs_rlhf.errors import DataError, EndpointError
from rs_rlhf.models.policies.hf import HFPolicy
from rs_rlhf.models.policies.load import EndpointPolicy, load_answerer
from rs_rlhf.models.policies.policy import Policy

LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}{% for part in message['content'] %}"
    "{{ '<image>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def save_llava(path, template=LLAVA_TEMPLATE):
    """Writes a random LLaVA: 28-pixel images of 4 tokens."""
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    from rs_rlhf.models.tiny_vlm import build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **sizes, "image_size": 28, "patch_size": 14},
        text_config={
            "model_type": "llama",
            **sizes,
            "vocab_size": len(tokenizer) + 8,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        dtype="float32",
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.repetition_penalty = 5.0  # would change every answer
    model.generation_config.do_sample = True
    model.save_pretrained(path)
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def llava_path(tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("llava") / "llava")


@pytest.fixture(scope="module")
def llava(llava_path):
    return load_answerer(llava_path)


@pytest.fixture(scope="module")
def items():
    return [
        ("What is it?", picture(1)),
        ("A longer question about the scene, is it rural?", picture(2, 56, 112)),
        ("no image", None),
        ("two", [picture(3), picture(4)]),
        ("What is it?", picture(1)),
    ]


def test_a_family_of_its_own_goes_through_policy(tiny_vlm, llava):
    policy = load_answerer(tiny_vlm, min_pixels=56 * 56, max_pixels=6 * 28 * 28)
    assert isinstance(policy, Policy) and isinstance(llava, HFPolicy)
    ((width, height),) = policy.pixels(make_group("a", [], picture(1, 840, 560)))
    inputs = policy._inputs([make_group("a", [], picture(1, 840, 560))])
    assert inputs["image_grid_thw"].tolist() == [[1, height // 14, width // 14]] and width * height <= 6 * 28 * 28
    assert llava.pixels(make_group("a", [], [picture(1, 840, 560), picture(2)])) == [(28, 28), (28, 28)]


def test_batched_is_as_one_by_one(llava, items):
    together = llava.sample(items, 2, temperature=0, max_new_tokens=8)
    assert together == [llava.sample([item], 2, temperature=0, max_new_tokens=8)[0] for item in items]
    assert together[0] == together[4] != together[1] and all(own[0] == own[1] for own in together)
    sampled = llava.sample(items, 3, max_new_tokens=6)
    assert llava.sample(items, 3, max_new_tokens=6, batch_size=1) == sampled
    assert llava.sample(items, 3, max_new_tokens=6, seed=1) != sampled
    assert len({*sampled[0]}) > 1 and sampled[0] != sampled[4]
    assert llava.sample([], 3) == []


def test_greedy_is_that_of_the_bare_model(llava, llava_path, items):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(llava_path).eval()
    processor = AutoProcessor.from_pretrained(llava_path)
    text = "SYSTEM: Be short.\nUSER: <image>\nWhat is it?\nASSISTANT:"
    ids = processor(text=text, images=picture(1), return_tensors="pt")
    expected = []
    for _ in range(6):
        logits = model(**ids).logits[0, -1]
        logits[llava.never] = -torch.inf
        token = logits[: len(processor.tokenizer)].argmax()
        if token in llava.end_ids:
            break
        expected.append(int(token))
        ids["input_ids"] = torch.cat([ids["input_ids"], token[None, None]], dim=1)
        ids["attention_mask"] = torch.ones_like(ids["input_ids"])
    prompt = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "What is it?"}]
    answer = llava.sample([make_group(prompt, [], picture(1))], temperature=0, max_new_tokens=6)
    assert answer == [[processor.tokenizer.decode(expected, skip_special_tokens=True)]] and expected


def test_placeholders_are_never_said_and_end_tokens_end(llava_path, items):
    llava = load_answerer(llava_path)
    image = llava.tokenizer.convert_tokens_to_ids("<image>")
    assert image in llava.never and not set(llava.never) & set(llava.end_ids)
    said = llava.tokenizer.convert_tokens_to_ids("b")
    with (
        torch.no_grad()
    ):  # a model that wants to say nothing but "<image>", then what fills the embedding up, then "b"
        head = llava.model.get_output_embeddings().weight
        head.zero_()
        llava.model.get_output_embeddings().register_forward_hook(
            lambda _, __, out: (
                out.index_fill(-1, torch.tensor([image]), 90.0)
                .index_fill(-1, torch.tensor([len(head) - 1]), 80.0)
                .index_fill(-1, torch.tensor([said]), 70.0)
            )
        )
    assert llava.sample(items, temperature=0, max_new_tokens=3) == [["bbb"]] * 5
    assert llava.sample(items[:1], 2, max_new_tokens=3, top_k=1) == [["bbb"] * 2]
    llava.end_ids.append(said)
    assert llava.sample(items[:1], temperature=0, max_new_tokens=3) == [[""]]


def test_what_is_done_and_the_shares(llava, items):
    whole = dict(enumerate(llava.sample(items, 2, max_new_tokens=4)))
    options = {"max_new_tokens": 4, "batch_size": 2}
    shares = [list(llava.sample_batches(items, 2, **options, share=(rank, 2))) for rank in (0, 1)]
    assert [len(share) for share in shares] == [2, 1]
    assert {i: own for share in shares for batch in share for i, own in zip(*batch, strict=True)} == whole
    first = shares[0][0][0]
    rest = [i for batch, _ in llava.sample_batches(items, 2, **options, done=first) for i in batch]
    assert sorted([*rest, *first]) == [0, 1, 2, 3, 4] and len(rest) == 3


def test_an_adapter_of_it(llava_path, llava, items, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(llava_path)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(tmp_path)
    answers = load_answerer(tmp_path).sample(items, temperature=0, max_new_tokens=8)
    assert answers != llava.sample(items, temperature=0, max_new_tokens=8) and all(own[0] for own in answers)


def test_mistakes_are_told(llava_path, llava, items, tmp_path):
    with pytest.raises(ValueError, match="has no chat template.*chat_template.jinja"):
        load_answerer(save_llava(tmp_path / "bare", template=None))
    with pytest.raises(ValueError, match="is a llava, whose processor has no pixel budget"):
        load_answerer(llava_path, max_pixels=10000)
    with pytest.raises(ValueError, match="unknown backend 'tgi'"):
        load_answerer(llava_path, backend="tgi")
    with pytest.raises(ValueError, match="needs vLLM, which is not installed"):
        load_answerer(llava_path, backend="vllm")
    with pytest.raises(ValueError, match="max_pixels has no effect"):
        load_answerer("m", endpoint="http://127.0.0.1:1/v1", max_pixels=1)
    with pytest.raises(ValueError, match="expected an address such as"):
        load_answerer("m", endpoint="127.0.0.1:1/v1")
    with pytest.raises(ValueError, match="share is .*expected .rank, world."):
        llava.sample(items, share=(2, 2))
    spoken = make_group("a", [], picture(1), where="q.jsonl, line 3")
    spoken.prompt[0]["content"][-1]["text"] = "what is <image>?"
    with pytest.raises(DataError, match="q.jsonl, line 3: the text holds '<image>'"):
        llava.sample([spoken])
    strict = load_answerer(llava_path)
    strict.processor.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(DataError, match="q.jsonl, line 4: .*System role not supported"):
        strict.sample([make_group("a", [], where="q.jsonl, line 4")])


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
                self.server.seen.append((self.path, dict(self.headers), body, time.monotonic()))
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
    policy = load_answerer("big", endpoint=endpoint.url)
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


def test_many_requests_keep_their_places(endpoint, items):
    policy = load_answerer(endpoint.url)
    answers = policy.sample(items, 3, max_new_tokens=4, batch_size=2)
    assert {body["model"] for _, _, body, _ in endpoint.seen} == {"default"} and len(endpoint.seen) == 15
    assert len({text for own in answers for text in own}) == 15  # every answer has a seed of its own
    assert policy.sample(items, 3, max_new_tokens=4) == answers != policy.sample(items, 3, seed=1)
    assert [own[0].split("-")[0] for own in answers][0] == [own[0].split("-")[0] for own in answers][4]
    shares = [list(policy.sample_batches(items, 3, batch_size=2, share=(rank, 2))) for rank in (0, 1)]
    assert [i for share in shares for batch, _ in share for i in batch] == [0, 1, 4, 2, 3]
    assert {i: own for share in shares for one in share for i, own in zip(*one, strict=True)} == dict(
        enumerate(answers)
    )
    left = [batch for batch, _ in policy.sample_batches(items, batch_size=2, done={0, 1, 2})]
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
    answered = policy.sample_batches(items, temperature=0, batch_size=1)
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
