"""Write the figures in the documents from measured results; ``--check`` only compares.

python benchmarks/readme.py [--check]

A document has them between ``<!-- figures: NAME -->`` and ``<!-- /figures -->``. docs/figures.md has all but the model
card's, and the README those that it picks.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
PAGE = HERE.parent / "docs" / "figures.md"
PAIR = HERE.parent / "examples" / "reference_pair"
METHODS = HERE.parent / "docs" / "methods.md"
RECOMMEND = HERE.parent / "docs" / "recommend.md"
POLICIES = HERE.parent / "docs" / "policies.md"
CONSTRAINED = HERE.parent / "docs" / "constrained.md"
SERVER = HERE.parent / "docs" / "server.md"
AGENTS = HERE.parent / "docs" / "agents.md"
PAIRS = HERE.parent / "docs" / "pairs.md"


def load(name: str) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((HERE / "results" / f"{name}.json").read_text())
    return figures


def percent(record: dict[str, Any], name: str) -> str:
    """``value [low, high]`` in percent."""
    value, interval = record[name], record[f"{name}_interval"]
    if value is None:
        return "not reached"
    inside = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else ""
    return f"{100 * value:.1f}%{inside}"


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


def ratio(record: dict[str, float]) -> str:
    return f"{record['ratio']:.3f} [{record['low']:.3f}, {record['high']:.3f}]"


def speed() -> str:
    overhead, routed, prefix = load("overhead"), load("routed_decode"), load("prefix_cost")
    lines = [
        f"Random weights in Qwen2.5-0.5B's shape, 152k vocabulary, 8 bits, {overhead['threads']} threads on "
        f"{overhead['machine']}; medians over {overhead['blocks']} answers of {overhead['tokens_per_block']} tokens, "
        f"written in turns of {overhead['tokens_per_turn']}; 95% bootstrap intervals.",
        "",
        "| | speed of the Router, never escalating, all signals recorded |",
        "|---|---|",
        f"| against a bare ctypes decode-and-argmax loop | {ratio(overhead['bare_over_router'])} |",
        f"| against `create_completion` at temperature 0 | {ratio(overhead['create_completion_over_router'])} |",
        "",
        f"The bare loop, with each row reduced to the signals and nothing else around it, runs at "
        f"{ratio(overhead['bare_over_bare_with_signals'])} of its own speed, and at "
        f"{ratio(overhead['create_completion_over_bare_with_signals'])} of `create_completion`'s, which computes none.",
        "",
        f"Python's share per token at a prefix of 4,000 tokens, against 100: "
        f"{prefix['median_difference_us']:+.1f} µs (median).",
        "",
        "Routed decode with a slow model of ten times the parameters, against the time model (the sum, over the chunks "
        "that were really read, of chunk times measured in the same run) and against the slow model alone:",
        "",
        "| slow tokens | span | slow steps | measured / predicted | times faster than slow-only |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {100 * s['slow_share']:.1f}% | {s['span']} | {s['slow_forwards']} | {s['measured_over_predicted']:.3f} | "
        f"{ratio(s['slow_only_over_routed'])} |"
        for s in routed["settings"]
    ]
    lines += [
        "",
        f"`benchmarks/overhead.py`, `benchmarks/prefix_cost.py`, `benchmarks/routed_decode.py`, "
        f"greedy, random weights of seed 1, {overhead['date']}.",
    ]
    return "\n".join(lines)


def _default(found: dict[str, Any]) -> str:
    """What a pair's default took and was expected to take, over the slow model alone."""
    chosen, alone = (
        next(p for p in found["points"] if (p["policy"], p["method"]) == tuple(wanted))
        for wanted in (found["default"], ("always,span=rest", "replace"))
    )
    return (
        f"`{chosen['policy']}` with `{chosen['method']}`, which took {ratio(chosen['over_slow_alone'])} of the slow "
        f"model's own seconds ({chosen['expected_seconds'] / alone['expected_seconds']:.2f} expected) over "
        f"{found['prompts']} problems"
    )


