"""A chatbot backend in miniature: many conversations stream at once from one Router.

python examples/chat_backend.py
"""

import asyncio

from fsgen_router import Finished, Message, Restarted, Router, TextDelta
from fsgen_router.reference import world


async def converse(router: Router, questions: list[str]) -> list[str]:
    """One conversation; each turn finds the KV caches of the one before."""
    messages: list[Message] = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        pieces = []
        async for event in router.astream_chat(messages, max_slow_calls=40):
            match event:
                case TextDelta(text=text):
                    pieces.append(text)  # a server would send this piece on
                case Restarted():
                    pieces.clear()  # with draft=show or draft=drop: what was sent does not stand
                case Finished(generation=answer):
                    cached = answer.usage.fast.cached
                    print(f"{answer.usage.tokens} tokens, {answer.usage.slow_forwards} slow steps, {cached} cached")
        messages.append({"role": "assistant", "content": "".join(pieces)})
    return [message["content"] for message in messages]


async def main() -> None:
    with Router(policy="entropy>0.8") as router:
        questions = [problem.prompt for problem in world.problems("test", 8)]
        conversations = [questions[k : k + 2] for k in range(0, 8, 2)]
        for said in await asyncio.gather(*(converse(router, c) for c in conversations)):
            print("\n".join(said), "\n")


if __name__ == "__main__":
    asyncio.run(main())
