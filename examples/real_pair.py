"""A pair of real models: one routed answer with who wrote what, what it cost, and which mode pays here.

python examples/real_pair.py --models DIR
python examples/real_pair.py --models DIR --prompts gsm8k_test.jsonl --count 40

DIR holds qwen-0.5b.gguf and qwen-1.5b.gguf (or name your own with --fast and --slow). The prompts are JSON lines with
a question and an answer whose last number counts, as in GSM8K; without them, a few are made up here.
"""

import argparse
import json
import sys
from pathlib import Path

from fsgen_router import Router
from fsgen_router.evaluation import Item, matches
from fsgen_router.recommend import recommend

# The order and the words behind the questions were picked by looking at answers, so that some are right and end: a
# demonstration, which says nothing of how good the models are.
MADE_UP = [
    ("Tom reads 15 pages a day for 6 days and then 10 more. How many pages has he read?", "100"),
    ("A ticket costs 8 dollars, for children half of that. What do 2 adults and 3 children pay?", "28"),
    ("Eva has 50 euros. She buys 4 books at 9 euros each. How many euros does she have left?", "14"),
    ("A box holds 12 pens. Mia buys 3 boxes and gives 7 pens away. How many pens does she have left?", "29"),
]


def make_item(number: int, question: str, answer: str) -> Item:
    message = {"role": "user", "content": f"{question}\nThink step by step, in few words. End with the number alone."}
    return Item(id=str(number), messages=(message,), answer=answer, check=lambda text: matches(text, answer, "number"))


class Stages:
    """What goes on, a line for each stage: all of it takes ten minutes on two cores."""

    def begin(self, stage: str, total: int) -> None:
        print(f"{stage} ({total}) ...", file=sys.stderr)

    def advance(self, count: int) -> None:
        pass


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--models", type=Path, required=True, help="folder of the model files")
parser.add_argument("--fast", default="qwen-0.5b.gguf")
parser.add_argument("--slow", default="qwen-1.5b.gguf")
parser.add_argument("--prompts", type=Path, help="JSON lines with question and answer")
parser.add_argument("--count", type=int, default=4, help="problems for the recommendation (default: %(default)s)")
parser.add_argument("--max-tokens", type=int, default=320, help="of an answer (default: %(default)s)")
arguments = parser.parse_args()

problems = MADE_UP
if arguments.prompts is not None:
    lines = map(json.loads, arguments.prompts.read_text().splitlines())
    problems = [(line["question"], line["answer"].rpartition("####")[2].strip()) for line in lines]
items = [make_item(number, *problem) for number, problem in enumerate(problems[: arguments.count])]
fast, slow = (f"llama_cpp:{arguments.models / name}?n_ctx=2048" for name in (arguments.fast, arguments.slow))

with Router(fast, slow) as router:
    answer = router.chat(items[0].messages, max_tokens=arguments.max_tokens, baseline=True)
    print(items[0].messages[0]["content"], "\n\nThe fast model's tokens, and [by the slow model]:\n")
    for span in answer.spans:
        text = b"".join(token.piece for token in answer.tokens[span.start : span.stop]).decode(errors="replace")
        print(f"[{text}]" if span.source == "slow" else text, end="")
    print(f"\n\n{answer.report()}\n")

found = recommend(fast, slow, items, at_once=1, max_tokens=arguments.max_tokens, progress=Stages())
print(f"A quick look, on {found.n} problems; for an answer that holds give more of them (--count).\n\n{found}")
