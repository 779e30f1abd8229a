"""Drafts verified over HTTP on an unmodified vLLM server: text against the slow model's own, and what it takes.

For each GSM8K problem, in turns: the server's own greedy text in one call (plain HTTP, none of this package's code),
``every:K`` with ``verify:exact`` against the server, and, for one problem in ``--in-process-every``, the same pair with
the slow model's files loaded here through transformers. Token for token, ``different`` texts are listed with the gap
between the server's two best tokens where they part: a tie, where kernels for one token and for many round differently.

What the server's prefix cache held is read off its own counters (``/metrics``) around each answer that is verified
over HTTP. A line for each problem goes to ``--work``, and what is there is not done again, so that a long run can be
cut and goes on; the result is made of all lines.

    vllm serve slow-folder --served-model-name slow --dtype float32 --max-model-len 1024 --enforce-eager \\
        --enable-scale-out --enable-prompt-tokens-details --block-size 32 --port 8311
    python benchmarks/http_verify.py --fast llama_cpp:small.gguf --server http://127.0.0.1:8311 --slow slow-folder \\
        --problems gsm8k_test.jsonl --work http_verify.jsonl --count 200
"""

from __future__ import annotations

import argparse
import json
import random
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from real_pair import gsm8k

from fsgen_router import Generation, Router
from fsgen_router.adapters.tokens import TokensModel
from fsgen_router.contracts.models import TokenModel
from fsgen_router.contracts.tokenizer import Turn
from fsgen_router.resolve import make_model

from common import block_ratio, save

