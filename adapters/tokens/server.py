"""One server: what it serves, which dialect it speaks, what its tokenizer says, and rows of it."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import httpx2

from fsgen_router.errors import BackendError, ConfigurationError
from fsgen_router.support.logs import log

from ..openai.connection import Connection
from ..openai.endpoint import parse_endpoint
from ..openai.errors import EndpointError, body_of, quoted
from ..streaming import Patience
from .dialects import DIALECTS, Dialect, NoRows, Question, Reply
from .options import TokensOptions

_EXAMPLE = "write tokens:model-name@http://host:port"
_TEXT_ALONE = "it gives text: use openai:{where}/v1, with a policy that has spans (,span=rest)"
_MAX_BYTES = 2**28
_PROBE = (1, 2, 3)
_FEWER = (20, 5, 1)
"""Best tokens of a row that servers are asked for where they refuse more."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """How a server is asked for rows. ``reports_cached``: it says how much of a prompt its prefix cache held."""

    dialect: Dialect
    top_k: int
    reports_cached: bool


class Server:
    """Asks one server, which serves one model among others. Calls run side by side."""

    def __init__(self, where: str, options: TokensOptions) -> None:
        if "@http" not in where:
            raise ConfigurationError(f"{where!r} names no server", hint=_EXAMPLE)
        endpoint = parse_endpoint(where)
        self._endpoint = replace(endpoint, url=endpoint.url.removesuffix("/v1"))
        self.name, self.model, self.url = endpoint.name, endpoint.model, self._endpoint.url
        self._options = options
        self._connection = Connection(self._endpoint, options.connection)
        self.home = self._connection.home
        self._closed = False
        self._waiting: weakref.WeakSet[Patience] = weakref.WeakSet()

    def close(self) -> None:
        """Closing twice is allowed. Who waits for a reply gets a :class:`BackendError`."""
        if self.home.left:
            return
        self._closed = True
        for patience in list(self._waiting):
            patience.close()
        self._connection.close()

    # --- requests ---

    def ask(self, path: str, body: Mapping[str, Any] | None, *, trial: bool = False) -> Any:
        """What a request is answered with, as JSON; a ``trial`` is a question that the server may stumble over, which
        says nothing of others. Raises :class:`EndpointError`."""
        self.home.require(self.name)
        patience = Patience(self._options.deadline_seconds)
        self._waiting.add(patience)
        try:
            if self._closed:
                raise BackendError(f"{self.name} was shut down")
            asked = self._connection.ask(path, body, patience, self._whole, trial=trial, tries=1 if trial else None)
            with closing(asked) as items:
                (found,) = items  # to its end, behind which the endpoint counts as up
            return found
        except BackendError:
            if self._closed:
                raise BackendError(f"{self.name} was shut down") from None
            raise

    def _whole(self, response: httpx2.Response) -> Iterator[Any]:
        text = body_of(response, _MAX_BYTES)
        try:
            yield json.loads(text)
        except (ValueError, RecursionError):
            raise EndpointError(
                f"{self.name} sent no JSON: {quoted(text, self._connection.key)}", hint=f"is the URL right? {_EXAMPLE}"
            ) from None

    def rows(self, spoken: Dialect, question: Question, *, trial: bool = False) -> Reply:
        """Raises :class:`NoRows` where the reply has none."""
        return spoken.reply(self.ask(spoken.path, spoken.body(question), trial=trial), question)

    # --- what it is ---

    def card(self) -> dict[str, Any]:
        """What the server says of the model: the entry of ``/v1/models``, empty where it has no such list.

        Raises :class:`ConfigurationError` where the model is not among those that it serves.
        """
        try:
            found = self.ask("/v1/models", None)
        except EndpointError as error:
            if error.status in (404, 405, 501):
                return {}
            raise
        served = {one.get("id"): one for one in found.get("data", ()) if isinstance(one, dict)} if found else {}
        if served and self.model not in served:
            raise ConfigurationError(
                f"{self.url} serves no {self.model!r}", hint=f"it serves {', '.join(map(str, served))}"
            )
        return dict(served.get(self.model, {}))

    def speak(self, card: Mapping[str, Any]) -> Spoken:
        """The first dialect in which the server gives rows, found out with a token each.

        Raises :class:`ConfigurationError` where it gives none.
        """
        wanted = [one for one in DIALECTS if self._options.api in ("auto", one.name)]
        for dialect in wanted:
            found = self._try(dialect)
            if found is not None:
                log.info(
                    "endpoint_rows",
                    model=self.name,
                    api=dialect.name,
                    top_k=found.top_k,
                    reports_cached=found.reports_cached,
                )
                return found
        tried = ", ".join(dialect.path for dialect in wanted)
        by = f" ({card['owned_by']})" if card.get("owned_by") else ""
        raise ConfigurationError(
            f"{self.name}{by} gives no rows for token ids: tried {tried}",
            hint=_TEXT_ALONE.format(where=f"{self.model}@{self.url}"),
        )

    def _try(self, dialect: Dialect) -> Spoken | None:
        for top_k in dict.fromkeys((self._options.n_best, *(k for k in _FEWER if k < self._options.n_best))):
            try:
                reply = self.rows(dialect, Question(_PROBE, 0, top_k, top_k), trial=True)
            except EndpointError as error:
                if error.status in (404, 405, 501):
                    return None
                if error.bad_request and "logprobs" in error.message:
                    continue  # more than it allows
                if error.bad_request or error.status == 500:  # some take no ids, and fail over them
                    return None
                raise
            except NoRows:
                return None
            told = min(len(row.ids) for row in reply.rows.values())
            if len(reply.rows) < len(_PROBE):
                return None
            return Spoken(dialect, min(top_k, told), reply.cached is not None)
        return None

    # --- its tokenizer ---

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids, control tokens by their names; nothing for ids that the server's tokenizer lacks."""
        found = self.ask("/detokenize", {"tokens": list(ids), "skip_special_tokens": False})
        return self._part(found, "prompt", "text")

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text alone. Names of control tokens in it become those tokens."""
        return self._ids(self.ask("/tokenize", {"prompt": text, "add_special_tokens": False}))

    def tokenize_chat(self, messages: Sequence[Mapping[str, str]], variables: Mapping[str, Any]) -> list[int]:
        """Ids of a conversation in the server's own template, up to where the assistant begins."""
        body: dict[str, Any] = {"messages": [dict(message) for message in messages], "add_generation_prompt": True}
        if variables:
            body["chat_template_kwargs"] = dict(variables)
        return self._ids(self.ask("/tokenize", body))

    def _ids(self, found: Any) -> list[int]:
        ids = found.get("tokens") if isinstance(found, dict) else None
        if not isinstance(ids, list):
            raise EndpointError(f"{self.name} told no tokens of a text")
        return [int(token) for token in ids]

    def _part(self, found: Any, *names: str) -> str:
        text = next((found[name] for name in names if isinstance(found, dict) and name in found), None)
        if not isinstance(text, str):
            raise EndpointError(f"{self.name} told no text of tokens")
        return text
