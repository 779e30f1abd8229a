"""What the slow model costs: decided before it is asked, entered when it has answered."""

from __future__ import annotations

import dataclasses
import statistics

from ..contracts.billing import Billed
from ..contracts.policy import CAP, REST, Decision
from ..contracts.text_models import TextEnd
from ..money import LEAST_CACHED, CallCost, Spending, cost_of, local_bill, margin_usd
from ..records import Prices
from .core import Core

LEAST_SPAN = 8
"""Tokens: what a cap has to leave for a call, where the policy asks for as much. Fewer are not worth its prompt."""
_MARGIN, _TEMPLATE = 1.25, 32
"""An endpoint's tokenizer may count more than the fast model's, and its template adds some."""
_CACHE = "spending/prefix_cache"


def admitted(core: Core, decision: Decision) -> Decision:
    """A decision as its price and the caps let it stand: as it is, for fewer tokens, for the rest, or declined."""
    state, terms = core.state, core.terms
    if not decision.escalate:
        if decision.reason.startswith(CAP):
            _decline(core, decision, decision.reason)
        return decision
    if not terms.holds:
        return decision
    settle(core)
    # What an endpoint may write anew counts as if it were not there.
    standing = len(state.answer if core.request.text is None else state.tokens) if decision.draft == "keep" else 0
    left = min(core.request.max_tokens, core.room) - standing
    length = left if decision.extent == REST else min(decision.extent, left)
    call = _call(core)
    if terms.gate and terms.prices is not None and core.request.text is not None and _margin(core, terms.prices) < 0:
        cost = 0.0 if call is None else call.usd(length)
        return _decline(core, decision, f"not worth ${cost:.6f}")
    if _rest_is_cheaper(core, decision, call, length, left):
        why = "the rest costs less than spans"
        decision, length = dataclasses.replace(decision, extent=REST, until="", reason=why), left
    granted = min(length, _affordable(core, call))
    if granted < min(length, LEAST_SPAN):
        granted = min(length, LEAST_SPAN)  # which is refused by the cap that leaves less
    elif granted < length:
        decision = dataclasses.replace(decision, extent=granted)
    refused = terms.purse.reserve(_worst(core, call, granted))
    return decision if refused is None else _decline(core, decision, refused)


def _decline(core: Core, decision: Decision, reason: str) -> Decision:
    core.state.usage.declined += 1
    if reason.startswith(CAP):
        core.state.limited = core.state.limited or reason
    return dataclasses.replace(decision, escalate=False, extent=1, reason=reason)


def _margin(core: Core, prices: Prices) -> float:
    """What this call saves, by the rule of breaking even."""
    state = core.state
    sent, written = state.last_call
    fresh = len(state.answer) - state.last_escalation - 1
    found, possible = core.ledger.recall(_CACHE, (0, 0))
    share = found / possible if possible else float(sent >= LEAST_CACHED)
    return margin_usd(prices, fresh=fresh, sent=sent, written=written, found=share)


def _call(core: Core) -> CallCost | None:
    """The next call by its tokens and prices; None without prices."""
    if core.terms.prices is None:
        return None
    prompt = _prompt_tokens(core) if core.request.text is not None else _unread(core)
    return CallCost(prompt, core.terms.prices.dearest)


def _prompt_tokens(core: Core) -> int:
    """How many tokens a call's prompt has at most: what the endpoint counted, and the fast model's since."""
    state = core.state
    sent, written = state.last_call
    if sent:
        return sent + written + round(_MARGIN * (len(state.answer) - state.last_escalation - 1))
    return round(_MARGIN * core.length("fast")) + _TEMPLATE


def _unread(core: Core) -> int:
    return core.length("slow") - core.state.readers["slow"].seen


def _rest_is_cheaper(core: Core, decision: Decision, call: CallCost | None, length: int, left: int) -> bool:
    """Near a cap on money: whether one call for the rest costs no more than the spans that would still come.

    Near is where it leaves this call and no other like it. Spans are expected as often as they came so far.
    """
    purse, usage = core.terms.purse, core.state.usage
    if call is None or core.request.text is None or decision.extent == REST or not purse.caps("usd"):
        return False
    money = purse.left("usd")
    if not call.usd(length) <= money < 2 * call.usd(length) or call.usd(left) > money:
        return False
    calls = (usage.escalations + 1) * (left - length) / max(len(core.state.answer) + length, 1)
    return call.usd(left) <= (1 + calls) * call.usd(length)


