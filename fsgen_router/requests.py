"""From a prompt and options to an engine: what each model reads, and how the answer is written."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from .config import RequestOptions
from .contracts.methods import Method
from .contracts.policy import REST, Ledger, Policy, hands_over
from .contracts.text_models import TextModel, reads_tokens, unready
from .contracts.tokenizer import Tokenizer, Turn
from .decode import BestOfEngine, Engine, Request, TextPrompt
from .errors import InvalidRequest, PromptTooLong
from .methods import Replace
from .money import Budget, Terms
from .pairing import Pairing
from .records import Claim, Role
from .rows.reading import hashed_uniform
from .tools import ToolPlan, in_words

if TYPE_CHECKING:
    from .policies import BestOf

Prompts: TypeAlias = Mapping[Role, Sequence[int]]


def encode_prompts(pair: Pairing, text: TextPrompt, roles: Sequence[Role]) -> Prompts:
    prompts: dict[Role, list[int]] = {}
    for role in roles:
        model = pair.models[role]
        if not reads_tokens(model):
            continue
        prompts[role] = _ids(text, pair.tokenizer(role, model))
        if not prompts[role]:
            raise InvalidRequest("the prompt has no tokens", hint="give at least one character")
        if len(prompts[role]) >= model.n_ctx:
            raise PromptTooLong(
                f"the prompt has {len(prompts[role])} tokens, the context of {model.name} holds {model.n_ctx}",
                hint="shorten the prompt, or load the model with a larger n_ctx",
            )
    return prompts


def count_prompt(pair: Pairing, text: TextPrompt) -> int:
    """Tokens that the fast model reads of a prompt, however long."""
    return len(_ids(text, pair.tokenizer("fast", pair.fast)))


def require_read(pair: Pairing, text: TextPrompt, variables: Mapping[str, Any]) -> None:
    """Variables that no template reads are a slip: they would change nothing."""
    if text.messages is None:
        raise InvalidRequest("chat_template_kwargs without messages", hint="raw prompts have no template: use chat()")
    if pair.local_slow is None:
        return  # nobody knows what an endpoint's template reads
    templates = [getattr(model.tokenizer, "template", None) for model in pair.local]
    known: set[str] = set().union(*(template.variables for template in templates if template is not None))
    if None not in templates and (unread := sorted(set(variables) - known)):
        raise InvalidRequest(
            f"no chat template of {' and '.join(model.name for model in pair.local)} reads {', '.join(unread)}",
            hint=f"they read {', '.join(sorted(known)) or 'none'}",
        )


def make_engine(
    pair: Pairing,
    text: TextPrompt,
    prompts: Prompts,
    options: RequestOptions,
    *,
    policy: Policy,
    method: Method,
    seed: int,
    ledger: Ledger,
    audit: float,
    read_ahead: int,
    terms: Terms,
) -> Engine:
    """The engine of a request, whose answer is audited with the probability ``audit``."""
    from .policies import Capped, Extended, Never, check_prompt

    _require_known(pair, options, method)
    best_of = _best_of(policy)
    policy = check_prompt(
        policy if best_of is None else best_of.fallback,
        pair.fast.tokenizer,
        prompt=text.prompt,
        messages=text.messages,
        stop=options.stop,
        chat_template_kwargs=text.chat_template_kwargs,
    )
    if options.tools and pair.local_slow is None and policy.asks and not hands_over(policy):
        policy = Extended(policy, draft="drop")  # it calls tools in its own way, and goes on with no other's call
    if options.max_slow_calls is not None or options.max_slow_tokens is not None:
        policy = Capped(policy, options.max_slow_calls, options.max_slow_tokens)
    if best_of is not None:  # a cap is on what its fallback asks for
        policy = best_of = replace(best_of, fallback=policy)
    roles = pair.roles(policy, method, audit=bool(audit))
    request = _make_request(pair, text, prompts, options, seed, _key(prompts))
    audited = hashed_uniform(request.seed, request.key, ledger.requests, "audit") < audit
    engine = Engine if best_of is None else partial(BestOfEngine, best_of=best_of, writer=Never())
    return engine(
        replace(request, audit=audited),
        policy=policy,
        method=method,
        vocabulary=pair.vocabulary,
        contexts=pair.contexts(roles),
        ledger=ledger,
        alignments=pair.alignments(),
        read_ahead=read_ahead,
        terms=_held_to(terms, options, pair.slow.name),
        ready=None if pair.local_slow else partial(unready, cast(TextModel, pair.slow)),
    )


def _best_of(policy: Policy) -> BestOf | None:
    """The policy that first lets the fast model write whole answers, where this is one, with a cap around it or not."""
    from .policies import BestOf, Capped

    if isinstance(policy, Capped) and (inner := _best_of(policy.inner)) is not None:
        return replace(inner, fallback=replace(policy, inner=inner.fallback))
    return policy if isinstance(policy, BestOf) else None


def _held_to(terms: Terms, options: RequestOptions, slow: str) -> Terms:
    """A Router's terms with a request's own caps. Raises :class:`InvalidRequest` for money that nobody can count."""
    if options.max_cost_usd and not terms.countable:
        raise InvalidRequest(
            f"max_cost_usd={options.max_cost_usd:g}, and no price known of {slow}",
            hint="give the Router prices=, or cap max_slow_calls or max_slow_tokens",
        )
    budgets = [] if options.budget is None else [options.budget]
    if options.max_cost_usd is not None or options.max_seconds is not None:
        budgets.append(Budget(usd=options.max_cost_usd, seconds=options.max_seconds))
    return replace(terms, purse=terms.purse.under(*budgets))


def make_baseline(
    pair: Pairing, text: TextPrompt, prompts: Prompts, options: RequestOptions, *, seed: int, terms: Terms
) -> Engine:
    """The slow model alone: the same engine with it in the fast seat, never escalating; or, where it gives
    text, everything handed over to it. It is under no cap, and what it costs is entered in those of ``terms``."""
    from .policies import Always, Never

    local = pair.local_slow
    request = _make_request(pair, text, {"fast": prompts["slow" if local else "fast"]}, options, seed, _key(prompts))
    return Engine(
        replace(request, alone=True),
        policy=Never() if local else Always(REST),
        method=Replace(),
        vocabulary=pair.vocabulary,
        contexts={"fast": local.n_ctx if local else pair.fast.n_ctx},
        ledger=Ledger(),
        alignments=pair.alignments(pair.seat_alone),
        terms=replace(terms, gate=False, purse=terms.purse.open()),
    )


def draws_baseline(prompts: Prompts, seed: int, ledger: Ledger, share: float) -> bool:
    """Whether a request is among the ``share`` that is also asked of the slow model whole."""
    return share > 0 and hashed_uniform(seed, _key(prompts), ledger.requests, "baseline") < share


def _make_request(
    pair: Pairing, text: TextPrompt, prompts: Prompts, options: RequestOptions, seed: int, key: str
) -> Request:
    as_text = pair.local_slow is None
    refused = [name for name in options.masked_by if name not in ("response_format", "tools")] if as_text else []
    if refused:
        raise InvalidRequest(
            f"{pair.slow.name} gives text, no logits, so they can be neither biased nor constrained",
            hint=f"leave {' and '.join(refused)} out; response_format and tools work",
        )
    plan = _plan_of(pair, text, options)
    return Request(
        id=options.request_id or uuid.uuid4().hex,
        prompts=prompts,
        text=text if as_text else None,
        show_draft=_draft_shower(pair, text),
        key=key,
        max_tokens=options.max_tokens,
        seed=seed,
        warp=options.warp,
        stop=options.stop,
        stop_ids=options.stop_ids(pair.vocabulary.n_vocab),
        constraint=options.make_constraint(
            pair.grammars, calls=None if plan is None else plan.grammar, any_layout=as_text
        ),
        form=options.form,
        parse=options.parse,
        calls=plan,
    )


def _plan_of(pair: Pairing, text: TextPrompt, options: RequestOptions) -> ToolPlan | None:
    """What an answer may call. Raises :class:`InvalidRequest` for tools without messages."""
    if not options.tools:
        return None
    if text.messages is None:
        raise InvalidRequest("tools without messages", hint="raw prompts have no template: use chat()")
    tokenizer = pair.fast.tokenizer
    return ToolPlan.make(
        options.tools,
        options.tool_choice,
        parallel=options.parallel_tool_calls,
        template=getattr(getattr(tokenizer, "template", None), "text", None),
        tokenizer=tokenizer,
        messages=text.messages,
        piece=pair.vocabulary.piece,
        answer=None if options.response_format is None else options.response_format.schema,
    )


def _draft_shower(pair: Pairing, text: TextPrompt) -> Callable[[str], Sequence[int]] | None:
    """What makes a local slow model's prompt with a draft in view."""
    slow = pair.local_slow
    if slow is None:
        return None
    tokenizer = pair.tokenizer("slow", slow)

    def show(draft: str) -> Sequence[int]:
        return _ids(text.showing(draft), tokenizer)

    return show


