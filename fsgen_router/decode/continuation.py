"""A slow model that gives text continues the answer, which streams as it comes."""

from __future__ import annotations

from ..contracts.policy import REST, Until, rewound
from ..contracts.text_models import Continuation, TextEnd
from ..records import Token
from ..text.boundaries import end_of, sure_of, whole_words
from .commands import Cancel, Chunk, Command, Emit
from .commit import commit, ends, piece
from .core import Core
from .drafts import take_back
from .fitting import fitting, may_end
from .proposal import hand_back
from .restart import begin_anew, draft_of
from .spending import count_call

MAX_SILENT_CALLS = 2
"""Calls without text after which an endpoint that is asked for spans is given up."""

_VIEW = 200
"""Characters of what is shown that are looked at again for a boundary behind them."""


def ask(core: Core) -> list[Command]:
    """Ask for what follows, or for the answer anew."""
    text, state = core.request.text, core.state
    if text is None or core.busy("slow"):
        return []
    state.call_seconds = 0.0
    answer = b"".join(token.piece for token in state.tokens).decode(errors="replace")
    gap = ""
    if state.anew:
        answer = ""
        if state.escalation is not None and state.escalation.draft == "show":
            text = text.showing(draft_of(core))
    else:
        gap = _gap(core)
    wanted = Continuation(
        prompt=text.prompt,
        messages=text.messages,
        chat_template_kwargs=text.chat_template_kwargs,
        answer=answer,
        gap=gap,
        max_tokens=_limit(core),
        warp=core.request.warp,
        seed=core.request.seed,
        form=None if answer.strip() else core.request.form,
        offered=None if answer.strip() or core.request.calls is None else core.request.calls.offered,
        max_seconds=_granted_seconds(core),
        meter=core.meter,
    )
    return [core.begin("slow", wanted, "text")]


def _granted_seconds(core: Core) -> float | None:
    """How long the call may take, where a cap says so."""
    purse = core.terms.purse
    return purse.granted("seconds") if purse.capped and purse.caps("seconds") else None


def _gap(core: Core) -> str:
    """The white space with which the fast model would have gone on."""
    state = core.state
    following = b"".join(held.record.piece for held in state.held)
    if state.proposal is not None:
        following += piece(core, state.proposal.row.token)
    text = following.decode(errors="ignore")
    return text[: len(text) - len(text.lstrip())]


def _limit(core: Core) -> int:
    """How many tokens a continuation is asked for."""
    return min(core.state.span_left, _left(core))


def _left(core: Core) -> int:
    """How many tokens the answer may still get, without what gives way to the slow model's."""
    return core.request.max_tokens - (0 if core.state.anew else len(core.state.tokens))


def resume(core: Core) -> list[Command]:
    """Go on with a fork that was made in mid-call: what was said stands, and another call says what follows."""
    state = core.state
    if not (state.span_text or state.span_reasoning):
        return []
    emitted, before = text_stands(core), len(state.answer)
    state.span_left = max(state.span_left - len(state.answer) + before, 0)
    return emitted


def said(core: Core, event: Chunk) -> list[Command]:
    """A piece came: what can no longer be taken back of it is shown. The span's boundary, or a stop string, ends it."""
    state = core.state
    # An endpoint's JSON may hold half of a surrogate pair, which is no text.
    heard = event.text.encode(errors="replace").decode()
    if event.reasoning:
        return [_thought(core, heard)]
    state.usage.seam_repairs += len(event.repairs)
    state.span_text += heard
    until = state.escalation.until if state.escalation is not None else ""
    # No boundary lies in what is shown, a little of which tells whether one follows.
    before = max(state.span_shown - _VIEW, 0)
    end = end_of(state.span_text[before:], until) if until else None
    end = None if end is None else max(before + end, state.span_shown)
    fit = fitting(core)
    emitted = _show(core, min(fit, end if end is not None else _sure(core, until, before)))
    if fit < min(len(state.span_text), end or len(state.span_text)) and not state.text.stopped:
        del state.jobs[event.job]
        return [*emitted, Cancel(event.job), *_unfit(core, fit)]
    if end is None and not state.text.stopped:
        return emitted
    del state.jobs[event.job]
    state.span_left = 0
    return [*emitted, Cancel(event.job), *text_stands(core, stop=end)]


def _unfit(core: Core, fit: int) -> list[Command]:
    """What was said breaks the form of the answer: as much as fits stands, and ends the answer or is gone on with."""
    state = core.state
    emitted = text_stands(core, stop=fit)
    if state.finish is None and fit and may_end(core):
        state.finish, state.span_left = "eog", 0
        return emitted
    state.degraded = state.degraded or "what it wrote is not of the form that was asked for"
    return [*emitted, *hand_back(core, "stop")]