def _affordable(core: Core, call: CallCost | None) -> int:
    """Tokens that the caps leave for this call; 0 where they leave no call."""
    purse, most = core.terms.purse, 1 << 30
    if call is not None and purse.caps("usd"):
        most = min(most, call.affords(purse.left("usd")))
    if purse.caps("slow_tokens"):
        most = min(most, int(purse.left("slow_tokens")))
    seconds = _token_seconds(core)
    if seconds and purse.caps("seconds"):
        most = min(most, int(purse.left("seconds") / seconds))
    return max(most, 0)


def _worst(core: Core, call: CallCost | None, tokens: int) -> Spending:
    """What a call for so many tokens may cost."""
    seconds = (_token_seconds(core) or 0.0) * tokens
    usd = 0.0 if call is None else call.usd(tokens)
    if core.terms.machine is not None:
        usd += core.terms.machine.usd(seconds) or 0.0
    return Spending(usd, 1, tokens, seconds)


def _token_seconds(core: Core) -> float | None:
    """Seconds of the slow model per token, by this request's own, or by those of the Router's before; or unknown."""
    slow, steps = core.state.usage.slow, core.state.step_seconds["slow"]
    if core.request.text is not None and slow.decode and slow.seconds:
        return slow.seconds / slow.decode
    return statistics.median(steps) if steps else core.terms.step_seconds


# --- what was spent ------------------------------------------------------------------------------


def count_call(core: Core, end: TextEnd, *, prompt: int, written: int, thought: int) -> None:
    """Enter a call of an endpoint, by its own counts, else by those given; ``thought`` is a part of ``written``."""
    called = Billed.of(
        "call",
        prompt=end.prompt_tokens or None,
        written=end.completion_tokens or None,
        cached=end.cached_tokens,
        cache_write=end.cache_write_tokens,
        reasoning=thought if end.reasoning_tokens is None else end.reasoning_tokens,
        guessed_prompt=prompt,
        guessed_written=written,
    )
    state = core.state
    sent = called.input + called.cached_input + called.cache_write
    if not state.last_call[0]:
        state.usage.prompt_cached = called.cached_input
    elif end.prompt_tokens:
        before = state.last_call[0]
        found = min(called.cached_input, before)
        core.ledger.revise(_CACHE, lambda seen: (seen[0] + found, seen[1] + before), (0, 0))
    state.last_call = sent, called.output + called.reasoning
    state.usage.billed.add(called if end.model is None else called.at(end.model))
    settle(core)


def count_left(core: Core) -> None:
    """Enter a call that is left in the middle: nobody says what it costs, and it is billed all the same.

    One that nothing was heard of is its adapter's to enter, which knows whether it was sent.
    """
    state = core.state
    heard = f"{state.span_text}{state.span_reasoning}"
    if not heard:
        return
    guessed = -(-len(heard.encode()) // 4)
    state.usage.billed.add(
        Billed.of("failed", prompt=None, written=None, guessed_prompt=core.length("fast"), guessed_written=guessed)
    )


def settle(core: Core) -> None:
    """Enter in the caps what the slow model has cost this request by now."""
    usage = core.state.usage
    usage.billed.add(core.meter.taken())
    if core.terms.purse.empty:
        return
    remote = core.request.text is not None
    usd = cost_usd(core) or 0.0
    if core.terms.machine is not None and not remote:
        usd += core.terms.machine.usd(usage.slow.seconds) or 0.0
    tokens = usage.slow.decode if remote else usage.slow_tokens
    core.terms.purse.settle(Spending(usd, usage.escalations, tokens, usage.slow.seconds))


def cost_usd(core: Core) -> float | None:
    """What the slow model bills for this request by now; None where nobody knows its prices."""
    prices, usage = core.terms.prices, core.state.usage
    if prices is None:
        return None
    if core.request.text is not None:
        return cost_of(usage.billed, prices)
    if core.request.alone:  # it sits in the fast seat
        return cost_of(local_bill(usage.fast, written=usage.tokens, calls=1), prices) if usage.tokens else 0.0
    calls = usage.escalations if usage.slow.forwards else 0
    return cost_of(local_bill(usage.slow, written=usage.slow_tokens, calls=calls), prices)


def close(core: Core) -> None:
    """The request is over: what it cost goes into the caps and the ledger, and so does what is still heard of."""
    billed, terms = core.state.usage.billed, core.terms
    settle(core)
    ledger, prices = terms.bill_to or core.ledger, terms.prices

    def late(more: Billed) -> None:
        usd = None if prices is None else cost_of(more, prices)
        ledger.bill(more, usd)
        terms.purse.enter(Spending(usd or 0.0))

    billed.add(core.meter.close(late))
    ledger.bill(billed, cost_usd(core))
