"""Two models that go together: what they share, which defaults are theirs, and what they cannot do."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from .constraints import GrammarVocabulary
from .contracts.methods import Method
from .contracts.models import TokenModel
from .contracts.policy import REST, Policy
from .contracts.text_models import reads_tokens
from .contracts.tokenizer import Tokenizer
from .costs import (
    QUICK,
    Choice,
    CostStore,
    Effort,
    ForwardCost,
    Mode,
    PairCost,
    choose_mode,
    choose_remote,
    disagreement,
)
from .costs.choosing import ANSWER_TOKENS, LEAST_CALL, LEAST_GAIN, PROMPT_TOKENS, RATE
from .costs.measuring import Progress, measure_calls, measure_forwards
from .errors import BackendError, ConfigurationError
from .methods import Proxy, Replace, Verify, make_method
from .money import small_calls
from .records import Prices, Role
from .rows.reading import Alignment
from .run.drivers import Models
from .run.workers import AnyModel
from .support.logs import log, warn
from .text.conversation import encode_after
from .text.vocabulary import SharedVocabulary, hidden_ids, share_vocabulary, token_classes

if TYPE_CHECKING:
    from .policies import Pair

RunForwards: TypeAlias = Callable[[Role, Callable[[], Any]], Any]
"""Runs a function that uses a local model, where that one's forwards run, and gives what it gives."""
REFERENCE_PAIR = ("reference:fast", "reference:slow")
DEFAULT_POLICY = "budget:0.2"
DEFAULT_REMOTE_POLICY = "entropy>1.5,window=8,span=rest"
"""One hand-over of the rest: asking an endpoint token by token costs more than asking it for everything."""
SMALL_EXTENT = 8
"""Tokens: what a slow model behind an endpoint should at least be asked for."""


class SmallExtentWarning(UserWarning):
    """A policy asks an endpoint for a few tokens at a time, which costs more than asking it for everything."""


class VocabularyWarning(UserWarning):
    """Two models share their ids, but not all of them: some are never written, or taken for control tokens."""


class RewindWarning(UserWarning):
    """A method takes drafts back, and a model of the pair has to read prompt and answer again when it does."""


class SlowAloneWarning(UserWarning):
    """No way of routing is expected to gain on this machine: where none is named, the slow model writes alone."""


class UnsteadyMachineWarning(UserWarning):
    """The machine changed its speed while it was measured: what was measured before is kept."""


class SwappedModelsWarning(UserWarning):
    """The slow model has clearly fewer parameters than the fast one: the two are probably named the wrong way round."""


def is_reference_pair(fast: object, slow: object) -> bool:
    """Whether both are the embedded pair's, with options or without."""
    return all(
        isinstance(model, str) and model.partition("?")[0] == name
        for model, name in zip((fast, slow), REFERENCE_PAIR, strict=True)
    )


