"""What was seen on pairs of real model files."""

from __future__ import annotations

from typing import Any

from .forms import RESULTS, load, number, outcome, percent
from .remote import draft_table


def real_pair() -> str:
    """The finding on real models, as far as it was run: each part is a run of hours."""
    parts = {"alone": real_pair_alone, "default": real_pair_default, "certified": real_pair_certified}
    parts |= {"drafts": real_pair_drafts, "curves": real_pair_curves, "resplits": real_pair_resplits}
    run = {part: make for part, make in parts.items() if (RESULTS / f"real_pair_{part}.json").exists()}
    return "\n\n".join(make(load(f"real_pair_{part}")) for part, make in run.items())


def real_pair_alone(alone: dict[str, Any]) -> str:
    """How far both models alone go, and how well signals tell where they differ."""
    lines = [
        f"{alone['n']} of GSM8K's test problems, {alone['fast']} and {alone['slow']} (Q4_K_M), greedy, at most "
        f"{alone['max_tokens']} tokens: the fast model is right in {percent(alone, 'accuracy_fast')}, the slow one in "
        f"{percent(alone, 'accuracy_slow')}; in {percent(alone, 'regret_of_fast')} the slow one alone is right, in "
        f"{percent(alone, 'only_fast_right')} the fast one alone. Where their greedy choices differ, every position "
        "read by both:",
        "",
        "| on the answers of | positions | differ (CoF) | AUROC: entropy | margin | maximum probability "
        "| asked to catch 95% |",
        "|---|---|---|---|---|---|---|",
    ]
    for role in ("fast", "slow"):
        path = alone[f"{role}_path"]
        signals = " | ".join(f"{path['auroc'][name]:.3f}" for name in ("entropy", "margin", "max_prob"))
        least = min(path["asked_to_catch_95"].values())
        lines.append(
            f"| the {role} model | {path['positions']:,} | {percent(path, 'cof')} | {signals} | {100 * least:.0f}% |"
        )
    lines += [
        "",
        f"An answer of the fast model has {alone['tokens_fast']:.0f} tokens on average, one of the slow model "
        f"{alone['tokens_slow']:.0f}; {100 * alone['cut_off_fast']:.0f} and {100 * alone['cut_off_slow']:.0f}% were "
        f"cut off. `benchmarks/real_pair.py --part alone`, {alone['device']}, seed {alone['seed']}, 95% bootstrap "
        f"intervals by problem, {alone['date']}.",
    ]
    return "\n".join(lines)


def real_pair_default(found: dict[str, Any]) -> str:
    return (
        f"Without a calibration, `{found['policy']}` with `replace`, on all {found['n']} problems: right in "
        f"{percent(found, 'accuracy')}, the slow model having written {percent(found, 'slow_token_share')} of the "
        f"tokens, in {number(found, 'slow_steps_per_slow_token')} of the steps of its own answers "
        f"({found['date']})."
    )


def real_pair_drafts(found: dict[str, Any]) -> str:
    nearest = (
        min(found["whole_query"].values(), key=lambda one: abs(one["bill"] - found[point]["keep"]["bill"]))
        for point in found["points"]
    )
    alike = [f"{percent(one, 'accuracy')} at {percent(one, 'bill')}" for one in nearest]
    lines = [
        f"The rest handed over, as before an endpoint, on all {found['n']} problems: what is right, and what the slow "
        "model bills at prices of 1 : 0.05 : 5 for input, cached input and output, as a share of its bill for all "
        "answers:",
        "",
        *draft_table(found),
        "",
        f"Whole queries, by the fast model's mean entropy, are right in {' and '.join(alike)} of the bill.",
        "",
        f"`benchmarks/real_pair.py --part drafts`, nothing cached, {found['date']}.",
    ]
    return "\n".join(lines)


