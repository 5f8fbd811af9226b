"""A server with the routes of vLLM's that TRL's client uses: images laid out by a budget of its own, made-up answers.

vLLM itself needs a GPU. What is real here: HTTP, TRL's client, the images in the requests and their layout.
"""

from __future__ import annotations

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image
from transformers import ProcessorMixin


class VLLMServer:
    """Serves until the end of the `with` block; `sizes` are those of the images that came, `prompts` the tokens."""

    def __init__(self, processor: ProcessorMixin) -> None:
        self.processor, self.sizes, self.prompts = processor, [], []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.answer({"data": [{"id": "policy"}], "vllm_config": {}})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.answer(owner.rendered(body) if self.path.endswith("/render") else owner.generated(body))

            def answer(self, reply: dict) -> None:
                data = json.dumps(reply).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self) -> VLLMServer:
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.http.shutdown()
        self.http.server_close()

    def rendered(self, body: dict) -> dict:
        """Lays out the images of a conversation as vLLM's renderer does."""
        urls = [part["image_url"]["url"] for part in body["messages"][0]["content"]]
        images = [Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) for url in urls]
        self.sizes += [image.size for image in images]
        reader = self.processor.image_processor
        lengths = reader(images=images, return_tensors="pt")["image_grid_thw"].prod(1) // reader.merge_size**2
        places = [{"offset": 0, "length": length} for length in lengths.tolist()]
        return {"features": {"mm_placeholders": {"image": places}}}

    def generated(self, body: dict) -> dict:
        """Answers a prompt n times with the token 5 and the end."""
        self.prompts.append(body["token_ids"])
        tokens = [5, self.processor.tokenizer.eos_token_id]
        content = [{"token": f"token_id:{token}", "logprob": -1.0, "top_logprobs": []} for token in tokens]
        choice = {"token_ids": tokens, "logprobs": {"content": content}}
        return {"choices": [choice] * body["sampling_params"]["n"]}