COUNTERS = (
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "prompt_tokens_total",
    "prompt_tokens_cached_total",
)
SEED, SALT = 0, "own"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", required=True, help="a model string, of the slow one's vocabulary")
    parser.add_argument("--server", required=True, help="http://host:port of the vLLM server")
    parser.add_argument("--model", default="slow", help="the name that it serves (default: %(default)s)")
    parser.add_argument("--slow", type=Path, required=True, help="the folder that it serves, to load in process")
    parser.add_argument("--problems", type=Path, required=True, help="GSM8K's test problems, JSON lines")
    parser.add_argument("--work", type=Path, required=True, help="where the lines go")
    parser.add_argument("--count", type=int, default=200, help="problems in all (default: %(default)s)")
    parser.add_argument("--at-most", type=int, default=10**9, help="of them in this run")
    parser.add_argument("--interval", type=int, default=16, help="drafts that one call judges (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=48, help="of an answer (default: %(default)s)")
    parser.add_argument("--in-process-every", type=int, default=4, help="problems (default: %(default)s)")
    args = parser.parse_args()
    items = gsm8k(args.problems, 1319)
    random.Random(SEED).shuffle(items)
    done = [json.loads(line) for line in args.work.read_text().splitlines()] if args.work.exists() else []
    todo = [*enumerate(items[: args.count])][len(done) :][: args.at_most]
    if todo:
        run(args, todo, done)
    if sum("in_process" in line for line in done) > 1:
        summarise(args, done)


def run(args: argparse.Namespace, todo: list[tuple[int, Any]], done: list[dict[str, Any]]) -> None:
    """Ask all contenders, and write a line for each problem."""
    fast = make_model(args.fast)
    served = TokensModel(f"{args.model}@{args.server}")
    here = make_model(f"transformers:{args.slow}?n_ctx={served.n_ctx}&dtype=float32&device=cpu")
    policy, method = f"every:{args.interval}", f"verify:exact,draft_len={args.interval}"
    routers = {
        name: Router(fast, slow, policy=policy, method=method, seed=SEED)
        for name, slow in (("http", served), ("in_process", here))
    }
    for router in routers.values():  # warms up
        router.chat([{"role": "user", "content": "Write a sentence about trains."}], max_tokens=args.max_tokens)
    with args.work.open("a") as lines:
        for number, item in todo:
            messages: list[Turn] = [dict(turn) for turn in item.messages or ()]
            own, seconds = own_text(args, served.tokenizer.encode_chat(messages))
            line: dict[str, Any] = {"problem": item.id, "own_tokens": len(own), "own_seconds": seconds}
            for name, router in routers.items():
                if name == "in_process" and number % args.in_process_every:
                    continue
                before = counters(args.server)
                began = time.perf_counter()
                answer = router.chat(messages, max_tokens=args.max_tokens)  # type: ignore[arg-type]
                line[name] = figures(answer, time.perf_counter() - began)
                if name == "http":
                    line[name] |= {key: value - before[key] for key, value in counters(args.server).items()}
                    line[name]["parts"] = parting(args, served, messages, answer, own)
            lines.write(json.dumps(line) + "\n")
            lines.flush()
            done.append(line)
            print(json.dumps(line), flush=True)
    for router in routers.values():
        router.close()


def figures(answer: Generation, seconds: float) -> dict[str, Any]:
    usage = answer.usage
    return {
        "tokens": usage.tokens,
        "seconds": seconds,
        "calls": usage.slow.calls,
        "corrections": usage.corrections,
        "read_by_slow": usage.slow.positions,
        "degraded": answer.degraded,
    }


def post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def own_text(args: argparse.Namespace, prompt: list[int]) -> tuple[list[int], float]:
    """The server's greedy tokens in one call, which leaves nothing in the prefix cache that other calls find."""
    sampling = {"max_tokens": args.max_tokens, "temperature": 0, "skip_reading_prefix_cache": True}
    began = time.perf_counter()
    found = post(
        f"{args.server}/inference/v1/generate",
        {"model": args.model, "token_ids": prompt, "sampling_params": sampling, "cache_salt": SALT},
    )
    return found["choices"][0]["token_ids"], time.perf_counter() - began


def parting(
    args: argparse.Namespace, served: TokenModel, messages: list[Turn], answer: Generation, own: list[int]
) -> dict[str, Any] | None:
    """Where two texts part, and the server's two best tokens there; None where they do not."""
    ours = [token.id for token in answer.tokens]
    at = next((k for k, pair in enumerate(zip(ours, own, strict=False)) if pair[0] != pair[1]), None)
    if at is None and len(ours) == len(own):
        return None
    at = min(len(ours), len(own)) if at is None else at
    ids = [*served.tokenizer.encode_chat(messages), *own[:at]]
    sampling = {"max_tokens": 1, "temperature": 0, "logprobs": 2, "skip_reading_prefix_cache": True}
    body = {"model": args.model, "token_ids": ids, "sampling_params": sampling, "cache_salt": SALT}
    (told,) = post(f"{args.server}/inference/v1/generate", body)["choices"][0]["logprobs"]["content"]
    best = sorted(told["top_logprobs"], key=lambda one: -one["logprob"])
    return {
        "at": at,
        "ours": ours[at : at + 1],
        "own": own[at : at + 1],
        "best": [one["token_id"] for one in best],
        "gap_nats": best[0]["logprob"] - best[1]["logprob"],
    }


def counters(server: str) -> dict[str, float]:
    """The server's own counters of prompt tokens and of its prefix cache."""
    with urllib.request.urlopen(f"{server}/metrics") as response:
        text = response.read().decode()
    values = dict.fromkeys(COUNTERS, 0.0)
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        for counter in COUNTERS:
            if name.startswith(f"vllm:{counter}{{"):
                values[counter] += float(value)
    return values


def summarise(args: argparse.Namespace, done: list[dict[str, Any]]) -> None:
    http = [line["http"] for line in done]
    both = [line for line in done if "in_process" in line]

    def total(key: str) -> float:
        return sum(one[key] for one in http)

    def speed(name: str) -> list[float]:
        return [line[name]["tokens"] / line[name]["seconds"] for line in both]

    partings = [{"problem": line["problem"], **line["http"]["parts"]} for line in done if line["http"]["parts"]]
    save(
        "http_verify",
        {
            "server": "vllm 0.32.0 for CPUs, float32, block size 32, one thread",
            "fast": args.fast.rpartition("/")[2].partition("?")[0],
            "slow": args.slow.name,
            "seed": SEED,
            "prompts": len(done),
            "interval": args.interval,
            "max_tokens": args.max_tokens,
            "tokens": total("tokens"),
            "different": len(partings),
            "partings": partings,
            "degraded": sum(one["degraded"] is not None for one in http),
            "calls_per_answer": total("calls") / len(http),
            "tokens_per_call": total("tokens") / total("calls"),
            "corrections": total("corrections"),
            "prompt_tokens_sent": total("prompt_tokens_total"),
            "cached_share_of_prompt_tokens": total("prompt_tokens_cached_total") / total("prompt_tokens_total"),
            "hit_share_of_cache_queries": total("prefix_cache_hits_total") / total("prefix_cache_queries_total"),
            "http_tokens_per_second": float(np.median([one["tokens"] / one["seconds"] for one in http])),
            "own_tokens_per_second": float(np.median([line["own_tokens"] / line["own_seconds"] for line in done])),
            "paired_with_in_process": len(both),
            "http_tokens_per_second_there": float(np.median(speed("http"))),
            "in_process_tokens_per_second": float(np.median(speed("in_process"))),
            "http_to_in_process": block_ratio(speed("http"), speed("in_process"), seed=SEED),
        },
    )


if __name__ == "__main__":
    main()
