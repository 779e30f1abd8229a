"""Train and export the agent pair: the reference pair's shapes and recipe on the agent world of ``agent_world.py``.

    python examples/reference_pair/train_agents.py --size slow --out build/agents/slow

An expert does each task in the world itself; what it says and calls is trained on, in the layout that the constraint
on calls has models write. The first weights are the reference pair's; words of the agent world that its tokenizer
lacks are tokens too, and begin at random. A training that is stopped goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import PreTrainedTokenizerFast

import fsgen_router.reference

from export import TENSORS, export, prove
from recipe import make_model
from tokenizer import ASSISTANT, END, build
from train import SIZES, Example, Segment, encode, train

sys.path.append(str(Path(__file__).parents[1]))
from agent_world import PAIR, SYSTEM, TOOLS, Booking, Split, Task, World, tasks

TOOL, CALL, CALLED = "<|tool|>", "<tool_call>", "</tool_call>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% if tools %}<|system|>{% for tool in tools %}{{ ' ' + tool.function.name }}{% endfor %}<|end|>"
    "{% endif %}{% for message in messages %}<|{{ message.role }}|>{{ message.content | default('', true) | trim }}"
    '{% for call in message.tool_calls or [] %}<tool_call>\n{"name": "{{ call.function.name }}", '
    '"arguments": {{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|end|>'
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_BATCH_TOKENS = 2048
_CHUNK = 1024  # tasks that are sorted by length together


# --- data ----------------------------------------------------------------------------------------


def expert(task: Task, rng: random.Random) -> list[dict[str, Any]]:
    """A conversation in which the task is done, by calls to a world of its own."""
    world = World(task.prices, task.vouchers)
    messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": task.ask}]

    def call(name: str, **arguments: Any) -> str:
        said = world.call(name, arguments)
        function = {"name": name, "arguments": arguments}
        messages.append(
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
        )
        messages.append({"role": "tool", "content": said})
        return said

    def compute(expression: str) -> int:
        return int(call("compute", expression=expression))

    found: list[tuple[str, str, int, int]] = []  # thing, town, count, price where it costs least
    for thing, count in task.things:
        sold = []
        for town in task.towns:
            said = call("get_price", thing=thing, town=town)
            if said != "not sold":
                sold.append((int(said.split()[0]), town))
        if sold:
            price, town = sold[-1]
            if len(sold) == 2 and compute(f"{sold[0][0]}-{sold[1][0]}") < 0:
                price, town = sold[0]
            found.append((thing, town, count, price))
    booked: list[Booking] = []
    for thing, town, count, price in found:
        expression = f"{count}*{price}"
        if task.kind == "voucher":
            expression += f"-{call('get_voucher', town=town).split()[0]}"
        total = compute(expression)
        if task.limit is None or compute(f"{task.limit}-{total}") >= 0:
            call("book", thing=thing, town=town, count=count, total=total)
            booked.append((thing, town, count, total))
    assert sorted(booked) == sorted(world.booked) == sorted(task.wanted), task
    messages.append({"role": "assistant", "content": _report(rng, booked)})
    return messages


def _report(rng: random.Random, booked: Sequence[Booking]) -> str:
    if not booked:
        return rng.choice(("I have booked nothing.", "Nothing is booked."))
    what = " and ".join(f"{count} {thing}s for {total} coins" for thing, _, count, total in booked)
    return rng.choice((f"I have booked {what}.", f"Booked: {what}.", f"You have {what}."))


def transcripts(tokenizer: PreTrainedTokenizerFast, count: int, seed: str, split: Split) -> Iterator[str]:
    """Whole conversations as the models read them."""
    for number, task in enumerate(tasks(count, seed, split)):
        messages = expert(task, random.Random(f"{split}/{seed}/{number}/words"))
        yield tokenizer.apply_chat_template(messages, tools=TOOLS, tokenize=False)


def chunk_of(tokenizer: PreTrainedTokenizerFast, chunk: int, seed: int) -> list[Example]:
    """The ``chunk``-th block of examples; what the assistant says is trained on."""
    return encode(tokenizer, [segments(text) for text in transcripts(tokenizer, _CHUNK, f"{seed}/{chunk}", "train")])


def segments(text: str) -> list[Segment]:
    """A conversation in parts, of which those that the assistant says are trained on."""
    before, *turns = text.split(ASSISTANT)
    parts = [(before + ASSISTANT, False)]
    for turn in turns:
        said, end, others = turn.partition(END)
        parts += [(said + end, True), (others + ASSISTANT, False)]
    return parts[:-1]  # behind the last turn is nothing


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The reference pair's tokenizer with the words of this world."""
    specials = (TOOL, CALL, CALLED)
    plain = build(specials=specials)
    plain.chat_template = CHAT_TEMPLATE
    tokenizer = build(more=list(transcripts(plain, 3000, "words", "train")), specials=specials)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


# --- first weights -------------------------------------------------------------------------------


def first_weights(size: str, tokenizer: PreTrainedTokenizerFast, seed: int) -> dict[str, torch.Tensor]:
    """The reference model's weights. A word that it knows behind a space alone begins as that one, others at random."""
    reader = gguf.GGUFReader(Path(fsgen_router.reference.__file__).with_name(f"{size}.gguf"))
    stored = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    weights = make_model(SIZES[size], len(tokenizer), seed=seed).model.state_dict()
    weights["norm.weight"] = stored["output_norm.weight"]
    for layer in range(SIZES[size][1]):
        for ours, theirs in TENSORS.items():
            weights[f"layers.{layer}.{ours}"] = stored[f"blk.{layer}.{theirs}"]
    known = {token: row for row, token in enumerate(reader.get_field("tokenizer.ggml.tokens").contents())}
    rows, embeddings = stored["token_embd.weight"], weights["embed_tokens.weight"]
    embeddings *= rows.std() / embeddings.std()
    for token, row in tokenizer.get_vocab().items():
        if (like := known.get(token, known.get(f"Ġ{token}"))) is not None:
            embeddings[row] = rows[like]
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("fast", "slow"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the finished model")
    parser.add_argument("--tokens", type=float, default=2.5e6, help="tokens to train on (default: %(default).0f)")
    parser.add_argument("--lr", type=float, default=0.02, help="Muon's learning rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    tokenizer = make_tokenizer()
    train(
        args.size,
        args.out,
        tokens=int(args.tokens),
        lr=args.lr,
        seed=args.seed,
        threads=args.threads,
        evaluate=0,
        tokenizer=tokenizer,
        chunks=chunk_of,
        start=first_weights(args.size, tokenizer, args.seed),
        batch_tokens=_BATCH_TOKENS,
    )
    target = PAIR / f"{args.size}.gguf"
    target.parent.mkdir(exist_ok=True)
    export(args.out / "hf", target, f"agent-{args.size}", {})
    texts = [text.removeprefix(tokenizer.bos_token) for text in transcripts(tokenizer, 20, "proof", "tune")]
    decode, prefill = prove(args.out / "hf", target, texts)
    print(f"{target}: largest difference of a logit {decode:.2g} in decode, {prefill:.2g} in prefill")


if __name__ == "__main__":
    main()
