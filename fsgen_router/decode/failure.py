"""A job came to nothing: the answer goes on without the slow model, where that was asked."""

from __future__ import annotations

import math

from ..contracts.models import Role
from ..contracts.text_models import TimeIsUp
from ..errors import BackendError, FsgenError, RouterClosed
from . import continuation, ending, proposal
from .commands import Command, Done, Failed
from .core import Core
from .state import Purpose

_NO_DISTRIBUTION = "NaN or infinite, or a bias forbids every token: try a wider dtype, or another bias"


def error_of(event: Done | Failed, role: Role) -> FsgenError | None:
    """What a job failed with, rows that are no distribution included."""
    if isinstance(event, Failed):
        return event.error
    if isinstance(event.result, list) and any(math.isnan(row.log_partition) for row in event.result):
        return BackendError(f"the {role} model's logits are no distribution", hint=_NO_DISTRIBUTION)
    return None


def failed(core: Core, role: Role, purpose: Purpose, error: FsgenError) -> list[Command]:
    """Give the slow model up, or what it was asked for. Raises what the fast model failed with."""
    state, finished = core.state, core.state.finish is not None
    if not finished and (role == "fast" or isinstance(error, RouterClosed)):
        raise error
    if finished and purpose in ("ahead", "answer"):  # nobody needs it, save perhaps an audit, which begins anew
        state.readers[role].seen = 0
        return []
    if finished:  # an audit that fails costs only its labels
        ending.conclude(core)
        return []
    # The answer is not lost: the fast model goes on alone, and the result says so.
    if isinstance(error, TimeIsUp):
        state.degraded = state.degraded or core.terms.purse.reason("seconds")
    else:
        state.degraded = state.degraded or f"{type(error).__name__}: {error.message}"
        # What an error says about the endpoint without quoting it: that may repeat the prompt.
        state.fault = state.fault or f"{type(error).__name__}: {getattr(error, 'plain', error.message)}"
    emitted = continuation.broke_off(core, getattr(error, "end", None))
    if state.span_left == 0:  # it was reading ahead
        state.escalation = None
        return emitted
    return [*emitted, *proposal.hand_back(core, "stop")]
