"""What quality costs where the slow model is behind an endpoint that bills tokens: spans, a hand-over, whole queries.

The reference pair, its slow model behind llama-cpp-python's own server on loopback, at prices of 1 : 0.05 : 5 US
dollars per million tokens (input, cached input, output). Held-out problems as raw prompts, temperature 0:

* spans: where the fast model's entropy crosses a threshold the slow one writes 8, 16 or 32 tokens, then the fast one
  goes on; also with the gate, which asks again only where that breaks even;
* hand-over: the first crossing hands the rest over, in one call;
* whole queries: by the entropy of the first token, and by the mean entropy of the fast model's whole answer, whose
  highest are asked again whole (the fast model's answer costs nothing here, so this is the stronger of the two).

Each answer is billed twice: as the Router counts it (this server counts nothing in its streams), with every call's
prompt at the price of input, and as a vendor would whose cache finds all that an earlier call of the same answer read
or wrote (most cache no prompts as short as these). The cost at which a way recovers a share of the quality gap is found
on its curve, in every bootstrap draw by prompt, and set against that of whole queries in the same draw.

    python benchmarks/remote_money.py --count 300
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fsgen_router import Generation, Prices, Router, reference
from fsgen_router.adapters.openai import OpenAIModel
from fsgen_router.contracts.billing import Billed
from fsgen_router.contracts.text_models import Continuation, TextChunk, TextEnd, TextEvent
from fsgen_router.evaluation import SLOW_ONLY, Estimate, Item, ask
from fsgen_router.evaluation.intervals import bootstrap
from fsgen_router.evaluation.summaries import crossings
from fsgen_router.money import cost_of
from fsgen_router.reference import world

from common import save

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from endpoints import real_server  # the same server that tests run against

PRICES = Prices(input=1.0, output=5.0, cached_input=0.05)
THRESHOLDS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.4)
SPANS = (8, 16, 32)
LEVELS = (0.5, 0.8, 0.95)
TARIFFS = ("no cache", "prefix cache")
SHARES = np.linspace(0.1, 0.9, 9)
SEED = 0

Array = npt.NDArray[np.float64]


class Listened:
    """The endpoint, and what each call of an answer sent and wrote: what bills are made of."""

    def __init__(self, model: OpenAIModel) -> None:
        self._model, self.name, self.n_params = model, model.name, model.n_params
        self.calls: list[tuple[str, str]] = []
        """By call: the answer so far, and what was written behind it."""

    @property
    def capabilities(self) -> Any:
        return self._model.capabilities

    def stream(self, request: Continuation) -> Generator[TextEvent, None, None]:
        text = ""
        for event in self._model.stream(request):
            if isinstance(event, TextChunk):
                text += event.text
            elif isinstance(event, TextEnd):
                self.calls.append((request.answer, text))
            yield event

    def shutdown(self) -> None:
        self._model.shutdown()


@dataclass(frozen=True)
class Answered:
    """One way's answers as columns, shape (n,): right or wrong, both bills in US dollars, calls, mean entropy."""

    right: Array
    usd: dict[str, Array]
    calls: Array
    entropy: Array
    tokens: Array
    declined: Array
    estimated: int
    """Tokens of the bills that the server did not count."""


def run(router: Router, endpoint: Listened, items: list[Item], policy: str) -> Answered:
    routed = router.with_policy(policy)
    rows: list[list[float]] = []
    estimated = 0
    for item in items:
        endpoint.calls.clear()
        answer = ask(routed, item)
        if answer.degraded is not None:
            raise RuntimeError(f"{policy}: {answer.degraded}")
        estimated += answer.usage.billed.estimated
        cached_bill = with_prefix_cache(router, answer, endpoint.calls)
        bills = cost_of(answer.usage.billed, PRICES), cost_of(cached_bill, PRICES)
        entropies = [token.signals.entropy_nats for token in answer.tokens if token.signals is not None]
        usage = answer.usage
        right = float(item.check(answer.text)) if item.check is not None else float("nan")
        mean = float(np.mean(entropies)) if entropies else 0.0
        rows.append([right, *bills, usage.round_trips, mean, usage.tokens, usage.declined])
    right, plain, cached, calls, entropy, tokens, declined = np.array(rows).T
    usd = dict(zip(TARIFFS, (plain, cached), strict=True))
    return Answered(right, usd, calls, entropy, tokens, declined, estimated)


def with_prefix_cache(router: Router, answer: Generation, calls: list[tuple[str, str]]) -> Billed:
    """The same calls where a cache finds all that the call before read or wrote.

    The server counts no tokens in its streams. Both models have one vocabulary, so the fast one's tokenizer counts.
    """
    bill, before, tokenizer = Billed(), 0, router.fast.tokenizer
    for so_far, text in calls:
        read = answer.usage.prompt_tokens + len(tokenizer.encode(so_far, add_bos=False))
        written = len(tokenizer.encode(text, add_bos=False))
        bill.add(Billed.of("call", prompt=read, written=written, cached=before))
        before = read + written
    own = answer.usage.billed
    if len(calls) != own.calls or abs(bill.tokens - own.tokens) > 0.02 * own.tokens + 2 * own.calls:
        raise RuntimeError(f"two ways of counting one bill differ: {bill} and {own}")
    return bill