def _require_known(pair: Pairing, options: RequestOptions, method: Method) -> None:
    """Refuse what needs a slow model's whole row, where a server tells the best tokens of it."""
    known = None if pair.local_slow is None else pair.local_slow.capabilities.top_k
    if known is None:
        return
    if options.masked_by:
        raise InvalidRequest(
            f"{pair.slow.name} tells the {known} best tokens of a row, so it can be neither biased nor constrained",
            hint=f"leave {' and '.join(options.masked_by)} out",
        )
    warp = options.warp
    if warp.greedy:
        return
    if method.rule is not None and method.rule.needs_fast_row:
        raise InvalidRequest(
            f"{pair.slow.name} tells the {known} best tokens of a row, and {method.name} compares whole rows where "
            "tokens are drawn",
            hint="temperature=0, or the method replace or verify:exact",
        )
    if not 1 <= warp.top_k <= known:
        raise InvalidRequest(
            f"{pair.slow.name} tells the {known} best tokens of a row, so no token can be drawn from more of them",
            hint=f"temperature=0, or top_k={known} at most",
        )


def _key(prompts: Prompts) -> str:
    """What random numbers are drawn for: the fast model's prompt, also for the slow one alone."""
    return hashlib.blake2b(repr(prompts["fast"]).encode(), digest_size=8).hexdigest()


