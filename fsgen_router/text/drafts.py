"""How a draft of an answer is shown to the model that is to write the answer anew."""

from __future__ import annotations

from collections.abc import Sequence

from ..contracts.tokenizer import Turn

_BEHIND_MESSAGE = (
    "\n\nAnother assistant drafted the beginning of an answer to this:\n\n<draft>\n{draft}\n</draft>\n\n"
    "The draft may be wrong. Check it, and then write the whole answer yourself from its beginning: use what is right "
    "in the draft, and do not mention it."
)
_BEHIND_PROMPT = "{draft}\n\n(The draft above may be wrong. The answer, written anew:)\n\n"


def show_in_messages(messages: Sequence[Turn], draft: str) -> tuple[Turn, ...]:
    """The conversation, with the draft behind the last message, to be judged."""
    *before, last = messages
    return (*before, {**last, "content": last["content"].rstrip() + _BEHIND_MESSAGE.format(draft=draft.strip())})


def show_in_prompt(prompt: str, draft: str) -> str:
    """The prompt with the draft as its continuation, which is called into question, and then the prompt again."""
    return prompt + _BEHIND_PROMPT.format(draft=draft.rstrip()) + prompt