def cost_model() -> str:
    found, default, distant = (load(f"cost_model{name}") for name in ("", "_default", "_distance_default"))
    lines = [
        "Seconds that the cost model expects, given each run's own rates, over those that it took, on a real pair "
        f"({' and '.join(f'`{name}`' for name in found['pair'])}, {found['threads']} threads on {found['machine']}):",
        "",
        "| policy | method | escalated | drafts accepted | expected / measured | over the slow model alone |",
        "|---|---|---|---|---|---|",
    ]
    for point in found["points"]:
        accepted = f"{point['acceptance']:.1%}" if "verify" in point["method"] else ""
        lines.append(
            f"| `{point['policy']}` | `{point['method']}` | {point['escalation']:.1%} | {accepted} | "
            f"{point['expected_over_measured']:.3f} | {ratio(point['over_slow_alone'])} |"
        )
    lines += [
        "",
        f"{found['prompts']} problems of GSM8K, at most {found['max_tokens']} tokens, points interleaved; the table of "
        "forwards was measured between the prompts.",
        "",
        f"The default that follows from the costs measured when the Router is made, {_default(default)}. On a pair "
        f"with more distance (0.5B over a tenth of it, random weights) it is {_default(distant)}. At most "
        f"{default['max_tokens']} tokens, 95% bootstrap interval by prompt. `benchmarks/cost_model.py --default`, "
        f"temperature 0, {default['date']}.",
    ]
    return "\n".join(lines)


def remote_money() -> str:
    """What quality costs before an endpoint that bills tokens, against whole-query routing."""
    found = load("remote_money")
    prices, ways = found["prices"], found["at_quality"]

    def times(record: dict[str, Any], name: str) -> str:
        value, interval = record[name], record[f"{name}_interval"]
        if value is None:
            return "not reached"
        return f"{value:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")

    lines = [
        f"{found['n']} held-out problems, the slow model behind llama-cpp-python's own server on loopback; the fast "
        f"model answers {percent(found['fast'], 'accuracy')} of them for nothing, the slow one "
        f"{percent(found['slow'], 'accuracy')}. Prices of {prices['input']:g} : {prices['cached_input']:g} : "
        f"{prices['output']:g} for input, cached input and output. What it costs to recover a share of that gap, over "
        "the slow model alone; in brackets 95% intervals:",
    ]
    for tariff, label in (
        ("no cache", "every call's prompt at the full price of input"),
        ("prefix cache", "with a cache that finds what an earlier call of the answer read or wrote"),
    ):
        lines += [
            "",
            f"| {label} | 50% of the gap | 80% | 95% | 95%, over whole queries by mean entropy |",
            "|---|---|---|---|---|",
        ]
        for name, levels in ways[tariff].items():
            cells = [times(levels[level], "over_slow_only") for level in ("0.5", "0.8", "0.95")]
            itself = name.endswith("by mean entropy")
            cells.append("1" if itself else times(levels["0.95"], "over_whole_queries"))
            lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Temperature 0, answers of {found['answer_tokens']:.0f} tokens of the slow model's. Thresholds on entropy, "
        "crossings interpolated inside each bootstrap draw, paired by prompt. `benchmarks/remote_money.py`, seed "
        f"{found['seed']}, {found['date']}.",
    ]
    return "\n".join(lines)


