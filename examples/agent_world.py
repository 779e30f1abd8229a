"""An agent with tools in a small world whose end can be checked: look prices up, compute, book.

python examples/agent_world.py --fast llama_cpp:small.gguf --slow llama_cpp:large.gguf [--tasks 5]

Each task is won when the world's one booking is the right one. Four ways of answering are compared on the same tasks:
the fast model alone, the slow one alone, tokens routed between both with every booking judged by the slow one, and
whole turns: a turn of which the fast model is not sure is the slow one's. The models have to know tools: the reference
pair does not. ``benchmarks/agents.py`` keeps figures of it, with intervals.
"""

from __future__ import annotations

import argparse
import ast
import json
import operator
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fsgen_router import Message, Policy, Router, ToolCall
from fsgen_router.policies import ByTool

TOWNS = ("Norvale", "Tarn", "Estmere", "Quill")
THINGS = ("lamp", "rope", "map", "kettle", "blanket")
MAX_TURNS = 8
SYSTEM = (
    "You run errands in a shop. Use the tools, one at a time: first look up the price of the thing in the town, then "
    "compute the total as price * count, then book. When the booking is confirmed, say that it is done."
)


def tool(name: str, description: str, **properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


_TOWN = {"type": "string", "enum": list(TOWNS)}
_THING = {"type": "string", "enum": list(THINGS)}
_COUNT = {"type": "integer", "minimum": 1, "maximum": 99}
_COINS = {"type": "integer", "minimum": 0, "maximum": 9999}
TOOLS = [
    tool("get_price", "The price of one thing in a town, in coins", thing=_THING, town=_TOWN),
    tool("compute", "The value of a product such as 7 * 12", expression={"type": "string", "maxLength": 24}),
    tool("book", "Book things for a total price in coins", thing=_THING, town=_TOWN, count=_COUNT, total=_COINS),
]


@dataclass
class World:
    """Prices, and what was booked; each task has its own."""

    prices: dict[tuple[str, str], int]
    booked: list[tuple[str, str, int, int]] = field(default_factory=list)

    def call(self, call: ToolCall) -> str:
        """What a tool says; a call that makes no sense is answered in words."""
        arguments = call.parsed
        match call.name:
            case "get_price":
                return f"{self.prices[arguments['thing'], arguments['town']]} coins"
            case "compute":
                return compute(arguments["expression"])
            case "book":
                self.booked.append((arguments["thing"], arguments["town"], arguments["count"], arguments["total"]))
                return "The booking is confirmed."
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


@dataclass(frozen=True)
class Task:
    ask: str
    prices: dict[tuple[str, str], int]
    wanted: tuple[str, str, int, int]


def tasks(count: int, seed: int = 0) -> list[Task]:
    made = []
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        prices = {(thing, town): rng.randint(2, 40) for thing in THINGS for town in TOWNS}
        thing, town, amount = rng.choice(THINGS), rng.choice(TOWNS), rng.randint(2, 12)
        ask = rng.choice(
            (
                f"Book {amount} {thing}s in {town} for me.",
                f"I need {amount} {thing}s from {town}. Please book them.",
                f"Please get a booking for {amount} {thing}s in {town}.",
            )
        )
        made.append(Task(ask, prices, (thing, town, amount, prices[thing, town] * amount)))
    return made


@dataclass(frozen=True)
class Outcome:
    """One task's run. ``malformed``: calls that a schema does not allow, which is none."""

    won: bool
    turns: int
    slow_forwards: int
    slow_tokens: int
    tokens: int
    malformed: int


def run(router: Router, task: Task, policy: Policy | str, *, method: str = "replace") -> Outcome:
    """An agent's loop: as long as the answer calls tools, they are run and their results are shown."""
    world, malformed = World(task.prices), 0
    messages: list[Message] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": task.ask}]
    options: dict[str, Any] = {"policy": policy, "method": method, "parallel_tool_calls": False, "max_tokens": 100}
    with router.session(tools=TOOLS, seed=0, **options) as session:
        for _ in range(MAX_TURNS):
            answer = session.chat(messages)
            if not answer.tool_calls:
                break
            messages = [*session.messages]
            for call in answer.tool_calls:
                malformed += not is_valid(call)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": world.call(call)})
        usage, turns = session.usage, len(session.report().answers)
    return Outcome(
        won=world.booked == [task.wanted],
        turns=turns,
        slow_forwards=usage.slow_forwards,
        slow_tokens=usage.slow_tokens,
        tokens=usage.tokens,
        malformed=malformed,
    )


def is_valid(call: ToolCall) -> bool:
    schema = next(one["function"]["parameters"] for one in TOOLS if one["function"]["name"] == call.name)
    arguments = json.loads(call.arguments)
    return set(arguments) == set(schema["required"])


WAYS: dict[str, tuple[Policy | str, str]] = {
    "fast alone": ("never", "replace"),
    "slow alone": ("always,span=rest", "replace"),
    "routed": (ByTool("entropy>0.8", {"book": "verify"}), "verify"),
    "whole turns": ("entropy>0.8,at=prompt", "replace"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", required=True, help="a model string")
    parser.add_argument("--slow", required=True, help="a model string")
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
