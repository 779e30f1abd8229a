"""A slow model behind HTTP: money, drafts, seams, verification by token ids."""

from __future__ import annotations

from typing import Any

from .forms import load, percent, ratio


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


def drafts() -> str:
    figures = load("drafts")
    how = (
        f" `benchmarks/drafts.py`, {figures['n']} problems, method `replace`, nothing cached, seed {figures['seed']}, "
        f"95% bootstrap intervals by prompt, {figures['date']}."
    )
    return "\n".join(draft_table(figures)) + how


def draft_table(figures: dict[str, Any]) -> list[str]:
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
    return [*lines, "", f"Alone the fast model is right in {alone[0]}, the slow one in {alone[1]}."]


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
