"""An agent with tools in a small world whose end can be checked: look prices up, compute, book.

python examples/agent_world.py [--tasks 5] [--fast llama_cpp:small.gguf --slow llama_cpp:large.gguf]

A task is won when the world's bookings are the right ones in the end, which may be none: of what is not sold, or costs
too much. Four ways of answering are compared on the same tasks: the fast model alone, the slow one alone, tokens routed
between both, and whole turns: a turn of which the fast model is not sure is the slow one's. The models are a pair that
was trained for this world (``agent_pair``), or any two that know tools. ``benchmarks/agents.py`` keeps figures, with
intervals.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import operator
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fsgen_router import Message, Policy, Router, ToolCall
from fsgen_router.policies import ByTool
from fsgen_router.reference import world as tarn

PAIR = Path(__file__).with_name("agent_pair")
MAX_TURNS = 10
SYSTEM = (
    "Look up the price of each thing, compute its total, then book it. Compare numbers by their difference. "
    "Book nothing that is not sold. At the end say what is booked."
)


# --- tools and the world -------------------------------------------------------------------------


def tool(name: str, description: str, **properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


_TOWN = {"type": "string", "enum": tarn.TOWNS}
_THING = {"type": "string", "enum": tarn.WARES}
_COUNT = {"type": "integer", "minimum": 1, "maximum": 99}
_COINS = {"type": "integer", "minimum": 0, "maximum": 9999}
TOOLS = [
    tool("get_price", "The price of one thing in a town, in coins", thing=_THING, town=_TOWN),
    tool("get_voucher", "What a voucher takes off the total in a town, in coins", town=_TOWN),
    tool("compute", "The value of a sum such as 7*12-5", expression={"type": "string", "maxLength": 24}),
    tool("book", "Book things for a total in coins", thing=_THING, town=_TOWN, count=_COUNT, total=_COINS),
]

Booking = tuple[str, str, int, int]  # thing, town, count, total


@dataclass
class World:
    """Prices of what is sold where, what vouchers are worth, and what was booked; each task has its own."""

    prices: Mapping[tuple[str, str], int]
    vouchers: Mapping[str, int]
    booked: list[Booking] = field(default_factory=list)

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """What a tool says; a call that makes no sense is answered in words."""
        match name:
            case "get_price":
                price = self.prices.get((arguments["thing"], arguments["town"]))
                return "not sold" if price is None else f"{price} coins"
            case "get_voucher":
                return f"{self.vouchers[arguments['town']]} coins"
            case "compute":
                return compute(arguments["expression"])
            case "book":
                self.booked.append((arguments["thing"], arguments["town"], arguments["count"], arguments["total"]))
                return "booked"
        raise AssertionError("calls are valid by construction")


_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}


def compute(expression: str) -> str:
    def value(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](value(left), value(right))
        raise ValueError("numbers, +, - and * alone")

    try:
        return str(value(ast.parse(expression, mode="eval").body))
    except (ValueError, SyntaxError) as error:
        return f"cannot compute {expression!r}: {error}"


def is_valid(call: ToolCall) -> bool:
    """Whether a call keeps to its tool's schema."""
    schema = next(one["function"]["parameters"] for one in TOOLS if one["function"]["name"] == call.name)
    fits = {
        "string": lambda value, rule: isinstance(value, str) and value in rule.get("enum", [value]),
        "integer": lambda value, rule: type(value) is int and rule["minimum"] <= value <= rule["maximum"],
    }
    rules = schema["properties"]
    return set(call.parsed) == set(rules) and all(
        fits[rules[key]["type"]](value, rules[key]) for key, value in call.parsed.items()
    )


# --- tasks ---------------------------------------------------------------------------------------

Kind = Literal["one", "two", "limit", "voucher", "cheaper"]
KINDS: tuple[Kind, ...] = ("one", "two", "limit", "voucher", "cheaper")
HARD: tuple[Kind, ...] = ("two", "cheaper")
"""There is more than one price: training shows them three times as often."""
Split = Literal["train", "tune", "test"]


@dataclass(frozen=True)
class Task:
    """What is asked, and what is to be found in the world: prices of what is sold, and what vouchers take off."""

    kind: Kind
    ask: str
    things: tuple[tuple[str, int], ...]
    """Each with its count."""
    towns: tuple[str, ...]
    limit: int | None
    prices: Mapping[tuple[str, str], int]
    vouchers: Mapping[str, int]

    @property
    def wanted(self) -> list[Booking]:
        """The right bookings: what is sold, where it costs least, for no more than the limit."""
        found = []
        for thing, count in self.things:
            sold = [(self.prices[thing, town], town) for town in self.towns if (thing, town) in self.prices]
            if not sold:
                continue
            price, town = min(sold)
            total = price * count - (self.vouchers[town] if self.kind == "voucher" else 0)
            if self.limit is None or total <= self.limit:
                found.append((thing, town, count, total))
        return found


