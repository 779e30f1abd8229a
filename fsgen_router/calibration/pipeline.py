"""From a pair and prompts to a policy file: all steps in their order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..contracts.models import TokenModel
from ..methods import make_method
from ..policies import save_policy
from ..policies.certify import Bound
from .bench import load_prompts, open_bench, open_pair, require_gap, work_directory
from .checks import Judge
from .choosing import choose, make_inputs, nominal_policy, watch
from .fitting import collect_and_fit
from .held_out import hold_out
from .options import check_output, make_options, require_rate_to_hold
from .progress import Progress, Silent, Stages
from .prompts import Prompts
from .report import check_report_path, write_report
from .result import Calibration, make_card, make_curve
from .store import check_folder
from .target import make_target, require_enough_prompts


def calibrate(
    fast: TokenModel | str | None = None,
    slow: TokenModel | str | None = None,
    prompts: str | Path | Prompts | None = None,
    *,
    out: str | Path,
    tuned: TokenModel | str | None = None,
    target_rate: float | None = None,
    max_regret: float | None = None,
    confidence: float = 0.9,
    max_cost: float | None = None,
    bound: Bound = "binomial",
    check: str | Judge | None = None,
    count: int = 1000,
    work: str | Path | None = None,
    report: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Calibration:
    """Make a policy file for a pair from prompts, with a stated and tested target.

    ::

        calibrate("llama_cpp:small.gguf", "llama_cpp:large.gguf", "prompts.jsonl",
                  out="policy.safetensors", max_regret=0.05, confidence=0.9)

    Without models: the reference pair and ``count`` problems of its own. ``tuned`` is a third model, for the method
    ``proxy``. One of ``target_rate``, ``max_regret`` with ``confidence``, and ``max_cost`` (measured seconds
    against the slow model alone); see :class:`Target`. The default is the least escalation with a regret of at most
    0.05, certified if possible, and ``choice.reason`` says whether it is. ``bound="betting"`` stops a candidate's
    run early (see :class:`Target`). ``check`` says when an answer is right. ``work`` (default: beside ``out``)
    keeps what is finished, so that an interrupted calibration goes on where it stopped, and another target costs no
    new traces. ``report`` is an HTML file. ``options`` are :class:`CalibrationOptions`.

    Nothing is written to ``out`` where no candidate meets the target. Raises :class:`NothingToGain`
    where the slow model is not measurably better, :class:`InvalidRequest` for a file that cannot be used
    or too few prompts for the certificate, :class:`CheckerFailed`, and :class:`CalibrationError` where
    results cannot be written.
    """
    parsed = make_options(**options)
    target = make_target(
        target_rate=target_rate, max_regret=max_regret, confidence=confidence, max_cost=max_cost, bound=bound
    )
    require_rate_to_hold(parsed, target)
    loaded = load_prompts(prompts, fast, slow, count=count)
    require_enough_prompts(loaded, target)
    path = check_output(out)
    if report is not None:
        check_report_path(report)
    folder = check_folder(work_directory(path, work))
    stages = Stages(progress or Silent())
    with open_pair(fast, slow, tuned=tuned, seed=parsed.seed) as router:
        bench = open_bench(
            router,
            loaded,
            folder,
            check=check,
            stages=stages,
            **parsed.model_dump(exclude_unset=True),
        )
        gap = require_gap(bench)
        fitted = collect_and_fit(bench, target)
        choice = choose(bench, fitted, target)
        policy = choice.policy
        shown = policy if policy is not None else nominal_policy(bench, fitted, target)
        held = hold_out(bench, fitted, shown)
        if policy is not None and not choice.always:
            policy = watch(bench, policy)
        if policy is not None:
            inputs = make_inputs(router.fast.tokenizer, loaded, stop=parsed.stop, max_tokens=parsed.max_tokens)
            policy = replace(
                policy,
                pair=bench.pair,
                method=make_method(parsed.method).name,
                inputs=inputs,
                curve=make_curve(policy, choice),
            )
            if parsed.hold:
                assert target.rate is not None
                policy = policy.holding(target.rate)
        card = None if policy is None else make_card(bench, policy, choice, target, held)
        pair, rows = bench.pair, bench.rows.to_dict()
    if policy is not None and card is not None:
        save_policy(path, policy, card)
    calibration = Calibration(
        policy=policy,
        card=card,
        target=target,
        choice=choice,
        prompts=loaded,
        pair=pair,
        options=parsed,
        gap=gap,
        rounds=fitted.rounds,
        held=held,
        seconds=stages.seconds,
        rows=rows,
        path=path,
        check=bench.check,
    )
    if report is not None:
        write_report(calibration, report)
    return calibration