def verification() -> str:
    figures = load("reference_pair")
    found, lossless = figures["verify"], load("lossless")
    entropy = figures["slow_token_share_at_recovery"]["entropy"]["0.95"]
    forwards, fewest = found["slow_forwards_per_token_at_95"], found["fewest_corrections_at_95"]
    lines = [
        "| on the reference pair, at 95% of the gap | per emitted token |",
        "|---|---|",
        f"| tokens that the slow model writes, `replace`, entropy | {percent(entropy, 'share')} |",
        f"| corrections, every draft judged (`{fewest['policy']}`; recovers {percent(fewest, 'recovered_gap')}) | "
        f"{percent(fewest, 'correction_share')} |",
        f"| bonus tokens there | {percent(fewest, 'bonus_share')} |",
        f"| slow forwards there | {percent(fewest, 'slow_forwards_per_token')} |",
    ]
    lines += [
        f"| slow forwards, `{name.split()[0]}`, threshold on {name.split()[1].replace('_', ' ')} | "
        f"{percent(record, 'rate')} |"
        for name, record in forwards.items()
    ]
    lines += [
        "",
        "Slow forwards of a policy that verifies, against the same policy that replaces, where both recover 95%: "
        + "; ".join(
            f"`{method}` {record['ratio']:.2f} [{record['ratio_interval'][0]:.2f}, {record['ratio_interval'][1]:.2f}]"
            for method, record in found["slow_forwards_ratio_to_replace"].items()
        )
        + f". `benchmarks/reference_pair.py`, {figures['n']:,} problems, seed {figures['seed']}, paired bootstrap by "
        f"prompt, {figures['date']}.",
        "",
        f"`every:{lossless['interval']}` with `verify:exact` wrote another text than the slow model alone on "
        f"{lossless['different']} of {lossless['n']:,} held-out problems, in {lossless['slow_forwards']:,} slow "
        f"forwards instead of {lossless['tokens']:,} (`benchmarks/lossless.py`, {lossless['date']}).",
    ]
    return "\n".join(lines)


def assisted() -> str:
    pair, shape = load("assisted_reference_pair"), load("assisted_real_shape")
    best = pair["draft_length"]
    forced = [
        f"| real shape, {float(share):.0%} of the drafts right | {ratio(found['router_over_assisted_generation'])} | "
        f"{found['draft_length']['router']}, {found['draft_length']['assisted_generation']} |"
        for share, found in shape["acceptance"].items()
    ]
    each = next(iter(shape["acceptance"].values()))
    return "\n".join(
        [
            "| exact `verify`, `every:K`, against `generate(assistant_model=...)` | speed | K: ours, theirs |",
            "|---|---|---|",
            f"| both through transformers | {ratio(pair['router_over_assisted_generation'])} | "
            f"{best['router']}, {best['assisted_generation']} |",
            f"| ours through llama.cpp | {ratio(pair['router_llama_cpp_over_assisted_generation'])} | "
            f"{best['router_llama_cpp']}, {best['assisted_generation']} |",
            *forced,
            "",
            f"{pair['prompts']} prompts of the reference pair in turns, each side at its best draft length K of 2, 4, "
            f"8 and 16, constant draft schedule, {pair['threads']} thread on {pair['machine']}. The slow model alone "
            f"ran at {ratio(pair['slow_alone_over_assisted_generation'])} of assisted generation's speed: models this "
            f"small gain nothing from speculation. `benchmarks/assisted.py`, seed {pair['seed']}, 95% bootstrap "
            f"intervals by prompt, {pair['date']}.",
            "",
            f"The real shape is Qwen2.5-0.5B's with a vocabulary of 32,000 ({shape['slow']} parameters) and about a "
            f"tenth of it ({shape['fast']}) through transformers, random weights, {shape['dtype']} on "
            f"{shape['device']}, {shape['threads']} thread; a script decides which drafts are right, so both sides "
            f"accept the same ones. "
            f"{each['prompts']} prompts of 100 tokens, {shape['tokens']} tokens each, {shape['date']}.",
        ]
    )


def _in_step() -> list[str]:
    """Throughput of many requests under three rules for whose turn it is, simulated."""
    found = load("turns_simulated")
    lines = [
        "Times the tokens/s of one request at a time, by whose turn it is (simulated at the step times of that pair, "
        "and of a GPU on which reading is nearly free):",
        "",
        "| machine, escalation, requests | whatever waits | all wait for the slow model | what runs | best threshold |",
        "|---|---|---|---|---|",
    ]
    for name, by_rule in found["rules"].items():
        speeds = [str(rule["over_one_by_one"]) for rule in by_rule.values()]
        if name.endswith((" 4 at once", " 8 at once")):
            lines.append(f"| {name} | {' | '.join(speeds)} |")
    return [*lines, "", f"`benchmarks/turns.py --simulate`, seed {found['seed']}, {found['date']}."]