def tasks(count: int, seed: int | str = 0, split: Split = "test") -> list[Task]:
    """``count`` tasks; what one split asks, no other does."""
    return [_task(random.Random(f"{split}/{seed}/{number}"), split) for number in range(count)]


def _task(rng: random.Random, split: Split) -> Task:
    while True:
        kind = rng.choice(KINDS + 2 * HARD if split == "train" else KINDS)
        things = tuple((thing, rng.randint(3, 9)) for thing in rng.sample(tarn.WARES, 2 if kind == "two" else 1))
        towns = tuple(rng.sample(tarn.TOWNS, 2 if kind == "cheaper" else 1))
        limit = 10 * rng.randint(1, 8) if kind == "limit" else None
        ask = _ask(rng, kind, things, towns, limit)
        draw = hashlib.sha256(ask.encode()).digest()[0] % 10
        if split == ("test" if draw == 0 else "tune" if draw == 1 else "train"):
            break
    prices = {
        (thing, town): price
        for thing, _ in things
        for town, price in zip(towns, rng.sample(range(3, 10), len(towns)), strict=True)  # no two towns' are the same
        if rng.random() < 0.85
    }
    return Task(kind, ask, things, towns, limit, prices, {town: rng.randint(1, 5) for town in towns})


def _ask(
    rng: random.Random, kind: Kind, things: tuple[tuple[str, int], ...], towns: tuple[str, ...], limit: int | None
) -> str:
    what = " and ".join(f"{count} {thing}s" for thing, count in things)
    where = " or ".join(towns)
    behind = {
        "one": (".",),
        "two": (".",),
        "limit": (
            f", for {limit} coins at most.",
            f". I can pay {limit} coins.",
            f", but not for more than {limit} coins.",
        ),
        "voucher": (". I have a voucher.", ", with my voucher."),
        "cheaper": (", in the town where they cost less.", ". Take the lower price.", ", at the lower price."),
    }
    before = rng.choice((f"Book {what} in {where}", f"I need {what} from {where}", f"Please get me {what} in {where}"))
    return before + rng.choice(behind[kind])


# --- the agent -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """One task's run. ``malformed``: calls that a schema does not allow, which is none. ``said_forwards``: the slow
    model's in the last turn, which calls nothing."""

    won: bool
    turns: int
    slow_forwards: int
    said_forwards: int
    slow_tokens: int
    tokens: int
    malformed: int


def run(router: Router, task: Task, policy: Policy | str, *, method: str = "replace") -> Outcome:
    """An agent's loop: as long as the answer calls tools, they are run and their results are shown."""
    world, malformed, said_forwards = World(task.prices, task.vouchers), 0, 0
    messages: list[Message] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": task.ask}]
    options: dict[str, Any] = {"policy": policy, "method": method, "parallel_tool_calls": False, "max_tokens": 100}
    with router.session(tools=TOOLS, seed=0, **options) as session:
        for _ in range(MAX_TURNS):
            answer = session.chat(messages)
            if not answer.tool_calls:
                said_forwards = answer.usage.slow_forwards
                break
            messages = [*session.messages]
            for call in answer.tool_calls:
                malformed += not is_valid(call)
                messages.append(
                    {"role": "tool", "tool_call_id": call.id, "content": world.call(call.name, call.parsed)}
                )
        usage, turns = session.usage, len(session.report().answers)
    return Outcome(
        won=sorted(world.booked) == sorted(task.wanted),
        turns=turns,
        slow_forwards=usage.slow_forwards,
        said_forwards=said_forwards,
        slow_tokens=usage.slow_tokens,
        tokens=usage.tokens,
        malformed=malformed,
    )


WAYS: dict[str, tuple[Policy | str, str]] = {
    "fast alone": ("never", "replace"),
    "slow alone": ("always,span=rest", "replace"),
    "routed": (ByTool("entropy>0.3", {"book": "verify"}), "verify"),
    "whole turns": ("entropy>0.01,at=prompt", "replace"),
}
"""Policy and method, found on the tasks of ``tune``."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", default=f"llama_cpp:{PAIR}/fast.gguf", help="a model string")
    parser.add_argument("--slow", default=f"llama_cpp:{PAIR}/slow.gguf", help="a model string")
    parser.add_argument("--tasks", type=int, default=5, help="how many (default: %(default)s)")
    args = parser.parse_args()
    with Router(args.fast, args.slow, policy="never", method="replace") as router:
        for name, (policy, method) in WAYS.items():
            found = [run(router, task, policy, method=method) for task in tasks(args.tasks)]
            won, steps = sum(one.won for one in found), sum(one.slow_forwards for one in found)
            print(
                f"{name:12} {won} of {len(found)} tasks, {steps / len(found):6.1f} slow forwards a task, "
                f"{sum(one.turns for one in found) / len(found):.1f} turns, "
                f"{sum(one.malformed for one in found)} malformed calls"
            )


if __name__ == "__main__":
    main()
