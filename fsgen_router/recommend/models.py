"""The models of a comparison: loaded once, sat in the seats of Routers, and made to forget what they read."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Self

from ..contracts.models import TokenModel, Work
from ..contracts.text_models import probe_first, reads_tokens
from ..errors import ConfigurationError, PromptTooLong
from ..evaluation import Item
from ..evaluation.different import require_different, require_different_files
from ..pairing import REFERENCE_PAIR, SwappedModelsWarning
from ..records import Prices
from ..resolve import make_model
from ..router import Router
from ..rows.reading import Read
from ..run.workers import AnyModel
from .modes import Mode, Seat

_BATCHED = ("llama_cpp:", "transformers:")
"""Backends that hold one sequence unless they are told to hold more."""


class Models:
    """A pair, with a third model beside it or the fast one tuned, as model strings or objects; none: the reference
    pair.

    Strings are loaded with room for ``at_once`` requests, where they do not say how many. Raises
    :class:`ConfigurationError` where two of them are one file, or files that hold the same.
    """

    def __init__(
        self,
        fast: AnyModel | str | None = None,
        slow: AnyModel | str | None = None,
        middle: AnyModel | str | None = None,
        *,
        tuned: AnyModel | str | None = None,
        at_once: int = 1,
        seed: int = 0,
        prices: Prices | None = None,
    ) -> None:
        if (fast is None) != (slow is None):
            missing = "slow" if slow is None else "fast"
            raise ConfigurationError(
                f"{missing} is missing", hint="name both models, or neither for the reference pair"
            )
        self.is_reference = fast is None
        fast, slow = (fast, slow) if fast is not None and slow is not None else REFERENCE_PAIR
        self.named: dict[Seat, AnyModel | str] = {"fast": fast, "slow": slow}
        third: dict[Seat, AnyModel | str | None] = {"middle": middle, "tuned": tuned}
        self.named |= {seat: model for seat, model in third.items() if model is not None}
        require_different(self.named.items())
        self._seed, self._prices = seed, prices
        self._owned: list[AnyModel] = []
        self._routers: dict[tuple[Seat, Seat], Router] = {}
        self._twins: dict[tuple[str, int], Router] = {}
        self.loaded: dict[Seat, AnyModel] = {}
        try:
            for seat, model in self.named.items():
                self.loaded[seat] = make_model(with_sequences(model, at_once))
                probe_first(self.loaded[seat])
                if isinstance(model, str):
                    self._owned.append(self.loaded[seat])
            # Objects are what their maker wants them to be.
            strings = [seat for seat, model in self.named.items() if isinstance(model, str)]
            require_different_files((seat, self.loaded[seat]) for seat in strings)
            self.router(("fast", "slow"))  # which checks that they go together
        except BaseException:
            self.close()
            raise

    @property
    def local(self) -> dict[Seat, TokenModel]:
        """Those that give rows."""
        return {seat: model for seat, model in self.loaded.items() if reads_tokens(model)}

    @property
    def at_once(self) -> int:
        """Requests that all of them can hold at a time."""
        return min(model.n_seq for model in self.local.values())

    def router(self, seats: tuple[Seat, Seat]) -> Router:
        """A Router with two of the models in its seats."""
        if seats not in self._routers:
            with warnings.catch_warnings():
                if seats != ("fast", "slow"):  # seated so on purpose
                    warnings.simplefilter("ignore", SwappedModelsWarning)
                fast, slow = (self.loaded[seat] for seat in seats)
                prices = self._prices if seats[1] == "slow" else None
                tuned = self.loaded.get("tuned") if seats == ("fast", "slow") else None
                router = Router(
                    fast,
                    slow,
                    tuned=tuned,
                    policy="never",
                    method="replace",
                    seed=self._seed,
                    prices=prices,
                    at_any_price=True,  # each mode is measured, also one that its price forbids
                )
            self._routers[seats] = router
        return self._routers[seats]

    def routed(self, mode: Mode, at_once: int) -> Router:
        """A mode's Router, whose ledger is of the answers that it was measured with, ``at_once`` at a time."""
        key = (mode.file_name, at_once)
        if key not in self._twins:
            self._twins[key] = self.router(mode.seats).with_policy(mode.policy, method=mode.method)
        return self._twins[key]

    def forget(self) -> None:
        """Empty all KV caches, so that no mode finds what another one has read."""
        for seat, model in self.local.items():
            router = self.router(("fast", "middle") if seat == "middle" else ("fast", "slow"))
            # Where its forwards run: another thread brings cores of its own along, which slows all later ones down.
            router.run_forwards("slow" if seat == "middle" else seat, partial(_empty, model))

    def close(self) -> None:
        """Free what was loaded here."""
        for router in (*self._twins.values(), *self._routers.values()):
            router.close()
        owned, self._owned = self._owned, []
        for model in owned:
            model.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _empty(model: TokenModel) -> None:
    token = max(model.tokenizer.eog_ids, default=0)
    opened = [model.open([]).sequence for _ in range(model.n_seq)]
    try:
        model.forward([Work(sequence, 0, [token], [(0, Read())]) for sequence in opened])
    finally:
        for sequence in opened:
            model.close(sequence)


def with_sequences(model: AnyModel | str, count: int) -> AnyModel | str:
    """A model string that holds ``count`` sequences, where it does not say how many."""
    if not isinstance(model, str) or not model.startswith(_BATCHED) or "n_seq=" in model or count == 1:
        return model
    return f"{model}{'&' if '?' in model else '?'}n_seq={count}"


def require_both(fast: object, slow: object) -> None:
    """Refuse one model without the other."""
    if (fast is None) != (slow is None):
        missing = "slow" if slow is None else "fast"
        raise ConfigurationError(f"{missing} is missing", hint="name both models, or neither for the reference pair")


def check_prompts(models: Models, items: Sequence[Item], *, max_tokens: int) -> list[str]:
    """What is to be said about the prompts' lengths. Raises :class:`PromptTooLong`, naming the prompt, where one
    leaves no room for an answer of ``max_tokens``: cut-off answers would be judged as wrong ones."""
    notes = []
    for model in models.local.values():
        sizes = [_size(item, model) for item in items]
        worst = max(range(len(items)), key=sizes.__getitem__)
        if sizes[worst] + max_tokens > model.n_ctx:
            fits = model.n_ctx - sizes[worst]
            less = f", or ask for at most {fits} tokens (max_tokens)" if fits > 0 else ""
            raise PromptTooLong(
                f"{items[worst].place or items[worst].id} has {sizes[worst]} tokens, and {max_tokens} more do not fit "
                f"the context of {model.name}, which holds {model.n_ctx}",
                hint=f"load the model with a larger n_ctx, or leave the prompt out{less}",
            )
        if long := sum(2 * size > model.n_ctx for size in sizes):
            notes.append(
                f"{long} of {len(items)} prompts are longer than half of the context of {model.name} ({model.n_ctx} "
                "tokens): reading them is most of what is measured"
            )
    return notes


def _size(item: Item, model: TokenModel) -> int:
    if item.messages is None:
        return len(model.tokenizer.encode(item.prompt or "", add_bos=True))
    return len(model.tokenizer.encode_chat(item.messages, {}))