def _endpoint_down(found: dict[str, Any]) -> str:
    """The first token with the endpoint down from the start."""
    times = ", ".join(
        f"{one['ratio_median']:.2f} ({name}, {one['more_ms_median']:+.0f} ms)"
        for name, one in found["first_token"].items()
        if name != "alone"
    )
    return (
        f"An endpoint that is down from the start: the first token of `{found['fast']}` takes {times} times what it "
        f"takes where the policy never asks, medians over {found['blocks'] * found['answers_of_a_router']} answers in "
        f"turns; a server that hangs up sees {found['requests_that_the_server_saw_of_a_router']:.0f} requests of a "
        "Router. The unfinished word, which is held back before an endpoint, is a part of it. "
        f"`benchmarks/endpoint_down.py`, {found['machine']}, {found['date']}."
    )


def many() -> str:
    batching, soak, ahead = load("batching"), load("soak"), load("read_ahead")
    turns, single = load("turns"), load("turns_single")
    memory = soak["memory_mib"]
    faults = load("faults")
    outcomes = faults["outcomes"]
    speed = batching["tokens_per_second"]
    lines = [
        f"{batching['requests']} requests at once in Qwen2.5-0.5B's shape (random weights, 8 bits, "
        f"{batching['threads']} threads on {batching['machine']}), all signals recorded, against a bare ctypes loop "
        f"that decodes as many sequences and takes each argmax: {ratio(batching['bare_over_router'])} of its speed "
        f"({speed['router']:.0f} against {speed['bare']:.0f} tokens/s; `benchmarks/batching.py`, {batching['blocks']} "
        f"alternating blocks, {batching['date']}).",
        "",
        f"A single request to a real pair on the same cores ({single['pair']['fast']} and {single['pair']['slow']}, "
        f"`every:6`, `verify`, {single['threads']} threads on {single['machine']}) takes "
        f"{ratio(single['seconds_over_before'])} of the time that it took while each model had a thread of its own, "
        f"and so an OpenMP team of its own (`benchmarks/turns.py --before`, {single['rounds']} rounds of processes in "
        f"turn, {single['date']}).",
        "",
        f"Many requests to that pair (`verify`, {turns['threads']} threads, {turns['prompts']} prompts, "
        f"{turns['tokens_per_request']} tokens each):",
        "",
        "| policy | one by one, tokens/s | four at once, times that | eight at once |",
        "|---|---|---|---|",
        *(
            f"| `{policy}` | {turns[policy]['1_at_once']['tokens_per_second']} | "
            f"{ratio(turns[policy]['4_at_once']['over_one_by_one'])} | "
            f"{ratio(turns[policy]['8_at_once']['over_one_by_one'])} |"
            for policy in turns["policies"]
        ),
        "",
        f"`benchmarks/turns.py`, {turns['rounds']} alternating rounds, {turns['date']}.",
        "",
        *_in_step(),
        "",
        f"{soak['streams']} streams of the reference pair for {soak['minutes']:g} minutes, coroutines and threads "
        f"mixed, a third of them cancelled: {soak['finished']:,} answers finished, {soak['cancelled']:,} were "
        f"cancelled, {soak['different_from_the_solo_run']} differed from their solo run; "
        f"{memory['after_the_first_tenth']:.0f} MiB of memory after the first tenth, {memory['at_the_end']:.0f} at "
        f"the end (`benchmarks/soak.py`, {soak['pair']}, {soak['date']}).",
        "",
        f"{faults['runs']:,} requests to an endpoint on loopback, {faults['fault_share']:.0%} of whose calls went "
        f"wrong (resets, stalls, streams that were cut or malformed, 429 and 5xx; {faults['calls']:,} calls), "
        f"{faults['at_once']} at once, threads and coroutines mixed: {outcomes['whole']} answers were whole at once, "
        f"{outcomes['tried again and whole']} after another try, {outcomes['degraded']} went on without the slow model "
        f"and said so, {outcomes['left half-way']} were left half-way; {faults['wrong']} had lost or doubled a byte, "
        f"or were counted wrongly, and no connection or thread was left (`benchmarks/faults.py`, seed "
        f"{faults['seed']}, {faults['pair']}, {faults['date']}).",
        "",
        _endpoint_down(load("endpoint_down")),
        "",
        f"Read-ahead where both models share the cores (0.5B and a tenth of it, the slow one writes every "
        f"{ahead['interval']}th token): {ratio(ahead['off_one_thread_over_on'])} of the speed without it at one thread "
        f"per model, {ratio(ahead['off_all_threads_over_on'])} of the speed without it where each may use all cores in "
        f"its turn (`benchmarks/read_ahead.py`, {ahead['blocks']} alternating blocks, {ahead['date']}).",
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


def outcome(found: dict[str, Any]) -> str:
    if not found["chosen"]:
        return "none certified | "
    return f"{found['violations']:.1%} of {found['chosen']} | {found['mean_escalation_rate']:.1%}"


def number(record: dict[str, Any], name: str) -> str:
    """``value [low, high]``."""
    value, interval = record[name], record[f"{name}_interval"]
    return "not reached" if value is None else f"{value:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"


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


def real_pair() -> str:
    """The finding on real models, as far as it was run: each part is a run of hours."""
    parts = {"alone": real_pair_alone, "default": real_pair_default, "certified": real_pair_certified}
    parts |= {"curves": real_pair_curves, "resplits": real_pair_resplits}
    run = {part: make for part, make in parts.items() if (HERE / "results" / f"real_pair_{part}.json").exists()}
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
        f"Nobody's calibration, `{found['policy']}` with `replace`, on all {found['n']} problems: right in "
        f"{percent(found, 'accuracy')}, the slow model having written {percent(found, 'slow_token_share')} of the "
        f"tokens, in {number(found, 'slow_steps_per_slow_token')} of the steps of its own answers "
        f"({found['date']})."
    )


