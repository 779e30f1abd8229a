"""A policy of one's own: ask the slow model about the first digit of every number.

python examples/custom_policy.py
"""

from dataclasses import dataclass

from fsgen_router import Context, Decision, Ledger, Router, Signals, TokenClass
from fsgen_router.reference import world


@dataclass(frozen=True)
class FirstDigits:
    """State: whether the last token was a digit. It is a value, so a rewind can restore it."""

    name: str = "first-digits"
    asks: bool = True

    def begin(self, ledger: Ledger) -> bool:
        return False

    def decide(self, state: bool, signals: Signals, context: Context) -> tuple[bool, Decision]:
        digit = signals.token_class == TokenClass.DIGIT
        return digit, Decision(digit and not state, extent=1, score=signals.entropy_nats, reason="first digit")

    def end(self, state: bool, ledger: Ledger) -> None:
        return None


with Router(policy=FirstDigits()) as router:
    # Not those whose answer is a word: such a policy asks about numbers only.
    for problem in [problem for problem in world.problems("test", 4) if problem.answer.isdigit()]:
        answer = router.complete(problem.prompt)
        verdict = "right" if problem.check(answer.text) else "wrong"
        print(f"{verdict}, {answer.usage.slow_tokens} of {answer.usage.tokens} tokens from the slow model:")
        print("  " + answer.text.strip())
