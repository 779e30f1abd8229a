"""A slow model that gives text continues the answer, which streams as it comes."""

from __future__ import annotations

from ..contracts.policy import REST
from ..contracts.text_models import Continuation, TextEnd
from ..records import Token
from .commands import Cancel, Chunk, Command, Emit
from .commit import commit, ends
from .core import Core
from .proposal import hand_back
from .spending import count_call

MAX_SILENT_CALLS = 2
"""Calls without text after which an endpoint that is asked for spans is given up."""


def ask(core: Core) -> list[Command]:
    """Ask for what follows."""
    text, state = core.request.text, core.state
    if text is None or core.busy("slow"):
        return []
    wanted = Continuation(
        prompt=text.prompt,
        messages=text.messages,
        chat_template_kwargs=text.chat_template_kwargs,
        answer=b"".join(token.piece for token in state.tokens).decode(errors="replace"),
        max_tokens=_limit(core),
        warp=core.request.warp,
        seed=core.request.seed,
        meter=core.meter,
    )
    return [core.begin("slow", wanted, "text")]


def _limit(core: Core) -> int:
    """How many tokens a continuation is asked for."""
    return min(core.state.span_left, core.request.max_tokens - len(core.state.answer))


def resume(core: Core) -> list[Command]:
    """Go on with a fork that was made in mid-call: what was said stands, and another call says what follows."""
    state = core.state
    if not (state.span_text or state.span_reasoning):
        return []
    emitted = text_stands(core)
    state.span_left = max(state.span_left - len(emitted), 0)
    return emitted


def said(core: Core, event: Chunk) -> list[Command]:
    """A piece came: it is shown, unless a stop string cut it, which ends the call."""
    state = core.state
    # An endpoint's JSON may hold half of a surrogate pair, which is no text.
    heard = event.text.encode(errors="replace")
    if event.reasoning:
        return [_thought(core, heard.decode())]
    text = state.text.push(heard)
    state.span_text += heard.decode()
    state.shown.append(text)
    emitted: list[Command] = [Emit(text, None)] if text else []
    if not state.text.stopped:
        return emitted
    del state.jobs[event.job]
    state.span_left = 0
    return [*emitted, Cancel(event.job), *text_stands(core)]


def _thought(core: Core, text: str) -> Emit:
    """Keep what the slow model thinks; the thoughts of two calls are two paragraphs."""
    state = core.state
    if state.reasoning and not state.span_reasoning:
        text = f"\n\n{text}"
    state.span_reasoning += text
    state.reasoning.append(text)
    return Emit("", None, text)


def ended(core: Core, end: TextEnd) -> list[Command]:
    """The call is over: its text stands as tokens, and may have ended the answer."""
    state = core.state
    if not (state.span_text if end.finish_reason == "length" else state.span_text.strip()):
        return _nothing_said(core, end)
    emitted = text_stands(core, end)
    if state.finish in (None, "length") and end.finish_reason == "stop":
        # Whole, though it may have more tokens in the fast model's vocabulary than were asked for.
        state.finish = "eog"
    elif state.finish is None and state.escalation is not None and state.escalation.extent == REST:
        state.finish = "length"
    state.span_left = 0
    return emitted


def _nothing_said(core: Core, end: TextEnd) -> list[Command]:
    """A continuation without a word ends no answer, whatever it says: the fast model's token stands.

    Nor is it asked for again and again: an endpoint that had nothing to say to the rest, or twice to a
    span, is given up. Where the fast model was about to end the answer, the two agree.
    """
    state = core.state
    rest = state.escalation is None or state.escalation.extent == REST
    agreed = end.finish_reason == "stop" and state.proposal is not None and ends(core, state.proposal.row.token)
    limit, thought = _limit(core), state.usage.reasoning_tokens
    emitted = text_stands(core, end)
    thought = state.usage.reasoning_tokens - thought
    if not agreed:
        state.silences.append(_why_silent(end, thought, limit))
        if rest or len(state.silences) >= MAX_SILENT_CALLS:
            state.degraded = state.silences[-1]
    return [*emitted, *hand_back(core, "eog" if end.finish_reason == "stop" else "length")]


def text_stands(core: Core, end: TextEnd | None = None) -> list[Command]:
    """The tokens of a continuation, whose text was streamed, in the fast model's vocabulary."""
    state, usage = core.state, core.state.usage
    text, state.span_text = state.span_text, ""
    position = len(state.answer)
    before = b"".join(token.piece for token in state.tokens).decode(errors="replace")
    ids = core.vocabulary.encode_after(before, text) if text else []
    if text and state.proposal is not None:
        usage.discarded_tokens += 1
        state.proposal = None
    emitted: list[Command] = []
    for token in ids:
        state.last_escalation = len(state.answer)
        state.answer.append(token)
        record = Token(
            id=token,
            piece=core.vocabulary.piece(token),
            source="slow",
            logprob=None,
            signals=None,
            decision=state.escalation,
            fast_choice=None,
            slow_choice=None,
        )
        emitted.append(commit(core, record, streamed=True))
    _count_call(core, end or TextEnd("stop"), position, len(ids))
    return emitted


def _count_call(core: Core, end: TextEnd, position: int, written: int) -> None:
    """What a call cost; what the endpoint did not say of it is counted in the fast model's tokens.

    Of reasoning, which the fast model never reads, they are a quarter of the bytes.
    """
    usage, slow = core.state.usage, core.state.usage.slow
    usage.round_trips += 1
    reasoning, core.state.span_reasoning = core.state.span_reasoning, ""
    thought = end.reasoning_tokens
    if thought is None:
        thought = -(-len(reasoning.encode()) // 4)
    prompt = end.prompt_tokens or len(core.request.prompts["fast"]) + position
    cached, written = min(end.cached_tokens or 0, prompt), end.completion_tokens or written + thought
    usage.reasoning_tokens += min(thought, written)
    slow.cached += cached
    slow.prefill += prompt - cached
    slow.decode += written
    slow.forwards += written
    count_call(core, end, prompt=prompt, written=written, thought=thought)


def _why_silent(end: TextEnd, thought: int, limit: int) -> str:
    written, over = end.completion_tokens or 0, end.finish_reason == "length"
    if thought and over:
        return f"it said nothing: its limit of {limit} tokens went into reasoning. Ask for more, or turn that off"
    if thought:
        return f"it said nothing: all that it wrote was reasoning ({thought} tokens), which can be turned off"
    if over:
        return f"it said nothing within its limit of {limit} tokens"
    return f"it said nothing new in {written} tokens" if written else "it said nothing"
