"""Answers for applications: held to a form, served, an agent's."""

from __future__ import annotations

from .forms import load, number, percent, ratio


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
