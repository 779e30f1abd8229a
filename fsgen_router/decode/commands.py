"""What an engine asks of its driver, and what it hears back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..contracts.models import Opened, Role, Work
from ..contracts.text_models import Continuation, TextEnd
from ..errors import FsgenError
from ..records import Token
from ..rows.reading import Row


@dataclass(frozen=True, slots=True)
class Open:
    """Open a sequence for these ids; the result is an :class:`~fsgen_router.contracts.models.Opened`."""

    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Start:
    """Begin a piece of work on a model; its outcome comes back as :class:`Done` or :class:`Failed`.

    Works of one model are to be begun in the order of their commands.
    """

    job: int
    role: Role
    work: Open | Work | Continuation


@dataclass(frozen=True, slots=True)
class Emit:
    """A token stands, and ``text`` may be shown; or the slow model thinks (``reasoning``), which is no text.

    ``restarts``: the answer begins anew, and what was shown of it does not stand.
    """

    text: str
    token: Token | None
    reasoning: str = ""
    restarts: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    """Give a job up: nothing is heard of it any more."""

    job: int


@dataclass(frozen=True, slots=True)
class Close:
    """Give a sequence back before the end: the request needs it no more."""

    role: Role
    sequence: int


@dataclass(frozen=True, slots=True)
class Call:
    """Run a function of a user's own, which may take long: no thread that others wait for runs it.

    What it gives comes back as :class:`Returned`; what it raises, mapped by the function itself, as :class:`Failed`.
    """

    job: int
    function: Callable[[], Any]


Command: TypeAlias = Start | Emit | Cancel | Close | Call


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a continuation, or of the ``reasoning`` before it; its job goes on, ``seconds`` after it began.

    ``repairs`` names what was mended at the seam before it.
    """

    job: int
    text: str
    reasoning: bool = False
    repairs: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Done:
    """A job's result: ``Opened`` for an ``Open``, rows for a ``Work``, the end of a ``Continuation``.

    ``seconds`` that it took, with those of a forward that it shared counted whole. ``chunked``: that forward read
    more than a single token of some work, so this is no time of a decode step. ``reread``: tokens that the model
    read again, since it could not go back.
    """

    job: int
    result: Opened | list[Row] | TextEnd
    seconds: float
    chunked: bool = False
    reread: int = 0


@dataclass(frozen=True, slots=True)
class Returned:
    """What a called function gave."""

    job: int
    value: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """A job came to nothing after so many ``seconds``: the backend's error, or a deadline that passed."""

    job: int
    error: FsgenError
    seconds: float = 0.0


Event: TypeAlias = Done | Chunk | Returned | Failed
