"""Tables of collaboration frequencies: FS-GEN's published one, a study's, or one's own."""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigurationError
from .fitting import Array

COLUMNS = ("method", "dataset", "slow_params_b", "fast_params_b", "cof")
"""What a table holds: sizes in billions of parameters, ``cof`` a share in [0, 1]. Other columns are ignored."""

_HERE = Path(__file__).parent
SOURCE = (_HERE / "fsgen_cof.source.txt").read_text(encoding="utf-8").strip()
"""Where the published table comes from."""

_PAPER_NAMES = {"replace": "oracle", "contrast": "contrastive"}


@dataclass(frozen=True, slots=True)
class Cell:
    """One method on one data set: sizes in billions and rates, shape (n,) each.

    ``problems`` are what is wrong with its rows (then it cannot be fitted), ``notes`` what was left out.
    """

    method: str
    dataset: str
    slow: Array
    fast: Array
    cof: Array
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.cof)

    @property
    def ratio(self) -> Array:
        return self.slow / self.fast


@dataclass(frozen=True, slots=True)
class Table:
    """Cells in the order of the file."""

    source: str
    cells: tuple[Cell, ...]

    def cell(self, method: str, dataset: str) -> Cell:
        """One cell; as :meth:`select`."""
        return self.select(method, dataset)[0]

    def select(self, method: str | None = None, dataset: str | None = None) -> tuple[Cell, ...]:
        """The cells of a method and a data set, whatever their case; ``replace`` finds the paper's ``oracle``.

        Raises :class:`ConfigurationError` where there is none, with what there is.
        """
        methods = list(dict.fromkeys(cell.method for cell in self.cells))
        method = method if method is None else _known(_as_named(method, methods), methods, "method")
        found = [cell for cell in self.cells if method in (None, cell.method)]
        datasets = list(dict.fromkeys(cell.dataset for cell in found))
        dataset = dataset if dataset is None else _known(dataset, datasets, "data set")
        return tuple(cell for cell in found if dataset in (None, cell.dataset))


def _as_named(method: str, known: Sequence[str]) -> str:
    """A method of this package by the paper's name, where the table uses that."""
    other = _PAPER_NAMES.get(method.partition(":")[0].casefold())
    return other if other is not None and other in known and method not in known else method


def _known(name: str, known: Sequence[str], what: str) -> str:
    for one in known:
        if one.casefold() == name.casefold():
            return one
    close = difflib.get_close_matches(name.casefold(), [one.casefold() for one in known], 1)
    meant = next((one for one in known if close and one.casefold() == close[0]), None)
    raise ConfigurationError(
        f"no {what} {name!r} in the table",
        hint=(f"did you mean {meant!r}? " if meant else "") + f"available: {', '.join(known)}",
    )


def published_table() -> Table:
    """All 168 published rates (:data:`SOURCE`)."""
    return make_table(
        "FS-GEN's published table (arXiv 2406.12295)",
        _csv_rows((_HERE / "fsgen_cof.csv").read_text(encoding="utf-8"), "fsgen_cof.csv"),
    )


def read_table(path: str | Path) -> Table:
    """A table of :data:`COLUMNS`: CSV with a head line, or JSON (a list of objects, or a study's results).

    A row that is wrong spoils its own cell only. Raises :class:`ConfigurationError` where the file cannot be read
    or is no such table.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}", hint="check the path") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not valid UTF-8 at byte {error.start}", hint="save it as UTF-8") from None
    rows = _json_rows(text, str(path)) if text.lstrip()[:1] in ("[", "{") else _csv_rows(text, str(path))
    table = make_table(str(path), rows)
    if not table.cells:
        raise ConfigurationError(f"{path} holds no rows", hint=f"columns: {', '.join(COLUMNS)}")
    return table


def _csv_rows(text: str, name: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise ConfigurationError(
            f"{name} has no column {missing[0]!r}", hint=f"its first line names the columns: {','.join(COLUMNS)}"
        )
    try:
        for row in reader:
            yield f"line {reader.line_num}", row
    except csv.Error as error:
        raise ConfigurationError(f"{name}, line {reader.line_num}: {error}", hint="save it as CSV") from None


def _json_rows(text: str, name: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{name} is not valid JSON: {error}", hint="give CSV or JSON") from None
    rows = found.get("cells") if isinstance(found, dict) else found
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigurationError(f"{name} holds no list of cells", hint=f"each an object with {', '.join(COLUMNS)}")
    for number, row in enumerate(rows, 1):
        yield f"cell {number}", row


@dataclass(slots=True)
class _Gathered:
    rows: list[tuple[float, float, float]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unmeasured: int = 0
    inverted: int = 0


def make_table(source: str, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Table:
    """A table from rows of :data:`COLUMNS`, each with its place (``"line 7"``) for messages."""
    cells: dict[tuple[str, str], _Gathered] = {}
    for place, row in rows:
        names = tuple(row.get(column) for column in COLUMNS[:2])
        if not all(isinstance(name, str) and name.strip() for name in names):
            raise ConfigurationError(f"{source}, {place}: method and dataset must be named", hint="fill them in")
        cell = cells.setdefault((str(names[0]).strip(), str(names[1]).strip()), _Gathered())
        if row.get("cof") in (None, "") and row.get("error"):
            cell.unmeasured += 1  # by a study, whose other pairs count
            continue
        try:
            slow, fast = (_number(row.get(name), name, positive=True) for name in COLUMNS[2:4])
            cof = _number(row.get("cof"), "cof")
            if not 0 <= cof <= 1:
                raise ValueError(f"cof is {cof:g}, not a share between 0 and 1")
        except ValueError as error:
            cell.problems.append(f"{place}: {error}")
            continue
        if slow > fast:
            cell.rows.append((slow, fast, cof))
        else:
            cell.inverted += 1
    return Table(source, tuple(_cell(*names, gathered) for names, gathered in cells.items()))


def _cell(method: str, dataset: str, gathered: _Gathered) -> Cell:
    slow, fast, cof = np.array(gathered.rows, np.float64).reshape(-1, 3).T
    notes = []
    if gathered.unmeasured:
        notes.append(f"{gathered.unmeasured} not measured (see their errors in the table)")
    if gathered.inverted:
        notes.append(f"{gathered.inverted} left out: the slow model is not larger than the fast one")
    return Cell(method, dataset, slow, fast, cof, problems=tuple(gathered.problems), notes=tuple(notes))


def _number(value: Any, name: str, *, positive: bool = False) -> float:
    try:
        if value is None or isinstance(value, bool):
            raise ValueError
        number = float(value)
    except (TypeError, ValueError):
        billions = ", in billions of parameters: 7 for 7B" if positive else ""
        raise ValueError(f"{name} is {value!r}, not a number{billions}") from None
    if not math.isfinite(number) or (positive and number <= 0):
        raise ValueError(f"{name} is {number:g}, not a {'size above 0' if positive else 'finite number'}")
    return number


def size_text(billions: float) -> str:
    """A model's size as people say it: 7B, 350M, 12k."""
    for unit, size in (("B", 1.0), ("M", 1e-3), ("k", 1e-6)):
        if billions >= (0.1 if unit == "B" else 1) * size:
            return f"{billions / size:.3g}{unit}"
    return f"{1e9 * billions:.0f} parameters"