def real_pair_certified(found: dict[str, Any]) -> str:
    begin = f"Calibrated on {found['n']} problems of their own, for {found['target']}: "
    if not found["certified"] or "report" not in found:
        return f"{begin}{found['verdict']} ({found['date']})."
    seen = found["report"]
    return (
        f"{begin}certified. On {seen['n']} others its regret is {percent(seen, 'regret')} and it is right in "
        f"{percent(seen, 'accuracy')}, asking at {percent(seen, 'escalation_rate')} of the tokens, in "
        f"{number(seen, 'slow_steps_per_slow_token')} of the slow model's own steps. The models read "
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
    lines += ["", f"`benchmarks/real_pair.py --part resplits`, {found['date']}."]
    return "\n".join(lines)


def drafts() -> str:
    figures = load("drafts")
    lines = [
        "| handed over by | draft, tokens | `keep`: right | bill | `drop`: right | bill | `show`: right | bill |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for point in figures["points"]:
        by = figures[point]
        cells = [f"`{point}`", f"{by['keep']['draft_tokens']:.0f}"]
        for draft in ("keep", "drop", "show"):
            cells += [percent(by[draft], "accuracy"), percent(by[draft], "bill")]
        lines.append(f"| {' | '.join(cells)} |")
    alone = [percent(figures[f"{role}_alone"], "accuracy") for role in ("fast", "slow")]
    lines += [
        "",
        f"Alone the fast model is right in {alone[0]}, the slow one in {alone[1]}. "
        f"`benchmarks/drafts.py`, {figures['n']} problems, method `replace`, nothing cached, seed {figures['seed']}, "
        f"95% bootstrap intervals by prompt, {figures['date']}.",
    ]
    return "\n".join(lines)


def method_step() -> str:
    found = load("method_step")

    def cell(name: str) -> str:
        one = found["us_per_step"].get(name)
        return "" if one is None else f"{one['median']:,.0f} [{one['low']:,.0f}, {one['high']:,.0f}]"

    lines = ["| µs a step | greedy | sampled |", "|---|---|---|"]
    lines += [
        f"| {name if name.startswith('fast') else f'`{name}`'} | {cell(name)} | {cell(f'{name}, sampled')} |"
        for name in found["us_per_step"]
        if not name.endswith("sampled")
    ]
    lines += [
        "",
        f"Rows of {found['n_vocab']:,} random logits, the models' forwards left out: the fast model's row alone, and "
        "with all that a method reads and chooses at an escalation (`replace` draws its token where the row is read). "
        f"Median of {found['blocks']} blocks in turns and its 95% bootstrap interval. `benchmarks/method_step.py`, "
        f"seed {found['seed']}, {found['date']}, {found['machine']}.",
    ]
    return "\n".join(lines)


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


def seams() -> str:
    figures = load("seams")
    lines = ["| tokenizer | cuts | in mid-word | tokens | wrong bytes |", "|---|---|---|---|---|"]
    for name, found in figures["tokenizers"].items():
        counts = (found["cuts"], found["in_words"], found["tokens"], found["wrong"])
        lines.append(f"| {name} | {' | '.join(f'{count:,}' for count in counts)} |")
    total = sum(found["cuts"] for found in figures["tokenizers"].values())
    lines += [
        "",
        f"`benchmarks/seams.py`, {total:,} cuts of {figures['texts']} texts, seed {figures['seed']}, "
        f"{figures['date']}.",
    ]
    return "\n".join(lines)


def constraints() -> str:
    found = load("constraints")
    schemas, rewinds, cost, suite = (found[part] for part in ("schemas", "rewinds", "overhead", "suite"))
    asked = suite["every:4, verify"]
    modes = [name for name, counts in schemas.items() if isinstance(counts, dict)]
    lines = [
        f"| {schemas['count']:,} random schemas | whole answers | of them invalid | cut off | tokens forced |",
        "|---|---|---|---|---|",
    ]
    for name in modes:
        counts = schemas[name]
        share = counts["forced"] / counts["tokens"]
        lines.append(
            f"| {name} | {counts['whole']:,} | {counts['invalid']} | {counts['cut_off']:,} | {100 * share:.0f}% |"
        )
    lines += [
        "",
        f"The reference pair, {schemas['max_tokens']} tokens at most, greedy and sampled in turn; it seldom ends a "
        "text by itself. Masks after random rewinds, against those of matchers that read each answer from "
        f"its beginning: {rewinds['unequal']} of {rewinds['cases']:,} differ.",
        "",
        f"Of the JSON-Schema-Test-Suite's {suite['schemas']:,} schemas (drafts 4 to 2020-12) {suite['refused']} are "
        f"refused. The others accept {suite['invalid_values_accepted']} of the suite's {suite['invalid_values']:,} "
        "invalid values (a `$id` beside a `$ref` in drafts 6 and 7) and "
        f"{100 * suite['valid_values_accepted'] / suite['valid_values']:.0f}% of its valid ones, since it holds "
        f"one order of properties; {asked['whole']} of {asked['answers']} answers were whole, {asked['invalid']} of "
        "them invalid.",
        "",
        f"At a vocabulary of {cost['n_vocab']:,} a "
        f"constraint adds {cost['added_ms']['mean']:.2f} ms to a step (99%: {cost['added_ms']['p99']:.2f} ms), "
        f"{100 * cost['share_of_step']:.1f}% of the {cost['step_ms']:.0f} ms of {cost['model'].removesuffix('.gguf')} "
        f"(Qwen2.5-Coder, Q4_K_M) on {cost['threads']} threads; the first grammar of a Router takes "
        f"{cost['first_grammar_ms'] / 1e3:.1f} s, one that was used before {cost['same_grammar_again_ms']:.1f} ms. "
        f"`benchmarks/constraints.py`, seed {found['seed']}, {found['date']}, {found['machine']}.",
    ]
    return "\n".join(lines)


def _certified_score(found: dict[str, Any]) -> str:
    what = (
        f"Learn-then-Test on {found['n_prompts']} calibration prompts (alpha {found['alpha']:g}, delta "
        f"{found['delta']:g}; the loss is 1 where the slow model alone is right and the answer is not)"
    )
    if found["threshold"] is None:
        return f"{what} certifies no threshold of `best_of:{found['k']}`."
    regret = percent(found, "regret_on_test")
    return f"{what} certifies `{found['policy']}`: on the problems above its mean loss is {regret}."


def http_verify() -> str:
    figures = load("http_verify")
    different, gaps = figures["different"], [one["gap_nats"] for one in figures["partings"]]
    texts = f"on all {figures['prompts']} prompts"
    if different:
        texts = (
            f"on {figures['prompts'] - different} of {figures['prompts']} prompts; where they part, the server's two "
            f"best tokens lie {max(gaps):.2g} nats apart at most"
        )
    return "\n".join(
        [
            f"`every:{figures['interval']}` with `verify:exact`, token for token the text that the server writes "
            f"alone: {texts}.",
            "",
            "| verification over HTTP | |",
            "|---|---|",
            f"| calls per answer of at most {figures['max_tokens']} tokens | {figures['calls_per_answer']:.2f} |",
            f"| tokens per call | {figures['tokens_per_call']:.1f} |",
            f"| prompt tokens sent that the server's cache held, by its own counters | "
            f"{figures['cached_share_of_prompt_tokens']:.0%} |",
            f"| tokens/s, over HTTP and in process, median | {figures['http_tokens_per_second_there']:.1f}, "
            f"{figures['in_process_tokens_per_second']:.1f} |",
            f"| tokens/s over HTTP against in process, the same problems in turns | "
            f"{ratio(figures['http_to_in_process'])} |",
            "",
            f"SmolLM2-135M on an unmodified {figures['server']}, on {figures['machine']}, beside other work; the file "
            f"of 4 bits that its weights were made of writes the drafts, through llama.cpp. GSM8K, temperature 0; in "
            f"process through transformers on {figures['paired_with_in_process']} of them. "
            f"`benchmarks/http_verify.py`, seed {figures['seed']}, 95% bootstrap interval, {figures['date']}.",
        ]
    )


def serve() -> str:
    figures = load("serve")
    one, eight, first, soak = (figures[name] for name in ("overhead_1", "overhead_8", "first_token", "soak"))
    later, memory, harness = first["later_ms"], soak["memory_mib"], load("harness")
    chat, raw = harness["local-chat-completions"], harness["local-completions"]
    return "\n".join(
        [
            f"Tokens per second over HTTP against the same Router in its own process: {ratio(one['server_to_router'])} "
            f"with one stream, {ratio(eight['server_to_router'])} with eight. The first text comes "
            f"{later['median']:.1f} [{later['low']:.1f}, {later['high']:.1f}] ms later. {figures['weights']}, `never`, "
            f"{figures['threads']} thread, {one['blocks']} and {eight['blocks']} pairs of blocks in turns, on "
            f"{figures['machine']}, beside other work.",
            "",
            f"{soak['streams']} clients of the reference pair for {soak['minutes']:g} minutes, all four APIs mixed, a "
            f"third of which left in the middle: {soak['finished']:,} answers finished, {soak['left']:,} were left, "
            f"{soak['different']} differed from their solo run; {memory['after_a_quarter']:.0f} MiB of memory after a "
            f"quarter, clients included, {memory['at_the_end']:.0f} at the end. `benchmarks/serve.py`, "
            f"{figures['date']}.",
            "",
            f"lm-evaluation-harness, unchanged, on {harness['n']} held-out problems of the reference pair: "
            f"`local-chat-completions` {chat['harness']:.1%} right ({chat['router']:.1%} by the Router in process), "
            f"`local-completions` {raw['harness']:.1%} ({raw['router']:.1%}). `benchmarks/harness.py`, "
            f"{harness['date']}.",
        ]
    )


def agents() -> str:
    figures = load("agents")
    ways = figures["ways"]
    lines = [
        "| who writes | tasks won | slow forwards a task | of slow alone's | in the last turn | turns | malformed |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, way in ways.items():
        lines.append(
            f"| {name} (`{way['policy']}`) | {percent(way, 'success')} | {number(way, 'slow_forwards_per_task')} | "
            f"{percent(way, 'slow_forwards_to_slow_alone')} | {way['said_forwards_per_task']:.1f} | "
            f"{way['turns_per_task']:.1f} | {way['malformed_calls']} |"
        )
    by_kind = ", ".join(
        f"{kind} {100 * ways['fast alone']['success_by_kind'][kind]:.0f} and "
        f"{100 * ways['slow alone']['success_by_kind'][kind]:.0f}"
        for kind in figures["kinds"]
    )
    lines += [
        "",
        f"{figures['n']} held-out tasks, greedy, 95% bootstrap intervals by task. Tasks that `routed` wins beyond the "
        f"slow model alone: {percent(ways['routed'], 'success_beyond_slow_alone')}. Won by kind of task (%), fast "
        f"alone and slow alone: {by_kind}. `benchmarks/agents.py`, {figures['date']}.",
    ]
    return "\n".join(lines)


BLOCKS: dict[str, tuple[Path, Callable[[], str]]] = {
    "best_of_k": (README, best_of_k),
    "reference_pair": (README, reference_pair),
    "speed": (README, speed),
    "cost_model": (README, cost_model),
    "verification": (README, verification),
    "assisted": (README, assisted),
    "many": (README, many),
    "learned": (README, learned),
    "certified": (README, certified),
    "prompt_check": (README, prompt_check),
    "remote_money": (README, remote_money),
    "card": (PAIR / "MODEL_CARD.md", card),
    "http_verify": (README, http_verify),
    "real_pair": (README, real_pair),
    "recommend": (RECOMMEND, recommend),
    "drafts": (POLICIES, drafts),
    "seams": (PAIRS, seams),
    "method_step": (METHODS, method_step),
    "constraints": (CONSTRAINED, constraints),
    "serve": (SERVER, serve),
    "agents": (AGENTS, agents),
}


def filled(path: Path, text: str) -> str:
    """The document with the figures in their blocks."""
    for name in set(re.findall(r"<!-- figures: (\w+) -->", text)) - set(BLOCKS):
        raise SystemExit(f"{path.name} has a block for {name}, which nothing makes")
    for name, (where, make) in BLOCKS.items():
        if path not in (where, PAGE) or (path == PAGE and where != README):
            continue
        pattern = re.compile(rf"(<!-- figures: {name} -->\n).*?(<!-- /figures -->)", re.DOTALL)
        body = make()
        if path == PAGE:  # pictures lie beside the page, where the site finds them
            body = body.replace("](benchmarks/results/", "](assets/")
        text, count = pattern.subn(lambda found, b=body: f"{found[1]}{b}\n{found[2]}", text)
        if count > 1 or (count == 0 and path != README):
            raise SystemExit(f"{path.name} has {count} blocks for {name}, not one")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a figure differs from the results")
    args = parser.parse_args()
    for path in {PAGE, *(where for where, _ in BLOCKS.values())}:
        before = path.read_text()
        after = filled(path, before)
        if args.check and before != after:
            raise SystemExit(f"the figures in {path.name} are not the measured ones: run benchmarks/readme.py")
        if not args.check:
            path.write_text(after)


if __name__ == "__main__":
    main()
