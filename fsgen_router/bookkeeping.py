"""What is entered into a Router's ledger behind an answer: probes that were billed, and what routing saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from .contracts.billing import Billed
from .contracts.policy import Ledger
from .contracts.text_models import TextEnd
from .decode import Engine
from .generation import Generation
from .money import Spending, cost_of
from .run.workers import AnyModel
from .support.logs import log
from .support.waiting import holding

PROBE_TOKENS = 16
"""What a probe's prompt is taken to hold where an endpoint does not count it."""
Checker: TypeAlias = Callable[[Generation], bool | float]
"""Says how good an answer is."""


def bill_probes(engine: Engine, slow: AnyModel, ledger: Ledger) -> None:
    """What an endpoint was asked beside all requests since the last answer, in this one's bill and the totals."""
    taken: Callable[[], list[TextEnd]] | None = getattr(slow, "take_probe_usage", None)
    billed = Billed()
    for end in [] if taken is None else taken():
        probe = Billed.of(
            "probe",
            prompt=end.prompt_tokens,
            written=end.completion_tokens,
            cached=end.cached_tokens,
            cache_write=end.cache_write_tokens,
            guessed_prompt=PROBE_TOKENS,
            guessed_written=1,
        )
        billed.add(probe if end.model is None else probe.at(end.model))
    if not billed.requests:
        return
    prices = engine.terms.prices
    usd = None if prices is None else cost_of(billed, prices)
    engine.state.usage.billed.add(billed)
    ledger.bill(billed, usd)
    engine.terms.purse.enter(Spending(usd or 0.0))


def enter_savings(ledger: Ledger, answer: Generation, baseline: Generation, checker: Checker | None) -> None:
    """What an answer and the slow model's own cost, and how good both are."""
    report, verdicts = answer.report(), None
    if checker is not None:
        try:
            verdicts = float(checker(answer)), float(checker(baseline))
        except Exception as error:  # the caller's: the answer stands whatever it says
            log.warning("checker_failed", request_id=answer.request_id, why=type(error).__name__)
    with holding(ledger.lock):
        savings = ledger.savings
        savings.requests += 1
        savings.usd += report.money_usd.routed or 0.0
        savings.slow_usd += report.money_usd.slow_only or 0.0
        savings.seconds += report.seconds.routed or 0.0
        savings.slow_seconds += report.seconds.slow_only or 0.0
        savings.same_text += answer.text == baseline.text
        if verdicts is not None:
            savings.checked += 1
            savings.right += verdicts[0]
            savings.slow_right += verdicts[1]
