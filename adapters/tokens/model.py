"""A model behind a server that takes token ids: sequences, calls side by side, and the rows of them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TypeVar, Unpack, cast

from fsgen_router.contracts.models import Capabilities, Opened, Rows, Work
from fsgen_router.contracts.tokenizer import Tokenizer
from fsgen_router.errors import BackendError, ConfigurationError
from fsgen_router.rows.reading import Read, Row
from fsgen_router.support.logs import log
from fsgen_router.support.options import checked

from ..openai.errors import EndpointError
from ..sequences import SequencePool
from .dialects import Best, NoRows, Question, Reply
from .options import TokensKeywords, TokensOptions
from .reading import TooFew, Unknown, best_needed, reduce_best
from .server import Server
from .vocabulary import ServedTokenizer, compare

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Ahead:
    """Rows that a call wrote beyond what was asked of it: of the tokens from ``first`` on of ``ids``."""

    ids: Sequence[int]
    first: int
    rows: Sequence[Best]

    def find(self, ids: Sequence[int], position: int) -> Best | None:
        """The row behind ``ids[position]``, if it is of these."""
        known = self.first <= position < self.first + len(self.rows)
        return self.rows[position - self.first] if known and ids[: position + 1] == self.ids[: position + 1] else None


class _Asked:
    """What one work had asked: calls, tokens that the server read for them and did not find in its cache, and wrote.

    Of a call that it refused nobody knows how much it read.
    """

    def __init__(self) -> None:
        self.calls = self.read = self.written = 0

    def count(self, question: Question, reply: Reply) -> None:
        self.calls += 1
        self.read += len(question.ids) - (reply.cached or 0)
        self.written += len(reply.written)


class TokensModel:
    """A :class:`~fsgen_router.contracts.models.TokenModel` behind a server: ``where`` is ``model@http://host:port``.

    ``options`` are :class:`TokensOptions`. The server is asked what it is when this is made. Its rows are known as far
    as their best tokens (``capabilities.top_k``). The vocabulary is the one of the ``tokenizer`` option, or that of the
    fast model beside it, which a Router has compared (:meth:`take_vocabulary`). A sequence is what this side knows of
    a request's tokens: each call sends them all, and what the server's own prefix cache held of them is counted as it
    says, all else as read again. Raises :class:`ConfigurationError` where the server gives no rows or lacks the model,
    and :class:`EndpointError` where it cannot be asked.
    """

    def __init__(self, where: str, /, **options: Unpack[TokensKeywords]) -> None:
        self.options = checked(TokensOptions, options, error=ConfigurationError)
        self._server = Server(where, self.options)
        self.name, self.n_params, self.n_seq = self._server.name, self.options.n_params, self.options.n_seq
        self._tokenizer: Tokenizer | None = None
        self._pool: SequencePool | None = None
        self._ahead: dict[int, _Ahead] = {}
        self._under_way: weakref.WeakSet[Future[Rows]] = weakref.WeakSet()
        try:
            card = self._server.card()
            self._root = str(card.get("root") or "")
            self.spoken = self._server.speak(card)
            self.n_ctx = self._context(card)
            if self.options.tokenizer is not None:
                from ..transformers.vocabulary import tokenizer_in

                self._know(tokenizer_in(self.options.tokenizer))
        except BaseException:
            self._server.close()
            raise
        self.capabilities = Capabilities(top_k=self.spoken.top_k, remote=True)

    def __repr__(self) -> str:
        return f"TokensModel({self.name!r})"

    def _context(self, card: Mapping[str, object]) -> int:
        """One token less than the server holds, for every call writes one."""
        told = card.get("max_model_len")
        most = told - 1 if isinstance(told, int) and told > 1 else None
        wanted = self.options.n_ctx or most
        if wanted is None:
            raise ConfigurationError(
                f"{self.name} does not say how many tokens it holds", hint="name them: ?n_ctx=8192"
            )
        if most is not None and wanted > most:
            raise ConfigurationError(f"n_ctx={wanted} is more than {self.name} holds", hint=f"n_ctx={most} at most")
        return wanted

    # --- the vocabulary ---

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises :class:`ConfigurationError` before there is one."""
        if self._tokenizer is None:
            raise ConfigurationError(
                f"{self.name} has no tokenizer of its own", hint="a Router takes the fast model's; or ?tokenizer=folder"
            )
        return self._tokenizer

    def take_vocabulary(self, tokenizer: Tokenizer, name: str) -> None:
        """Use another model's tokenizer, named ``name``, whose ids are compared with the server's first.

        The first one stays; that of the ``tokenizer`` option goes before all. Raises
        :class:`~fsgen_router.errors.VocabularyMismatch` where the ids mean something else.
        """
        if self._tokenizer is not None:
            return  # which a Router compares with its fast model's, as any two
        checks = self.options.vocabulary == "checked"
        lacking = compare(self._server, self._root, tokenizer, name) if checks else frozenset[int]()
        self._know(ServedTokenizer(tokenizer, lacking, self._server, name))

    def _know(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pool = SequencePool(self.n_seq, self.n_ctx, tokenizer.n_vocab)

    @cached_property
    def identity(self) -> dict[str, str]:
        """What its times depend on beside this machine: where it is asked, for what, and how."""
        return {
            "backend": f"tokens {self.spoken.dialect.name}",
            "model": f"{self._server.model} ({self._root}) at {self._server.url}",
            "options": self.options.model_dump_json(),
        }

    # --- sequences ---

    @property
    def _sequences(self) -> SequencePool:
        _ = self.tokenizer  # there are none without one
        assert self._pool is not None
        return self._pool

    def open(self, ids: Sequence[int]) -> Opened:
        self._server.home.require(self.name)
        return self._sequences.open(ids)

    def close(self, sequence: int) -> None:
        self._sequences.close(sequence)

    def shutdown(self) -> None:
        """Close connections; calls under way end with a :class:`BackendError`."""
        if self._server.home.left:
            return
        self._server.close()
        for outcome in list(self._under_way):
            with suppress(InvalidStateError):
                outcome.set_exception(BackendError(f"{self.name} was shut down"))

    # --- forward ---

    def forward(self, works: Sequence[Work]) -> list[list[Row]]:
        """Each work is a call of its own, and all of them are under way at once, as are forwards of several threads."""
        self._server.home.require(self.name)
        pool = self._sequences
        try:
            for work in works:
                pool.begin(work)
            if len({work.sequence for work in works}) < len(works):
                raise BackendError("a sequence has two works in one forward")
            for work in works:
                pool.extend(work.sequence, work.ids)
            return cast(list[list[Row]], self._side_by_side([partial(self._run, work) for work in works]))
        except BaseException:
            for work in works:
                pool.forget(work.sequence)
            raise

    def _side_by_side(self, calls: Sequence[Callable[[], Rows]]) -> list[Rows]:
        """What they give, each on a thread of its own, which is not waited for when the model is shut down."""
        outcomes: list[Future[Rows]] = [Future() for _ in calls]
        self._under_way.update(outcomes)
        for call, outcome in zip(calls, outcomes, strict=True):
            threading.Thread(target=_fulfil, args=(call, outcome), name="fsgen-call", daemon=True).start()
        failures = [outcome.exception() for outcome in outcomes]  # all have ended then
        for failure in failures:
            if failure is not None:
                raise failure
        return [outcome.result() for outcome in outcomes]

    def _run(self, work: Work) -> Rows:
        ids = list(self._sequences.held(work.sequence))
        reads, asked, found = [(work.keep + index, read) for index, read in work.reads], _Asked(), Rows()
        rows = self._known(work.sequence, ids, reads) or self._ask(work, ids, reads, asked)
        for position, read in reads:
            found.append(self._reduce(rows, ids, position, read, asked))
        if asked.calls:
            found.reread = max(asked.read - len(work.ids), 0)
        found.calls, found.written = asked.calls, asked.written
        return found

    def _reduce(self, rows: dict[int, Best], ids: Sequence[int], position: int, read: Read, asked: _Asked) -> Row:
        """What is read of a row; tokens that are not among its best are asked for one by one."""
        most = self.spoken.top_k
        while True:
            try:
                return reduce_best(rows[position], read, self.tokenizer.n_vocab)
            except TooFew:
                if len(rows[position].ids) >= most:
                    raise BackendError(
                        f"too few of the {most} best tokens that {self.name} tells are of the fast model's vocabulary"
                    ) from None
                question = Question(ids, position, most, most, fresh=self._fresh)
                rows[position] = self._reply(question, {position}, asked).rows[position]
            except Unknown as one:
                # It is told of a token that stands behind.
                question = Question([*ids[: position + 1], one.token], position, 1, 1, fresh=self._fresh)
                told = self._reply(question, {position}, asked).rows[position].logprob(one.token)
                if told is None:
                    raise BackendError(f"{self.name} does not tell the log-probability of a prompt's token") from None
                rows[position] = rows[position].with_others({one.token: told})

    def _known(self, sequence: int, ids: Sequence[int], reads: Sequence[tuple[int, Read]]) -> dict[int, Best]:
        """The rows that are read, where all of them were written ahead."""
        ahead = self._ahead.get(sequence)
        found = {} if ahead is None else {position: ahead.find(ids, position) for position, _ in reads}
        return {} if None in found.values() else cast(dict[int, Best], found)

    def _ask(self, work: Work, ids: Sequence[int], reads: Sequence[tuple[int, Read]], asked: _Asked) -> dict[int, Best]:
        """One call for a work; what it writes beyond is kept."""
        if not reads and self._fresh:
            return {}  # read with the next call: a server that keeps nothing for it would only read it twice
        last, most = len(ids) - 1, self.spoken.top_k
        before_last = [(position, read) for position, read in reads if position < last]
        needed = max((best_needed(read) for _, read in before_last), default=1)
        greedy = all(read.warp.greedy for _, read in reads)
        question = Question(
            ids,
            first=min((position for position, _ in reads), default=last),
            top_k=min(needed, most) if _of_the_next(before_last, ids) else most,
            best=most,
            more=1 + max(min(work.more, self.options.ahead, self.n_ctx - len(ids)), 0) * greedy,
            fresh=self._fresh,
        )
        reply = self._reply(question, {position for position, _ in reads}, asked)
        behind = len(ids)
        rows = [reply.rows[behind + index] for index in range(len(reply.written) - 1)]
        self._ahead[work.sequence] = _Ahead([*ids, *reply.written], behind, rows)
        return dict(reply.rows)

    @property
    def _fresh(self) -> bool:
        """Whether a prefix cache is of no use: without its extent nobody knows which rows are rows."""
        return not self.spoken.reports_cached

    def _reply(self, question: Question, wanted: set[int], asked: _Asked) -> Reply:
        """A reply that has the rows that are wanted; where the prefix cache held some, another one without it.

        So, too, where a reply fails: vLLM writes what its memory happens to hold for rows that it has not computed,
        and refuses its own reply where that is no number.
        """
        for attempt in (question, replace(question, fresh=True)):
            try:
                reply = self._server.rows(self.spoken.dialect, attempt)
            except (EndpointError, NoRows) as error:
                refused = isinstance(error, NoRows) or error.bad_request or error.status == 500
                if refused and not attempt.fresh and attempt.of_prompt:
                    asked.calls += 1
                    log.info("rows_cached", model=self.name, cached=None, first=question.first)
                    continue
                if isinstance(error, EndpointError):
                    raise
                raise BackendError(f"{self.name} sent a reply without rows", hint="was it started anew?") from None
            asked.count(attempt, reply)
            trusted = attempt.fresh or reply.cached is not None or not question.of_prompt
            if trusted and wanted <= reply.rows.keys():
                return reply
            if attempt.fresh:
                break
            log.info("rows_cached", model=self.name, cached=reply.cached, first=question.first)
        raise BackendError(f"{self.name} left out rows that were asked for")


def _of_the_next(reads: Sequence[tuple[int, Read]], ids: Sequence[int]) -> bool:
    """Whether each token that is asked about by name is the one that stands behind, which replies tell of."""
    return all(
        token == ids[position + 1]
        for position, read in reads
        for token in (*read.ids, *(() if read.check is None else (read.check.token,)))
    )


def _fulfil(call: Callable[[], T], outcome: Future[T]) -> None:
    with suppress(InvalidStateError):  # the model was shut down meanwhile
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)