def _ids(text: TextPrompt, tokenizer: Tokenizer) -> list[int]:
    if text.prompt is not None:
        return tokenizer.encode(text.prompt, add_bos=True)
    assert text.messages is not None
    messages: Sequence[Turn] = text.messages
    if getattr(getattr(tokenizer, "template", None), "reads_tools", False):
        return tokenizer.encode_chat(messages, {**text.chat_template_kwargs, "tools": text.tools or None})
    if text.tools or any(message["role"] == "tool" or message.get("tool_calls") for message in messages):
        messages = in_words(messages, text.tools)
    return tokenizer.encode_chat(messages, text.chat_template_kwargs)


def claim_of(engine: Engine, ledger: Ledger) -> Claim | None:
    """What is certified about a finished request's answer (see :attr:`Generation.claim`)."""
    from .policies.learned import guarantee_of, longest_answer

    state, request = engine.state, engine.request
    claim = guarantee_of(engine.policy, ledger, state.policy)
    if claim is None or engine.generation is None:
        return None
    # A certificate speaks of answers as calibration ran them.
    longest = longest_answer(engine.policy)
    against = {
        "the answer is longer than calibration's could be": longest is not None
        and engine.generation.usage.tokens > longest,
        "the answer was sampled": not request.warp.greedy,
        "its tokens were masked": request.constraint is not None,
        "it may end at stop tokens": bool(request.stop_ids),
        "the answer was cut off": engine.generation.finish_reason in ("length", "context"),
        "the slow model failed": state.degraded is not None,
        "a cap": bool(state.usage.declined) and "a cap" not in claim.reasons,
    }
    return claim.but(*(reason for reason, found in against.items() if found))


def level(alone: Engine, routed: Engine) -> None:
    """Let a baseline find what the routed answer found in the slow model's KV cache, not what that left there."""
    slow = routed.state.readers["slow"]
    if slow.sequence >= 0:
        alone.request = replace(alone.request, max_cached=slow.found)
