"""What the reference pair's policies reach, and what they are certified for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .forms import load, number, outcome, percent

PAIR = Path(__file__).parents[2] / "examples" / "reference_pair"


def reference_pair() -> str:
    figures = load("reference_pair")
    shares = figures["slow_token_share_at_recovery"]
    lines = [
        "![Quality against the share of tokens that the slow model wrote](benchmarks/results/reference_pair.png)",
        "",
        f"{figures['n']:,} held-out problems, temperature 0, method `replace`; the fast model has "
        f"{figures['parameters']['fast']:,} parameters and answers {percent(figures['accuracy_fast'], 'accuracy')} of "
        f"them, the slow one {figures['parameters']['slow']:,} and "
        f"{percent(figures['accuracy_slow'], 'accuracy')}. The share of tokens that the slow model has to write to "
        "recover a part of that gap:",
        "",
        "| routed by | 50% of the gap | 80% | 95% |",
        "|---|---|---|---|",
    ]
    for name, label in (
        ("oracle", "oracle (asks the slow model at every token; counts its corrections)"),
        ("entropy", "entropy"),
        ("margin", "margin"),
        ("max_prob", "maximum probability"),
        ("random", "random"),
        ("whole query", "whole queries, by mean entropy"),
    ):
        cells = " | ".join(percent(shares[name][level], "share") for level in ("0.5", "0.8", "0.95"))
        lines.append(f"| {label} | {cells} |")
    lines += [
        "",
        f"Asked at every token of its own path, the oracle corrects {100 * figures['disagreement_rate']:.1f}% of the "
        "tokens: this pair's FS-GEN rate (CoF). Crossings are interpolated inside each bootstrap draw. "
        f"`benchmarks/reference_pair.py`, seed {figures['seed']}, 95% bootstrap intervals by prompt, "
        f"{figures['date']}.",
    ]
    return "\n".join(lines)


def learned() -> str:
    made, found = load("calibration_calibrate"), load("calibration_curves")
    best = found["best_single_signal"]
    labels = {"learned": "learned", best: best.replace("_", " "), "masked_entropy": "entropy, masked by token class"}
    lines = [
        f"{found['n']:,} held-out problems, method `replace`; the best single signal was chosen on "
        f"{found['chosen_on']} calibration problems. The share of decisions that escalate:",
        "",
        "| routed by | 50% of the gap | 80% | 95% |",
        "|---|---|---|---|",
    ]
    for name, label in labels.items():
        rates = found["all"]["rate_at_recovery"][name]
        lines.append(f"| {label} | {' | '.join(percent(rates[level], 'rate') for level in ('0.5', '0.8', '0.95'))} |")
    lines += [
        "",
        "| rate at 95%, learned over | all | level 0 | level 1 | level 2 |",
        "|---|---|---|---|---|",
    ]
    for key, label in (("best_single", labels[best]), ("masked_entropy", labels["masked_entropy"])):
        ratios = (found[level][f"ratio_to_{key}"] for level in ("all", "level 0", "level 1", "level 2"))
        lines.append(f"| {label} | {' | '.join(number(ratio, 'ratio') for ratio in ratios)} |")
    metrics = made["report"]["metrics"]
    precision = ", ".join(
        f"{name.replace('_', ' ')} {number(metrics[name], 'average_precision')}"
        for name in ("learned", "masked_entropy", "entropy", "max_prob", "margin")
    )
    lines += [
        "",
        f"Levels are of phrasing freedom. Average precision on {made['report']['n']} report problems: {precision}. "
        f"`benchmarks/calibration.py`, logistic regression on soft labels, seed {found['seed']}, 95% bootstrap "
        f"intervals by prompt, paired, {found['date']}.",
    ]
    return "\n".join(lines)


def certified() -> str:
    made, moved, held = load("calibration_calibrate"), load("calibration_shifted"), load("calibration_guarantee")
    guarantee, (off, on) = made["guarantee"], (moved["drift off"], moved["drift on"])
    return "\n".join(
        [
            f"`Router()` comes with a policy certified for `{guarantee['method']}`: regret (the slow model right, the "
            f"routed answer wrong) at most {guarantee['alpha']:.0%} with confidence {1 - guarantee['delta']:.0%}, at "
            f"an escalation rate of {guarantee['certified_rate']:.1%}. {guarantee['n_prompts']:,} calibration prompts, "
            f"{guarantee['n_thresholds']} thresholds tested, {guarantee['risk']:.1%} regret seen on them.",
            "",
            f"On {moved['n']:,} shifted problems (more steps, larger numbers, rarer facts; the slow model alone is "
            f"right on {percent(moved, 'accuracy_slow')}):",
            "",
            "| drift monitor | regret | escalation rate | answers for which the guarantee was claimed | regret there |",
            "|---|---|---|---|---|",
            *(
                f"| {name} | {percent(found, 'regret')} | {percent(found, 'escalation_rate')} "
                f"| {percent(found, 'claimed')} | {percent(found, 'regret_where_claimed')} |"
                for name, found in (("off", off), ("on", on))
            ),
            "",
            "Where it was not claimed, the prompt was told to be of another kind, or the scores had drifted.",
            "",
            f"Whether such certificates hold: {held['pool']:,} problems times {held['thresholds']} thresholds were run "
            f"once (`replace`), and {held['resplits']} random draws of {held['calibration_prompts']:,} of them "
            f"certified anew at delta {held['delta']:g}, beside naive tuning (the least escalation whose regret on the "
            f"draw is at most alpha). How often the pool's regret, the truth, is above alpha (allowed: "
            f"{held['allowed_violations']:.1%}), and the mean escalation rate:",
            "",
            "| alpha | Learn-then-Test | rate | naive tuning | rate |",
            "|---|---|---|---|---|",
            *(
                f"| {alpha} | " + " | ".join(outcome(found[name]) for name in ("certified", "naive")) + " |"
                for alpha, found in held["by_alpha"].items()
            ),
            "",
            f"`benchmarks/calibration.py`, seed {held['seed']}, {held['date']}.",
        ]
    )


def _certified_score(found: dict[str, Any]) -> str:
    what = (
        f"Learn-then-Test on {found['n_prompts']} calibration prompts (alpha {found['alpha']:g}, delta "
        f"{found['delta']:g}; the loss is 1 where the slow model alone is right and the answer is not)"
    )
    if found["threshold"] is None:
        return f"{what} certifies no threshold of `best_of:{found['k']}`."
    regret = percent(found, "regret_on_test")
    return f"{what} certifies `{found['policy']}`: on the problems above its mean loss is {regret}."


def prompt_check() -> str:
    found = load("prompt_check")
    ways, kinds = found["ways"], found["other_by_kind"]

    def counts(way: str, group: str) -> str:
        told = ways[way][group]
        return f"{told['suspended']:,} of {told['n']:,}"

    def row(label: str, way: str) -> str:
        groups = ("other", *(["gsm8k"] if "gsm8k" in ways[way] else []), "shifted", "calibration", "fresh")
        return f"| {label} | {' | '.join(counts(way, group) for group in groups)} |"

    told = ways["check"]
    named = " | GSM8K's test problems" if "gsm8k" in told else ""
    return "\n".join(
        [
            f"On the reference pair {counts('check', 'other')} prompts of other kinds suspend it "
            f"({', '.join(kinds)}), and wrongly {counts('check', 'calibration')} of calibration's own prompts and "
            f"{counts('check', 'fresh')} fresh ones of their source: {percent(told['fresh'], 'share')}, where at most "
            f"{found['allowed']:.1%} is what its limits allow. Beside it, at the same share of calibration's own:",
            "",
            f"| suspended by | other kinds{named} | harder problems | calibration's own | fresh |",
            f"|---|---|---|---|---|{'---|' if named else ''}",
            row("form, length and words (what runs)", "check"),
            row("mean log-probability of the words", "mean log-probability"),
            row("the least likely 16 tokens", "lowest window"),
            row("length", "length"),
            row("an outlier guard on the answer's first tokens", "outlier guard on the answer"),
            row('the pair\'s own "outside my world"', "the answer says so"),
            "",
            f"`benchmarks/prompt_check.py`, seed {found['seed']}, exact 95% interval, {found['date']}.",
        ]
    )


def best_of_k() -> str:
    """Best of K and token routing, each at what it costs."""
    found = load("best_of_k")
    rows = {row["policy"]: row for row in found["rows"]}
    names = [name for name in rows if name.startswith(("fast", "slow"))]
    names += [name for name in rows if name.startswith("entropy")][1::3]
    names += [name for name in rows if name.startswith("best_of")]
    lines = [
        "| policy | right | token routing at as many slow steps | difference, points | prompts escalated | slow steps "
        "| slow reads | fast tokens |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        row = rows[name]
        beside = ["", ""]
        if name.startswith("best_of"):
            low, high = (100 * edge for edge in row["gain_interval"])
            beside = [percent(row, "routed"), f"{100 * row['gain']:+.1f} [{low:+.1f}, {high:+.1f}]"]
        cells = [f"`{name}`" if name not in ("fast alone", "slow alone") else name, percent(row, "accuracy"), *beside]
        cells += [f"{100 * row['escalated']:.0f}%", f"{row['slow_forwards']:.3f}", f"{row['slow_positions']:.2f}"]
        lines.append(f"| {' | '.join([*cells, format(row['fast_tokens'], '.0f')])} |")
    lines += [
        "",
        f"{found['n']} held-out problems of the reference pair; slow steps and slow reads are per token that the slow "
        f"model writes alone, reads with the prompt. {_certified_score(found['certified'])} "
        f"`benchmarks/best_of_k.py`, seed {found['seed']}, 95% bootstrap intervals by prompt, {found['date']}.",
    ]
    return "\n".join(lines)


def card() -> str:
    figures = load("reference_pair")
    training = {role: json.loads((PAIR / "results" / f"{role}.json").read_text()) for role in ("fast", "slow")}

    def row(label: str, cell: Callable[[str], str]) -> str:
        return f"| {label} | {cell('fast')} | {cell('slow')} |"

    def gain(role: str) -> str:
        measured = [step for step in training[role]["state"]["history"] if "accuracy" in step]
        last = measured[-1]
        before = min(measured, key=lambda step: abs(step["tokens"] - 0.8 * last["tokens"]))
        return f"{100 * (last['accuracy']['all'] - before['accuracy']['all']):+.1f} points"

    lines = [
        "| | fast | slow |",
        "|---|---|---|",
        "| Qwen2 layers x width | 2 x 32 | 3 x 128 |",
        row("parameters", lambda role: f"{training[role]['n_params']:,}"),
        row("without embeddings", lambda role: f"{training[role]['n_params_without_embeddings']:,}"),
        row("training tokens", lambda role: f"{training[role]['state']['tokens']:,}"),
        row("gain in the last fifth, training mix", gain),
        row(f"right, {figures['n']:,} held-out", lambda role: percent(figures[f"accuracy_{role}"], "accuracy")),
    ]
    for label, models in figures["by"].items():
        lines.append(row(label, lambda role, m=models: percent(m[role], "accuracy")))
    lines += [
        "",
        f"Temperature 0, 95% bootstrap intervals by prompt, `benchmarks/reference_pair.py`, {figures['date']}. The "
        "gain is from the evaluation nearest to 80% of training to its end, on calibration problems of all families.",
    ]
    return "\n".join(lines)