def _sure(core: Core, until: Until, before: int) -> int:
    """How much of what was said will stand: of a span, which may end in mid-word, no last word that may go on."""
    text = core.state.span_text
    if not text.strip():
        return 0  # perhaps it says nothing at all
    return before + sure_of(text[before:], until) if _is_span(core) else len(text)


def _is_span(core: Core) -> bool:
    """Whether the fast model goes on behind what is said now."""
    escalation = core.state.escalation
    return escalation is not None and (bool(escalation.until) or escalation.extent != REST)


def _show(core: Core, stop: int) -> list[Command]:
    """Show what was said up to there. Its first word takes the place of what is held back, or of all that stands."""
    state, emitted = core.state, list[Command]()
    if stop <= state.span_shown:
        return []
    if state.span_shown == 0:
        emitted += _take_over(core)
    text = state.text.push(state.span_text[state.span_shown : stop].encode())
    state.span_shown = stop
    state.shown.append(text)
    return [*emitted, Emit(text, None)] if text else emitted


def _take_over(core: Core) -> list[Command]:
    """The slow model's text stands from here on."""
    state = core.state
    if state.anew:
        return begin_anew(core)
    state.usage.discarded_tokens += len(state.held) + (state.proposal is not None)
    if state.held:
        state.policy = rewound(core.policy, state.held[0].policy, state.policy)
    state.proposal = None
    take_back(core, len(state.tokens))
    return []


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
    cut_off = end.finish_reason == "length"
    if not (state.span_text if cut_off else state.span_text.strip()):
        return _nothing_said(core, end)
    emitted = text_stands(core, end, stop=_last_word(core) if cut_off and _is_span(core) else None)
    if state.finish in (None, "length") and end.finish_reason == "stop" and may_end(core):
        # Whole, though it may have more tokens in the fast model's vocabulary than were asked for.
        state.finish = "eog"
    elif state.finish is None and end.finish_reason == "stop":
        state.degraded = state.degraded or "it ended before its text was of the form that was asked for"
        return [*emitted, *hand_back(core, "stop")]
    elif state.finish is None and state.escalation is not None and state.escalation.extent == REST:
        state.finish = "length"
    state.span_left = 0
    return emitted


def _last_word(core: Core) -> int | None:
    """Where a span that was cut off is cut: before a last word that it may not have brought to its end, if any other.

    None: nowhere.
    """
    return max(whole_words(core.state.span_text), core.state.span_shown) or None


def broke_off(core: Core, counted: TextEnd | None = None) -> list[Command]:
    """The call failed: what was said stands, if anything was. ``counted`` is what the endpoint had counted by then."""
    state = core.state
    if counted is None and not (state.span_text or state.span_reasoning):
        return []
    if not state.span_text.strip():
        state.span_text = ""
    return text_stands(core, counted, stop=_last_word(core) if state.span_text and _is_span(core) else None)


def _nothing_said(core: Core, end: TextEnd) -> list[Command]:
    """A continuation without a word ends no answer, whatever it says: the fast model's token stands.

    Nor is it asked for again and again: an endpoint that had nothing to say to the rest, or twice to a
    span, is given up. Where the fast model was about to end the answer, the two agree.
    """
    state = core.state
    rest = state.escalation is None or state.escalation.extent == REST
    agreed = end.finish_reason == "stop" and state.proposal is not None and ends(core, state.proposal.row.token)
    limit, thought = _limit(core), state.usage.reasoning_tokens
    state.span_text = ""
    emitted = text_stands(core, end)
    thought = state.usage.reasoning_tokens - thought
    if not agreed:
        state.silences.append(_why_silent(end, thought, limit))
        if rest or len(state.silences) >= MAX_SILENT_CALLS:
            state.degraded = state.silences[-1]
    return [*emitted, *hand_back(core, "eog" if end.finish_reason == "stop" else "length")]


def text_stands(core: Core, end: TextEnd | None = None, *, stop: int | None = None) -> list[Command]:
    """The tokens of a continuation, up to ``stop``, in the fast model's vocabulary; what is not shown of it is now."""
    state = core.state
    emitted = _show(core, len(state.span_text) if stop is None else stop)
    heard, state.span_text, state.span_shown = state.span_text, "", 0
    state.span_fit, state.span_ids = 0, []
    text = heard[:stop]
    position = len(state.answer)
    before = b"".join(token.piece for token in state.tokens).decode(errors="replace")
    for token in core.vocabulary.encode_after(before, text) if text else []:
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
    # All of it is billed, also what came behind its boundary.
    beyond = len(core.vocabulary.encode_after(before + text, heard[stop:])) if stop is not None and heard[stop:] else 0
    _count_call(core, end or TextEnd("stop"), position, len(state.answer) - position + beyond)
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
