"""A recommendation in words: sentences, a Router, options of the command line."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from ..evaluation import Estimate
from ..methods import make_method
from .decision import Advice
from .figures import Figures, find
from .modes import DEFAULT, Seat

HEADLINES = {
    "routed": "Route: {mode}",
    "whole_query": "Decide once for a whole answer: {mode}",
    "speculative": "Use plain speculative decoding: {mode}",
    "fast": "The fast model is enough",
    "middle": "The middle model is enough",
    "tuned": "The tuned model is enough",
    "slow": "Do not route: use the slow model alone",
    "undecided": "Not decidable with so few prompts: {needed} would do",
}

_COSTS = {"seconds": "the seconds", "money": "the money", "flops": "the FLOPs"}


def headline(advice: Advice) -> str:
    """The verdict in a line."""
    needed = "more" if advice.prompts_needed is None else f"about {advice.prompts_needed:,}"
    return HEADLINES[advice.verdict].format(mode=advice.mode, needed=needed)


def evidence(advice: Advice, figures: Sequence[Figures], *, prefer: str, quality_loss: float) -> list[str]:
    """Why, in two or three sentences."""
    slow, chosen = figures[0], find(figures, advice.mode)
    fast = next(one for one in figures if one.mode.kind == "fast")
    said = [
        f"On {slow.n:,} prompts the slow model alone is right on {_share(slow.accuracy)}, the fast one on "
        f"{_share(fast.accuracy)}, in {_ratio(fast.cost(prefer))} of {_COSTS[prefer]}."
    ]
    if advice.verdict == "slow":
        said.append(_nothing_better(figures, prefer=prefer, quality_loss=quality_loss))
    elif advice.verdict == "undecided":
        said.append(_open(advice, figures, prefer=prefer, quality_loss=quality_loss))
    else:
        said.append(_better(chosen, prefer=prefer, quality_loss=quality_loss))
        if advice.promising:
            said.append(
                f"{advice.promising[0]} may be cheaper still: about {advice.prompts_needed:,} prompts would tell."
            )
    return said


def _better(chosen: Figures, *, prefer: str, quality_loss: float) -> str:
    cost = f"takes {_ratio(chosen.cost(prefer))} of the slow model's {prefer}"
    if chosen.lossless:
        return f"{chosen.mode.name} writes the slow model's own text and {cost}."
    return (
        f"{chosen.mode.name} {cost}; it loses {_share(chosen.quality_loss)} of accuracy, at most "
        f"{chosen.quality_loss_bound:.1%} where {quality_loss:.1%} may be lost."
    )


def _nothing_better(figures: Sequence[Figures], *, prefer: str, quality_loss: float) -> str:
    kept = [one for one in figures[1:] if one.lossless or (one.quality_loss.value or 0.0) <= quality_loss]
    if not kept:
        return f"Every other mode loses more than {quality_loss:.1%} of accuracy."
    kept = [one for one in kept if one.cost(prefer).value is not None]
    if not kept:
        return f"What the modes that lose no more than {quality_loss:.1%} of accuracy cost in {prefer} is not known."
    best = min(kept, key=lambda one: one.cost(prefer).value or 0.0)
    return (
        f"Of the modes that lose no more than {quality_loss:.1%} of accuracy the cheapest is {best.mode.name}, at "
        f"{_ratio(best.cost(prefer))} of the slow model's {prefer}."
    )


def _open(advice: Advice, figures: Sequence[Figures], *, prefer: str, quality_loss: float) -> str:
    if not advice.promising:
        return (
            f"No mode keeps within a loss of {quality_loss:.1%} and saves {prefer}, as far as can be seen, but the "
            "intervals are too wide to rule all of them out. Until then: the slow model alone."
        )
    one = find(figures, advice.promising[0])
    loss = (
        "writes the slow model's own text"
        if one.lossless
        else f"loses {one.quality_loss.value:.1%} of accuracy here, and up to {one.quality_loss_bound:.1%} cannot be "
        f"ruled out, where {quality_loss:.1%} may be lost"
    )
    return (
        f"{one.mode.name} takes {_ratio(one.cost(prefer))} of the slow model's {prefer} and {loss}. Until more is "
        "known: the slow model alone."
    )


def _share(estimate: Estimate) -> str:
    return _written(estimate, "{:.1%}")


def _ratio(estimate: Estimate) -> str:
    return _written(estimate, "{:.2f}")


def _written(estimate: Estimate, form: str) -> str:
    if estimate.value is None:
        return "an unknown share"
    if estimate.interval is None or estimate.interval[0] == estimate.interval[1]:
        return form.format(estimate.value)
    return f"{form.format(estimate.value)} [{', '.join(map(form.format, estimate.interval))}]"


def table(figures: Sequence[Figures], *, at_once: int) -> str:
    """A line a mode, without intervals, for where there is no terminal to draw on."""
    several = f"{at_once} at once" if at_once > 1 else ""
    lines = [f"{'mode':<28}{'right':>7}{'loss':>8}{'seconds':>9}{'FLOPs':>7}{'tokens/s':>10}{several:>11}"]
    for one in figures:
        cells = [
            f"{_plain(one.accuracy, '{:.1%}'):>7}",
            f"{_plain(one.quality_loss, '{:.1%}'):>8}",
            f"{_plain(one.seconds_relative, '{:.2f}'):>9}",
            f"{_plain(one.flops_relative, '{:.2f}'):>7}",
            f"{_plain(one.tokens_per_second, '{:,.1f}'):>10}",
            f"{_plain(one.tokens_per_second_at_once, '{:,.1f}'):>11}" if several else "",
        ]
        lines.append(f"{one.mode.name:<28}{''.join(cells)}")
    lines.append("seconds, FLOPs: against the slow model alone")
    return "\n".join(lines)


def _plain(estimate: Estimate, form: str) -> str:
    return "-" if estimate.value is None else form.format(estimate.value)


# --- how to have it ------------------------------------------------------------------------------


def as_python(one: Figures, models: Mapping[Seat, str], *, reference: bool) -> str:
    """The Router of a mode, as it is written in a program."""
    if one.mode.kind == "slow":
        return _router(("fast", "slow"), models, "always,span=rest", "replace", reference=reference)
    if one.recipe is not None:
        return f"router = {_router(one.mode.seats, models, None, None, reference=reference)}\n{one.recipe}"
    if one.mode.name == DEFAULT:
        return "Router()"
    seats: tuple[Seat, Seat] = one.mode.seats
    return _router(seats, models, one.mode.policy, one.mode.method, reference=reference)


def _router(
    seats: tuple[Seat, Seat], models: Mapping[Seat, str], policy: str | None, method: str | None, *, reference: bool
) -> str:
    given = [] if reference and seats == ("fast", "slow") else [repr(models[seat]) for seat in seats]
    given += [f"tuned={models['tuned']!r}"] if _reads_tuned(method) else []
    given += [f"policy={policy!r}"] if policy is not None else []
    given += [f"method={method!r}"] if method is not None else []
    return f"Router({', '.join(given)})".replace("'", '"')


def _reads_tuned(method: str | None) -> bool:
    return method is not None and "tuned" in make_method(method).roles


def as_options(one: Figures, models: Mapping[Seat, str], *, reference: bool) -> str:
    """The same as options of the command line; empty where no options do it, or none are needed."""
    if one.recipe is not None or one.mode.name == DEFAULT:
        return ""
    seats, policy, method = one.mode.seats, one.mode.policy, one.mode.method
    if one.mode.kind == "slow":
        seats, policy, method = ("fast", "slow"), "always,span=rest", "replace"
    given: list[str] = []
    if not reference or seats != ("fast", "slow"):
        given += ["--fast", models[seats[0]], "--slow", models[seats[1]]]
    given += ["--tuned", models["tuned"]] if _reads_tuned(method) else []
    given += ["--policy", policy]
    given += ["--method", method] if method is not None else []
    return shlex.join(given)