def whole_queries(fast: Answered, slow: Answered) -> list[Answered]:
    """The slow model's answer for the shares of the queries with the highest mean entropy of the fast one's."""
    order, found = np.argsort(-fast.entropy, kind="stable"), []
    for share in SHARES:
        over = np.zeros(len(order), bool)
        over[order[: round(share * len(order))]] = True
        found.append(
            Answered(
                right=np.where(over, slow.right, fast.right),
                usd={name: np.where(over, slow.usd[name], 0.0) for name in TARIFFS},
                calls=over.astype(float),
                entropy=fast.entropy,
                tokens=np.where(over, slow.tokens, fast.tokens),
                declined=np.zeros(len(order)),
                estimated=0,
            )
        )
    return found


def cost_at(fast: Answered, slow: Answered, curves: dict[str, list[Answered]], tariff: str) -> dict[str, Any]:
    """For each way and level: its cost over that of the slow model alone, and over that of whole queries."""
    names = list(curves)
    runs = [[fast, *curves[name], slow] for name in names]
    columns = np.stack([column for way in runs for one in way for column in (one.right, one.usd[tariff])], 1)
    reference_way = names.index("whole queries, by mean entropy")

    def statistic(m: Array) -> Array:
        rows = []
        for draw in m:
            at, found = 0, []
            for way in runs:
                part = draw[at : at + 2 * len(way)].reshape(-1, 2)
                at += 2 * len(way)
                found.append(crossings(part[:, 1] / part[-1, 1], part[:, 0], LEVELS))
            costs = np.array(found)
            rows.append(np.concatenate([costs.ravel(), (costs / costs[reference_way]).ravel()]))
        return np.array(rows)

    estimates = bootstrap(statistic, columns, seed=SEED)
    half = len(estimates) // 2

    def of(name: str, level: int, offset: int) -> Estimate:
        return estimates[offset + names.index(name) * len(LEVELS) + level]

    return {
        name: {
            str(level): of(name, at, 0).to_dict("over_slow_only") | of(name, at, half).to_dict("over_whole_queries")
            for at, level in enumerate(LEVELS)
        }
        for name in names
    }


def point(policy: str, one: Answered, slow: Answered) -> dict[str, Any]:
    """A point of a curve: accuracy and costs, with their intervals."""

    def statistic(m: Array) -> Array:
        return np.stack([m[:, 0], m[:, 1] / m[:, 3], m[:, 2] / m[:, 4]], 1)

    both = [x.usd[name] for x in (one, slow) for name in TARIFFS]
    accuracy, plain, cached = bootstrap(statistic, np.stack([one.right, *both], 1), seed=SEED)
    return {
        "policy": policy,
        **accuracy.to_dict("accuracy"),
        **plain.to_dict("over_slow_only"),
        **cached.to_dict("over_slow_only_with_prefix_cache"),
        "usd_per_answer": one.usd["no cache"].mean(),
        "calls_per_answer": one.calls.mean(),
        "declined_per_answer": one.declined.mean(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="test problems (default: %(default)s)")
    args = parser.parse_args()
    items = [
        Item(id=problem.id, prompt=f"{problem.prompt}\n", check=problem.check)
        for problem in world.problems("test", args.count)
    ]
    ways = {
        **{f"spans of {span}": [f"entropy>{t},span={span}" for t in THRESHOLDS] for span in SPANS},
        "hand-over of the rest": [f"entropy>{t},span=rest" for t in THRESHOLDS],
        "whole queries, by the first token": [f"entropy>{t},at=prompt" for t in THRESHOLDS],
    }
    with tempfile.TemporaryDirectory() as folder, real_server(Path(folder), {"slow": reference.path("slow")}) as server:
        where = f"slow@{server.url}"
        model = Listened(OpenAIModel(where, extra_body={"repeat_penalty": 1.0}, api_key_env=""))
        fast_model = reference.load("fast")
        settings: dict[str, Any] = {"prices": PRICES, "seed": SEED, "batching": False}
        with (
            Router(fast_model, model, policy="never", at_any_price=True, **settings) as free,
            Router(fast_model, model, policy="never", **settings) as gated,
        ):
            fast, slow = run(free, model, items, "never"), run(free, model, items, SLOW_ONLY)
            curves: dict[str, list[Answered]] = {}
            for name, policies in ways.items():
                curves[name] = [run(free, model, items, policy) for policy in policies]
                print(name, "done", file=sys.stderr)
            name = f"{next(iter(ways))}, where they break even"
            ways[name] = ways["spans of 8"]
            curves[name] = [run(gated, model, items, policy) for policy in ways[name]]
        model.shutdown()
        fast_model.shutdown()
    by_entropy = "whole queries, by mean entropy"
    ways[by_entropy] = [f"mean entropy, highest {share:.0%}" for share in SHARES]
    curves[by_entropy] = whole_queries(fast, slow)
    save(
        "remote_money",
        {
            "world": world.VERSION,
            "seed": SEED,
            "n": len(items),
            "prices": PRICES.to_dict(),
            "estimated_tokens": sum(one.estimated for found in curves.values() for one in found),
            "fast": point("never", fast, slow),
            "slow": point(SLOW_ONLY, slow, slow),
            "answer_tokens": slow.tokens.mean(),
            "at_quality": {tariff: cost_at(fast, slow, curves, tariff) for tariff in TARIFFS},
            "curves": {
                name: [point(policy, one, slow) for policy, one in zip(ways[name], found, strict=True)]
                for name, found in curves.items()
            },
        },
    )


if __name__ == "__main__":
    main()
