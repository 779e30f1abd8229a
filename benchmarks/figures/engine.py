"""What the engine costs: its speed, its cost model, many requests at once."""

from __future__ import annotations

from typing import Any

from .forms import load, percent, ratio


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
