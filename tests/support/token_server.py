"""A server of token ids on loopback: real HTTP, rows of a real tiny model, in the shapes of vLLM 0.32 and SGLang.

Its prefix cache works by blocks as vLLM's does: what it held is not computed, and a reply has garbage there (seen on
the real one: ids that do not exist, log-probabilities of 1e23, and at times one that JSON cannot hold, where the reply
is refused with 400).
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

BLOCK = 16
GARBAGE = {"-570482448": {"logprob": 4.49e23, "rank": 1735197072}, "1": {"logprob": 4.57e-41, "rank": 1}}


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError") -> None:
        super().__init__(message)
        self.status, self.body = status, {"error": {"message": message, "type": kind, "param": None, "code": status}}


@dataclass
class TokenServer:
    """What it serves, what was asked, and what is wrong with it."""

    model: Any
    tokenizer: Any
    name: str = "slow"
    max_model_len: int = 161
    paths: tuple[str, ...] = ("/inference/v1/generate", "/v1/completions", "/tokenize", "/detokenize", "/v1/models")
    max_logprobs: int = 20
    reports_cached: bool = True
    breaks_on_garbage: bool = False
    key: str | None = None
    url: str = ""
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    before: Callable[[str, dict[str, Any]], None] = lambda path, body: None
    """Called with each request before it is answered; may raise :class:`Refused`, or any other to hang up."""
    at_once: int = 0
    most_at_once: int = 0
    prompt_tokens: int = 0
    computed_tokens: int = 0
    _blocks: set[tuple[int, ...]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, path: str) -> list[dict[str, Any]]:
        return [body for asked, body in self.asked if asked == path]

    # --- answers ---

    def answer(self, path: str, body: dict[str, Any]) -> Any:
        if path not in self.paths:
            raise Refused(404, "Not Found", "NotFoundError")
        self.before(path, body)
        if path == "/v1/models":
            card = {"id": self.name, "object": "model", "owned_by": "vllm", "root": "/models/tiny"}
            return {"object": "list", "data": [card | {"max_model_len": self.max_model_len}]}
        if body.get("model") not in (None, self.name):
            raise Refused(404, f"The model `{body['model']}` does not exist.", "NotFoundError")
        if path == "/tokenize":
            return self._tokenize(body)
        if path == "/detokenize":
            return {"prompt": self.tokenizer.decode(body["tokens"], skip_special_tokens=False)}
        return {
            "/inference/v1/generate": self._generate,
            "/v1/completions": self._completions,
            "/generate": self._sglang,
        }[path](body)

    def _tokenize(self, body: dict[str, Any]) -> Any:
        if "messages" in body:
            if not self.tokenizer.chat_template:
                raise Refused(400, "no chat template")
            text = self.tokenizer.apply_chat_template(
                body["messages"], tokenize=False, add_generation_prompt=True, **body.get("chat_template_kwargs", {})
            )
        else:
            text = body["prompt"]
        ids = self.tokenizer.encode(text, add_special_tokens=body.get("add_special_tokens", True) and "prompt" in body)
        return {"count": len(ids), "max_model_len": self.max_model_len, "tokens": ids, "token_strs": None}

    def _generate(self, body: dict[str, Any]) -> Any:
        sampling = body["sampling_params"]
        assert sampling["temperature"] == 0.0
        rows, written, cached = self._run(body["token_ids"], sampling, fresh=sampling["skip_reading_prefix_cache"])
        content = [
            {**_entry(rows, at, token), "top_logprobs": self._tops(rows, at, sampling["logprobs"])}
            for at, token in written
        ]
        choice = {"index": 0, "token_ids": [token for _, token in written], "logprobs": {"content": content}}
        return {
            "choices": [choice],
            "prompt_logprobs": self._prompt(body["token_ids"], rows, sampling.get("prompt_logprobs"), cached),
            "usage": self._usage(body["token_ids"], cached),
        }

    def _completions(self, body: dict[str, Any]) -> Any:
        rows, written, cached = self._run(body["prompt"], body, fresh="prompt_logprobs" in body)
        tops = [
            {f"token_id:{one['token_id']}": one["logprob"] for one in self._tops(rows, at, body["logprobs"])}
            for at, _ in written
        ]
        choice = {
            "index": 0,
            "token_ids": [token for _, token in written],
            "logprobs": {"top_logprobs": tops},
            "prompt_logprobs": self._prompt(body["prompt"], rows, body.get("prompt_logprobs"), cached),
        }
        return {"choices": [choice], "usage": self._usage(body["prompt"], cached)}

    def _sglang(self, body: dict[str, Any]) -> Any:
        ids, start, count = body["input_ids"], body["logprob_start_len"], body["top_logprobs_num"]
        asked = {"max_tokens": body["sampling_params"]["max_new_tokens"], "logprobs": count}
        rows, written, cached = self._run(ids, asked, fresh=False, computed_from=start)
        known = range(start, len(ids) - 1)

        def tops(at: int) -> list[Any]:
            return [[one["logprob"], one["token_id"], None] for one in self._tops(rows, at, count)]

        return {
            "text": "",
            "meta_info": {
                "cached_tokens": cached,
                "input_token_logprobs": [
                    [None, ids[start], None],
                    *([float(rows[at][ids[at + 1]]), ids[at + 1], None] for at in known),
                ],
                "input_top_logprobs": [None, *(tops(at) for at in known)],
                "output_token_logprobs": [[float(rows[at][token]), token, None] for at, token in written],
                "output_top_logprobs": [tops(at) for at, _ in written],
            },
        }

    # --- rows ---

    def _run(
        self, ids: Sequence[int], asked: dict[str, Any], *, fresh: bool, computed_from: int | None = None
    ) -> tuple[dict[int, torch.Tensor], list[tuple[int, int]], int]:
        """Log-probabilities behind each token, what was written (position of its row, token), and what was cached."""
        width, count = self.model.config.vocab_size, asked["max_tokens"]
        if any(not 0 <= token < width for token in ids):
            raise Refused(400, f"Token id {max(ids)} is out of vocabulary")
        if len(ids) + count > self.max_model_len:
            raise Refused(400, f"{len(ids)} tokens and {count} more do not fit {self.max_model_len}")
        if max(asked["logprobs"], asked.get("prompt_logprobs") or 0) > self.max_logprobs:
            raise Refused(400, f"Requested sample logprobs of {asked['logprobs']}, max allowed: {self.max_logprobs}")
        with self._lock:
            held = 0
            limit = len(ids) - 1 if computed_from is None else min(computed_from, len(ids) - 1)
            while not fresh and held + BLOCK <= limit and tuple(ids[: held + BLOCK]) in self._blocks:
                held += BLOCK
            context, written = list(ids), []
            rows: dict[int, torch.Tensor] = {}
            with torch.inference_mode():
                found = self.model(torch.tensor([context])).logits[0].float().log_softmax(-1)
                rows |= {at: found[at] for at in range(len(ids))}
                for _ in range(count):
                    at = len(context) - 1
                    if at not in rows:
                        rows[at] = self.model(torch.tensor([context])).logits[0, -1].float().log_softmax(-1)
                    written.append((at, int(rows[at].argmax())))
                    context.append(written[-1][1])
                    if written[-1][1] == self.tokenizer.eos_token_id:
                        break
            self._blocks |= {tuple(context[:end]) for end in range(BLOCK, len(context), BLOCK)}
            self.prompt_tokens += len(ids)
            self.computed_tokens += len(ids) - held
        return rows, written, held

    def _tops(self, rows: dict[int, torch.Tensor], at: int, count: int) -> list[dict[str, Any]]:
        best = rows[at].topk(min(count, len(rows[at])))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [{"token_id": token, "logprob": value, "rank": rank} for rank, (token, value) in enumerate(pairs, 1)]

    def _prompt(self, ids: Sequence[int], rows: dict[int, torch.Tensor], count: int | None, cached: int) -> Any:
        if count is None:
            return None
        if cached and self.breaks_on_garbage:
            raise Refused(400, "Out of range float values are not JSON compliant")
        told: list[Any] = [None]
        for at in range(len(ids) - 1):
            entries = [*self._tops(rows, at, count), _entry(rows, at, ids[at + 1])]
            told.append(
                GARBAGE
                if at < cached
                else {str(one["token_id"]): {"logprob": one["logprob"], "rank": one["rank"]} for one in entries}
            )
        return told

    def _usage(self, ids: Sequence[int], cached: int) -> Any:
        usage: dict[str, Any] = {"prompt_tokens": len(ids)}
        if self.reports_cached:
            usage["prompt_tokens_details"] = {"cached_tokens": cached}
        return usage


def _entry(rows: dict[int, torch.Tensor], at: int, token: int) -> dict[str, Any]:
    value = float(rows[at][token])
    return {"token_id": token, "logprob": value, "rank": int((rows[at] > value).sum()) + 1}


@contextlib.contextmanager
def token_server(folder: Path, **settings: Any) -> Iterator[TokenServer]:
    """Serve the model and tokenizer in a folder."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    server = TokenServer(model, PreTrainedTokenizerFast.from_pretrained(folder), **settings)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *arguments: object) -> None: ...

        def do_GET(self) -> None:
            self._serve({})

        def do_POST(self) -> None:
            self._serve(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def _serve(self, body: dict[str, Any]) -> None:
            with server._lock:
                server.asked.append((self.path, body))
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
            try:
                if server.key and self.headers.get("authorization") != f"Bearer {server.key}":
                    raise Refused(401, "Unauthorized", "AuthenticationError")
                status, found = 200, server.answer(self.path, body)
            except Refused as refused:
                status, found = refused.status, refused.body
            except Exception:
                self.close_connection = True
                return
            finally:
                with server._lock:
                    server.at_once -= 1
            data = json.dumps(found, allow_nan=False).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    listening.block_on_close = False
    server.url = f"http://127.0.0.1:{listening.server_address[1]}"
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()
