"""Log events with stable names and fields, and the warnings that go with some of them.

Events: ``answered``, ``degraded``, ``context_beyond_training``, ``endpoint_retry``, ``endpoint_parameter``,
``prefill_probed``, ``completions_probed``, ``prompts_wrapped``, ``policy_pair``, ``policy_drift``, ``small_extent``,
``swapped_models``, ``system_merged``, ``vocabulary`` (ids that one model lacks or types otherwise), ``reread`` (a
method takes drafts back, a model cannot).

Those of a request have its ``request_id`` and the names of both models. Prompts and keys are never in them.
An application that configured structlog gets them through its own processors, as fields. Else they go to the
standard library's logger ``fsgen_router``, silent until that is configured: a line of text, and the fields as
attributes of the record.
"""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import structlog

_standard = logging.getLogger("fsgen_router")
_standard.addHandler(logging.NullHandler())


def _as_line_and_fields(
    _logger: Any, _method: str, event: structlog.typing.EventDict
) -> tuple[tuple[str], dict[str, Any]]:
    line = structlog.processors.KeyValueRenderer(key_order=["event"])(_logger, _method, dict(event))
    return (line,), {"extra": dict(event)}


_unconfigured: structlog.stdlib.BoundLogger = structlog.wrap_logger(
    _standard,
    processors=[structlog.stdlib.filter_by_level, _as_line_and_fields],
    wrapper_class=structlog.stdlib.BoundLogger,
    context_class=dict,
    cache_logger_on_first_use=True,
)


class _Log:
    """structlog as it is configured at the moment of the event: an application may do that after its imports."""

    def info(self, event: str, **fields: Any) -> None:
        self._logger().info(event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._logger().warning(event, **fields)

    @staticmethod
    def _logger() -> Any:
        return structlog.get_logger("fsgen_router") if structlog.is_configured() else _unconfigured


log = _Log()


def warn(category: type[Warning], message: str, *, event: str, **fields: Any) -> None:
    """Warn at the line outside of this package that led here, and log ``event``."""
    warnings.warn(message, category, stacklevel=_levels_inside())
    log.warning(event, **fields)


def _levels_inside() -> int:
    """How far up the stack :func:`warn`'s caller leaves this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "fsgen_router":
        level, frame = level + 1, frame.f_back
    return level