def real_pair_certified(found: dict[str, Any]) -> str:
    begin = f"Calibrated on {found['n']} problems of their own, for {found['target']}: "
    if not found["certified"] or "report" not in found:
        return f"{begin}{found['verdict']} ({found['date']})."
    seen = found["report"]
    return (
        f"{begin}certified. On {seen['n']} others its regret is {percent(seen, 'regret')} and it is right in "
        f"{percent(seen, 'accuracy')}, asking at {percent(seen, 'escalation_rate')} of the tokens, in "
        f"{number(seen, 'slow_steps_per_slow_token')} of the slow model's own steps; it reads "
        f"{percent(seen, 'slow_position_share')} of all tokens. The models read "
        f"{found['positions_over_alone']['fast']:.2f} (fast) and {found['positions_over_alone']['slow']:.2f} (slow) "
        f"times for it what their own answers take ({found['date']})."
    )


def real_pair_curves(found: dict[str, Any]) -> str:
    lines = [
        f"Quality against what is asked, on {found['n']} problems that nothing was fitted on (the fast model alone "
        f"{found['accuracy_fast']:.1%}, the slow one {found['accuracy_slow']:.1%}):",
        "",
        "| asked by | rate | right | regret | slow tokens | slow steps per token of the slow model's own |",
        "|---|---|---|---|---|---|",
    ]
    for name, points in found.items():
        if not isinstance(points, list):
            continue
        for point in (
            points if len(points) <= 4 else [points[round(at * (len(points) - 1))] for at in (0.25, 0.5, 0.75)]
        ):
            cells = [percent(point, of) for of in ("escalation_rate", "accuracy", "regret", "slow_token_share")]
            lines.append(f"| {name} | {' | '.join(cells)} | {number(point, 'slow_steps_per_slow_token')} |")
    lines += ["", f"`benchmarks/real_pair.py --part curves`, {found['date']}."]
    return "\n".join(lines)


def real_pair_resplits(found: dict[str, Any]) -> str:
    lines = [
        f"Whether such certificates hold: {found['pool']} problems times {found['thresholds']} thresholds, "
        f"{found['resplits']} random halves certified at delta {found['delta']:g}; how often the pool's regret is "
        f"above alpha (allowed: {found['allowed_violations']:.1%}), and the mean escalation rate:",
        "",
        "| alpha | Learn-then-Test | rate | naive tuning | rate |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {alpha} | " + " | ".join(outcome(one[name]) for name in ("certified", "naive")) + " |"
        for alpha, one in found["by_alpha"].items()
    ]
    pool = zip(found["pool_regret"], found["pool_escalation_rate"], strict=True)
    regrets = ", ".join(f"{100 * regret:.1f}% at {rate:.0%}" for regret, rate in pool)
    lines += ["", f"In the whole pool the regret is {regrets} asked."]
    lines += ["", f"`benchmarks/real_pair.py --part resplits`, {found['date']}."]
    return "\n".join(lines)


def recommend() -> str:
    figures = load("recommend")

    def cell(mode: dict[str, Any], name: str, form: str) -> str:
        value, interval = mode[name], mode[f"{name}_interval"]
        inside = f" [{', '.join(map(form.format, interval))}]" if interval and interval[0] != interval[1] else ""
        return f"{form.format(value)}{inside}"

    lines = [
        "| mode | right | seconds | FLOPs | tokens/s | 4 at once |",
        "|---|---|---|---|---|---|",
    ]
    for mode in figures["modes"]:
        cells = [
            cell(mode, "accuracy", "{:.1%}"),
            cell(mode, "seconds_relative", "{:.2f}"),
            cell(mode, "flops_relative", "{:.2f}"),
            cell(mode, "tokens_per_second", "{:,.0f}"),
            cell(mode, "tokens_per_second_at_once", "{:,.0f}"),
        ]
        lines.append(f"| {mode['name']} | {' | '.join(cells)} |")
    lines += [
        "",
        f"{figures['n']} problems, seconds and FLOPs against the slow model alone, 1 thread a model on "
        f"{figures['machine']}. {figures['note']}{' ' * bool(figures['note'])}The verdict: *{figures['headline']}.* "
        f"{' '.join(figures['evidence'])} "
        f"`benchmarks/recommend.py`, seed {figures['seed']}, 95% bootstrap intervals by prompt, {figures['date']}.",
    ]
    return "\n".join(lines)