class Pairing:
    """A fast model and a slow one, and perhaps a third, ``tuned``, checked to go together.

    Raises :class:`ConfigurationError` where they do not (its subclass :class:`VocabularyMismatch` where ids mean
    different bytes), and warns of what is doubtful.
    """

    def __init__(self, fast: AnyModel, slow: AnyModel, tuned: AnyModel | None = None) -> None:
        if not reads_tokens(fast):
            raise ConfigurationError(f"{fast.name} cannot be the fast model", hint="it gives text, no logits")
        if fast.capabilities.remote:
            raise ConfigurationError(
                f"{fast.name} cannot be the fast model: it would be asked over a network for each token",
                hint="the fast model is a local one",
            )
        if fast is slow:
            raise ConfigurationError("fast and slow are one model object", hint="load it twice to compare it to itself")
        self.fast: TokenModel = fast
        self.slow = slow
        self.local_slow: TokenModel | None = slow if reads_tokens(slow) else None
        """The slow model where it gives rows, and not only text."""
        self.models: dict[Role, AnyModel] = {"fast": fast, "slow": slow}
        self.tuned = None if tuned is None else self._require_tuned(tuned)
        """A third local model, whose rows a method may read."""
        for other in (self.local_slow, self.tuned):
            take = getattr(other, "take_vocabulary", None)
            if take is not None:  # it has no tokenizer of its own
                take(fast.tokenizer, fast.name)
        self._said: set[tuple[str, ...]] = set()
        self.shared: SharedVocabulary | None = None
        """How the vocabularies of two local models relate."""
        if self.local_slow is not None:
            self.shared = _share(fast, self.local_slow, self.tuned)
        self.costs: PairCost | None = None
        """What their forwards cost here, once that was measured or found."""
        self.run_forwards: RunForwards = lambda _role, function: function()

    def _require_tuned(self, tuned: AnyModel) -> TokenModel:
        """Take a third model in, or refuse it."""
        if not reads_tokens(tuned):
            raise ConfigurationError(f"{tuned.name} cannot be the tuned model", hint="it gives text, no logits")
        if self.local_slow is None:
            raise ConfigurationError(
                f"{self.slow.name} gives text, no logits, so no method reads a tuned model beside it",
                hint="leave tuned out",
            )
        if any(tuned is other for other in self.models.values()):
            raise ConfigurationError(
                "the tuned model is the fast or the slow one's object", hint="load it twice to compare it to itself"
            )
        self.models["tuned"] = tuned
        return tuned

    @property
    def local(self) -> list[TokenModel]:
        """The models that give rows."""
        return [model for model in self.models.values() if reads_tokens(model)]

    @property
    def n_seq(self) -> int:
        """Requests that all local models can hold at once."""
        return min(model.n_seq for model in self.local)

    @property
    def slow_is_remote(self) -> bool:
        """Whether the slow model is asked over a network: for text, or for rows."""
        return self.local_slow is None or self.local_slow.capabilities.remote

    # --- what goes with it ---

    def choose(
        self,
        policy: Policy | None,
        method: Method | None,
        prices: Prices | None = None,
        *,
        at_any_price: bool = False,
    ) -> tuple[Policy, Method]:
        """A policy and a method, or this pair's defaults; refuses what the pair cannot do.

        Where neither is given they follow from what the models' forwards cost here, and in front of an endpoint from
        its ``prices``, where those are given. Few tokens at a time, which lose by its prices, are refused, unless
        ``at_any_price``.
        """
        from .policies import Capped, check_pair, make_policy

        if policy is None and method is None and (chosen := self._default(prices)) is not None:
            policy, method = chosen
        if method is None:
            # A learned policy knows the method that it was calibrated with.
            learned_with: str | None = getattr(policy, "method", None)
            method = make_method(learned_with or self._default_method())
        self._require_rows(method)
        if self.local_slow is None:
            policy = policy or Capped(make_policy(DEFAULT_REMOTE_POLICY), max_calls=1)
            if prices is None:
                if self._first_time("extent", policy.name):
                    _warn_of_small_extents(policy, self.slow.name)
            elif not at_any_price:
                _require_worth(policy, method, self.slow.name, prices)
        else:
            policy = policy or make_policy(self._default_policy(method))
            if self.local_slow.capabilities.remote:
                # A request's own policy is chosen in its thread, or on its event loop: nothing is timed there.
                self._warn_of_small_calls(policy, method, timed=self._first_time("choice"))
            if method.rule is not None and self.rereads and self._first_time("rewind", method.name):
                _warn_of_rereading(method, self.rereads)
        quiet = not self._first_time("pair", policy.name, method.name)
        policy = check_pair(policy, self.fast, self.slow, method=method, quiet=quiet, pair=lambda: self.identity)
        return policy, method

    @cached_property
    def identity(self) -> Pair:
        """What policies know this pair by. Made once: it reads the whole vocabulary."""
        from .policies import fingerprint

        return fingerprint(self.fast, self.slow, self.tuned)

    def _default(self, prices: Prices | None) -> tuple[Policy, Method] | None:
        """The mode that costs least at the quality of ``budget:0.2``; None where nobody knows what modes cost."""
        from .policies import Capped, make_policy

        if self.tuned is not None:
            return None  # proxy is what it is for, and no table says what that costs
        if self.local_slow is None:
            if prices is None:
                return None
            choice = choose_remote(prices)
            self._say(choice)
            return Capped(make_policy(self._form(choice.chosen.mode)), max_calls=1), Replace()
        try:
            costs = self.measure(QUICK, again=False)
        except Exception as error:
            # All sequences in use, or whatever a model fails with: the Router is made all the same.
            log.warning("costs_unmeasured", fast=self.fast.name, slow=self.slow.name, why=str(error))
            return None
        parts = disagreement(self.fast.n_params, self.local_slow.n_params)
        choice = choose_mode(costs, parts=parts, judges=not self.rereads)
        self._say(choice)
        return make_policy(self._form(choice.chosen.mode)), make_method(choice.chosen.mode.method)

    def _form(self, mode: Mode) -> str:
        """A mode's policy; an endpoint's one hand-over waits for a run of uncertain tokens."""
        return DEFAULT_REMOTE_POLICY if self.local_slow is None and mode.who == "rate" else mode.policy

    def _say(self, choice: Choice) -> None:
        """What was chosen; where nothing gains, with the mode that would cost least."""
        best = choice.best
        policy, method = self._form(best.mode), best.mode.method
        fields = {"fast": self.fast.name, "slow": self.slow.name, "policy": policy, "method": method}
        over_slow = round(best.over_slow, 3)
        if choice.routes:
            log.info("default_mode", **fields, over_slow=over_slow, unit=choice.unit)
            return
        warn(
            SlowAloneWarning,
            f"no way of routing {self.fast.name} and {self.slow.name} is expected to gain {LEAST_GAIN:.0%} on the slow "
            f"model alone, which writes whole answers here. The best is policy={policy!r}, method={method!r}, which "
            f"takes {best.over_slow:.2f} times the slow model's {choice.unit}: name a policy to route all the same",
            event="slow_alone",
            **fields,
            over_slow=over_slow,
            unit=choice.unit,
        )

    def measure(
        self,
        effort: Effort,
        *,
        again: bool = True,
        store: CostStore | None = None,
        progress: Progress = lambda done, of: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> PairCost:
        """What both models' forwards cost on this machine: measured, or without ``again`` what is known of it.

        Where the machine changes its speed meanwhile, what was known stays, and is not written over. Raises
        :class:`BackendError` where a model cannot be measured now.
        """
        local: dict[Role, TokenModel] = {"fast": self.fast}
        if self.local_slow is not None:
            local["slow"] = self.local_slow
        store = store or CostStore()
        known: dict[Role, ForwardCost] = {}
        for role, model in local.items():
            found = getattr(self.costs, role, None) or store.load(role, model)
            if found is not None:
                known[role] = found
        wanted = {role: model for role, model in local.items() if again or role not in known}
        measured: dict[Role, ForwardCost] = {}
        if wanted:
            here: Role = "fast" if self.slow_is_remote else "slow"
            measured = self.run_forwards(here, lambda: measure_forwards(wanted, effort, progress=progress, clock=clock))
        if unsteady := [cost for cost in measured.values() if not cost.steady]:
            self._say_unsteady(unsteady, kept=[local[role].name for role in measured if role in known], loud=again)
            measured = {role: cost for role, cost in measured.items() if role not in known}
        for role, cost in measured.items():
            if cost.steady:
                store.save(role, local[role], cost)
        costs = {**known, **measured}
        money = {} if self.costs is None else {name: getattr(self.costs, name) for name in ("watts", "usd_per_hour")}
        self.costs = PairCost(fast=costs["fast"], slow=costs.get("slow"), **money)
        return self.costs

    def _say_unsteady(self, costs: Sequence[ForwardCost], *, kept: Sequence[str], loud: bool) -> None:
        spread, names = max(cost.spread for cost in costs), [cost.name for cost in costs]
        if not loud:
            log.warning("costs_unsteady", models=names, spread=round(spread, 2), kept=list(kept))
            return
        what = f"the older figures of {' and '.join(kept)} are kept" if kept else "nothing is kept of it for later"
        warn(
            UnsteadyMachineWarning,
            f"repetitions of one forward of {' and '.join(names)} differed by {spread:.0%} of its time, so this "
            f"machine changed its speed meanwhile: {what}. Measure again when nothing else runs",
            event="costs_unsteady",
            models=names,
            spread=round(spread, 2),
            kept=list(kept),
        )

    def _default_method(self) -> Method:
        if self.tuned is not None:  # which no other method reads
            return Proxy()
        return Verify() if self.local_slow is not None and not self.rereads else Replace()

    def _default_policy(self, method: Method) -> str:
        """Beside a method that was named; over a network no call is for a few tokens."""
        if not self.slow_is_remote:
            return DEFAULT_POLICY
        return f"every:{method.draft_len}" if method.draft_len >= LEAST_CALL else f"{DEFAULT_POLICY},span={LEAST_CALL}"

    def _warn_of_small_calls(self, policy: Policy, method: Method, *, timed: bool) -> None:
        """Over a network a call costs a round trip, however few tokens it judges or writes."""
        mode, slow = Mode.of(policy, method), self.local_slow
        if slow is None or mode.who not in ("every", "rate") or mode.extent == REST:
            return
        gap = mode.interval or (1.0 / mode.rate if mode.rate else 0.0)
        tokens = mode.extent + min(gap, mode.draft_len)
        if tokens >= LEAST_CALL or not self._first_time("calls", f"{tokens:.3g}", method.name):
            return
        arithmetic = self._arithmetic(slow, tokens) if timed else ""
        warn(
            SmallExtentWarning,
            f"{policy.name} with {method.name} has {slow.name} judge or write {tokens:.3g} "
            f"token{'s' * (tokens != 1)} in a call over the network.{arithmetic} Let it be {LEAST_CALL} or more: "
            f"every:{LEAST_CALL} with verify, ,span={LEAST_CALL}, or --extent {LEAST_CALL} of calibrate",
            event="small_extent",
            policy=policy.name,
            endpoint=slow.name,
            extent=mode.extent,
        )

    def _arithmetic(self, slow: TokenModel, tokens: float) -> str:
        try:
            call, further = measure_calls(slow)
        except BackendError as error:
            log.warning("costs_unmeasured", fast=self.fast.name, slow=slow.name, why=str(error))
            return ""
        over = (call + (tokens - 1) * further) / (tokens * further)
        return (
            f" A call that writes one token takes {1e3 * call:.3g} ms here and each further token of a call "
            f"{1e3 * further:.3g} ms, so tokens cost {over:.2g} times what they cost in a long call."
        )

    def _require_rows(self, method: Method) -> None:
        """Refuse a method whose rows this pair does not give."""
        if self.local_slow is None:
            if method.rule is not None:
                raise ConfigurationError(
                    f"{self.slow.name} gives text, no logits, so it cannot judge drafts: method {method.name}",
                    hint="use the method replace",
                )
            if method.roles != ("slow",) or method.whole_rows:
                raise ConfigurationError(
                    f"{self.slow.name} gives text, no logits, and the method {method.name} reads rows of "
                    f"{' and '.join(method.roles)}",
                    hint="use the method replace",
                )
        elif "tuned" in method.roles and self.tuned is None:
            raise ConfigurationError(
                f"the method {method.name} reads a tuned model, and there is none",
                hint="name one, Router(fast, slow, tuned=...) or --tuned: the fast model after its tuning",
            )
        for role in ("slow", "tuned"):
            self._require_known(role, method)

    def _require_known(self, role: Role, method: Method) -> None:
        """Refuse a method that reads more of a row than a model's server tells."""
        model = self.models.get(role)
        known = None if model is None or not reads_tokens(model) else model.capabilities.top_k
        if model is None or known is None or role not in method.roles:
            return
        rule = method.rule
        needs = "whole rows" if role in method.whole_rows else ""
        if rule is not None and rule.gated:
            needs = "the entropy of rows"
        elif rule is not None and rule.name == "optimal":
            needs = "both models' whole rows"
        if needs:
            raise ConfigurationError(
                f"{model.name} tells the {known} best tokens of a row, and the method {method.name} needs {needs}",
                hint="use replace, or verify with the rule exact, near_best=a or token=a",
            )

    def _first_time(self, *what: str) -> bool:
        """Whether something is to be said: once for a pair, and not at every request that names the same again."""
        first = what not in self._said
        self._said.add(what)
        return first

    @property
    def rereads(self) -> list[str]:
        """Models that a rewind costs the whole prefix: it is read again."""
        models = (self.fast, self.local_slow)
        return [model.name for model in models if model is not None and not model.capabilities.rewind]

    def require_auditor(self, share: float) -> None:
        """Refuse an audit where the slow model has no choices to tell."""
        if share and self.local_slow is None:
            raise ConfigurationError(
                f"{self.slow.name} gives text, no logits, so it cannot audit answers", hint="leave audit out"
            )

    # --- how its parts are used ---

    @cached_property
    def vocabulary(self) -> PairVocabulary:
        return PairVocabulary(self.fast.tokenizer, self.shared)

    @cached_property
    def grammars(self) -> GrammarVocabulary:
        """The vocabulary that answers are held to a grammar in."""
        return GrammarVocabulary(self.shared or self.fast.tokenizer)

    def tokenizer(self, role: Role, model: TokenModel) -> Tokenizer:
        """A model's tokenizer as this pair uses it."""
        if self.shared is None:
            return model.tokenizer
        own = {"fast": self.shared.fast, "slow": self.shared.slow, "tuned": self.shared.tuned}[role]
        return own or model.tokenizer

    def alignments(self, fast: Role = "fast") -> dict[Role, Alignment | None]:
        """How rows are made one vocabulary's, with that model in the fast seat."""
        if self.shared is None:
            return {}
        rows: dict[Role, Alignment | None] = {"fast": self.shared.fast_row, "slow": self.shared.slow_row}
        if self.tuned is not None:
            rows["tuned"] = self.shared.tuned_row
        return rows | {"fast": rows[fast]}

    def contexts(self, roles: Sequence[Role]) -> dict[Role, int]:
        return {role: model.n_ctx for role in roles if reads_tokens(model := self.models[role])}

    @property
    def seat_alone(self) -> Role:
        """The model in a baseline's fast seat: the slow one, unless it gives text and cannot sit there."""
        return "slow" if self.local_slow else "fast"

    def seated(self, fast: Role) -> Models:
        """All models, with one of them in the fast seat."""
        return self.models | {"fast": self.models[fast]}

    def roles(self, policy: Policy, method: Method, *, audit: bool = False) -> list[Role]:
        """Who may have to read a request under a policy and a method; ``audit``: or afterwards."""
        needed: dict[Role, bool] = {
            "fast": True,
            "slow": policy.asks or audit,
            "tuned": policy.asks and "tuned" in method.roles,
        }
        return [role for role, is_needed in needed.items() if is_needed]


class PairVocabulary:
    """Pieces, classes and ends of generation, as far as both models share them."""

    def __init__(self, fast: Tokenizer, shared: SharedVocabulary | None) -> None:
        alike: Tokenizer | SharedVocabulary = shared or fast
        self._tokenizer, self._hidden = fast, hidden_ids(fast, alike.special_ids)
        self.n_vocab, self.eog_ids = alike.n_vocab, alike.eog_ids
        self._classes = token_classes(fast, alike.special_ids).tolist()

    def piece(self, token: int) -> bytes:
        """A token's bytes; none for a control token, which is no part of a text (unless it marks reasoning)."""
        return b"" if token in self._hidden else self._tokenizer.piece(token)

    def class_of(self, token: int) -> int:
        return int(self._classes[token])

    def encode_after(self, before: str, text: str) -> list[int]:
        return encode_after(self._tokenizer, before, text)


def _share(fast: TokenModel, slow: TokenModel, tuned: TokenModel | None) -> SharedVocabulary:
    """What all vocabularies share; says what is not shared, and warns where that is no mere control token."""
    tuned_name = "" if tuned is None else tuned.name
    shared = share_vocabulary(
        fast.tokenizer,
        slow.tokenizer,
        None if tuned is None else tuned.tokenizer,
        fast_name=fast.name,
        slow_name=slow.name,
        tuned_name=tuned_name,
    )
    if shared.same:
        return shared
    lone = {*shared.only_fast, *shared.only_slow, *shared.only_tuned} - shared.special_ids
    parts = ("only_fast", "only_slow", *(() if tuned is None else ("only_tuned",)), "retyped")
    counts = {name: len(getattr(shared, name)) for name in parts}
    if not lone and not shared.retyped:
        log.info("vocabulary", fast=fast.name, slow=slow.name, **counts)
        return shared
    said = " ".join(f"{sentence}." for sentence in shared.describe(fast.name, slow.name, tuned_name))
    warn(VocabularyWarning, said, event="vocabulary", fast=fast.name, slow=slow.name, **counts)
    return shared


def _warn_of_rereading(method: Method, names: Sequence[str]) -> None:
    said = (
        f"{method.name} takes rejected drafts back, and {' and '.join(names)} cannot: each time, prompt and answer are "
        "read again (counted as reread in the usage). The method replace takes nothing back"
    )
    warn(RewindWarning, said, event="reread", method=method.name, models=list(names))


def look_swapped(fast: TokenModel, slow: AnyModel) -> bool:
    """Whether the slow model is the smaller one. A vocabulary that is padded otherwise makes a few percent."""
    return slow.n_params is not None and slow.n_params < 0.9 * (fast.n_params or 0)


def warn_of_swapped(fast: TokenModel, slow: AnyModel) -> None:
    if look_swapped(fast, slow):
        warn(
            SwappedModelsWarning,
            f"the slow model {slow.name} has {slow.n_params:,} parameters, the fast model {fast.name} "
            f"{fast.n_params:,}: are they swapped? fast= is the small one",
            event="swapped_models",
            fast=fast.name,
            slow=slow.name,
        )


def _small_extent(policy: Policy) -> tuple[int, int | None] | None:
    """What a policy asks an endpoint for, where that is few tokens at a time, and how often at most."""
    from .policies import BestOf, Capped

    most: int | None = None
    while isinstance(policy, Capped | BestOf):
        if isinstance(policy, Capped) and policy.max_calls is not None:
            most = policy.max_calls if most is None else min(most, policy.max_calls)
        policy = policy.inner if isinstance(policy, Capped) else policy.fallback
    extent: int | None = getattr(policy, "extent", None)
    return None if extent is None or extent == REST or extent >= SMALL_EXTENT else (extent, most)


def _require_worth(policy: Policy, method: Method, endpoint: str, prices: Prices) -> None:
    """Refuse few tokens at a time where that is expected to cost more than the slow model alone, with the figures."""
    small = _small_extent(policy)
    if small is None:
        return
    extent, most = small
    mode = Mode.of(policy, method)
    rate = 1.0 / mode.interval if mode.who == "every" else mode.rate or RATE
    found = small_calls(prices, rate=rate, extent=extent, prompt=PROMPT_TOKENS, answer=ANSWER_TOKENS, max_calls=most)
    if found.over_slow_only <= 1.0:
        return
    raise ConfigurationError(
        f"{policy.name} asks {endpoint} for {extent} token{'s' * (extent != 1)} at a time, which is expected to cost "
        f"{found.over_slow_only:.1f} times the slow model alone: an answer of {ANSWER_TOKENS} tokens to a prompt of "
        f"{PROMPT_TOKENS} takes {found.calls:.0f} calls (at {rate:.0%} of the decisions), which read {found.read:,.0f} "
        f"tokens, the whole text so far each, for ${found.read_usd:.6f} and write {found.written:.0f} at "
        f"${prices.output:g} a million: ${found.usd:.6f}. The slow model alone reads {PROMPT_TOKENS} at "
        f"${prices.input:g} and writes {ANSWER_TOKENS}: ${found.alone_usd:.6f}",
        hint=f"add ,span={4 * SMALL_EXTENT} or ,span=rest to the policy; Router(at_any_price=True) asks all the same",
    )


def _warn_of_small_extents(policy: Policy, endpoint: str) -> None:
    """Per token, an endpoint is paid for the whole text so far at every call, and few go on with it exactly."""
    small = _small_extent(policy)
    if small is None:
        return
    extent = small[0]
    warn(
        SmallExtentWarning,
        f"{policy.name} asks {endpoint} for {extent} token{'s' * (extent != 1)} at a time, and every call reads the "
        f"whole text so far: that costs more than the slow model alone. Add ,span={4 * SMALL_EXTENT} or ,span=rest",
        event="small_extent",
        policy=policy.name,
        endpoint=endpoint,
        extent=extent,
    )
