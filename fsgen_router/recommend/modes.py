"""Ways to answer with two models, or three: what is measured and compared.

A mode is one record. Another one is a line in :data:`ROUTED`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from ..evaluation import SLOW_ONLY
from ..pairing import DEFAULT_POLICY
from ..policies.files import SUFFIX

Seat: TypeAlias = Literal["fast", "middle", "slow", "tuned"]
Kind: TypeAlias = Literal["fast", "middle", "slow", "tuned", "speculative", "routed", "whole_query"]
"""A model alone, lossless speculation, a policy inside answers, or one decision for a whole answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """One way to answer: a policy and a method, and which models sit in a Router's fast and slow seats.

    ``method`` None is the policy file's own. ``at_once`` says with how many requests at a time it is measured.
    ``lossless``: it writes what the slow model writes alone, at temperature 0 (up to ties of quantised models).
    """

    name: str
    kind: Kind
    policy: str
    method: str | None = "replace"
    seats: tuple[Seat, Seat] = ("fast", "slow")
    at_once: tuple[int, ...] = (1,)
    lossless: bool = False

    @property
    def file_name(self) -> str:
        """What its measurements are called on disk: everything that they depend on."""
        form = f"{'-'.join(self.seats)}-{self.policy}-{self.method}".encode()
        if self.policy.endswith(SUFFIX):  # another policy may lie there later
            form += Path(self.policy).read_bytes()
        digest = hashlib.sha256(form).hexdigest()[:8]
        return f"{re.sub(r'[^a-z0-9]+', '_', self.name.lower())[:40]}-{digest}"


ROUTED: tuple[Mode, ...] = (
    Mode(name="replace", kind="routed", policy=DEFAULT_POLICY),
    Mode(name="verify", kind="routed", policy=DEFAULT_POLICY, method="verify:exact"),
    Mode(name="speculative 4", kind="speculative", policy="every:4", method="verify:exact", lossless=True),
    Mode(name="speculative 8", kind="speculative", policy="every:8", method="verify:exact", lossless=True),
    Mode(name="entropy gate", kind="routed", policy="every:12", method="verify:entropy_gate=0.5,window=6"),
    Mode(name="contrast", kind="routed", policy=DEFAULT_POLICY, method="contrast"),
)
"""Modes of two local models, which the slow one's rows are needed for."""

PROXY = Mode(name="proxy", kind="routed", policy=DEFAULT_POLICY, method="proxy")
"""With a third model: what tuning changed of the fast one is added to the slow one."""

DEFAULT = "default"
"""The name of a mode that is the Router's own policy, where a pair comes with one."""

REST_WINDOW = 8
"""Tokens whose mean entropy hands the rest of an answer over."""


def rest_mode(threshold: float) -> Mode:
    """The rest of an answer handed over once, where the fast model has been uncertain for a while (nats)."""
    policy = f"entropy>{threshold:.3g},span=rest,window={REST_WINDOW}"
    return Mode(name="rest", kind="routed", policy=policy)


def alone_modes(*, middle: bool = False, tuned: bool = False, local: bool) -> list[Mode]:
    """Each model alone, the slow one first. A local model sits in the fast seat then, and no other reads along;
    ``local`` is whether the slow model can."""
    slow = Mode(name="slow alone", kind="slow", policy=SLOW_ONLY, lossless=True)
    if local:
        slow = replace(slow, policy="never", seats=("slow", "fast"))
    modes = [slow, Mode(name="fast alone", kind="fast", policy="never")]
    if middle:
        modes.append(Mode(name="middle alone", kind="middle", policy="never", seats=("middle", "fast")))
    if tuned:
        modes.append(Mode(name="tuned alone", kind="tuned", policy="never", seats=("tuned", "fast")))
    return modes


def pair_modes(
    *, local: bool, rest: float, policies: Sequence[str], seats: tuple[Seat, Seat], tuned: bool = False
) -> list[Mode]:
    """What two models can do together; ``policies`` are a user's own, short forms or files, and ``tuned`` says that
    there is a third one, the fast one tuned."""
    shown = {policy: re.split(r"[\\/]", policy)[-1] for policy in policies}
    if len(set(shown.values())) < len(shown):  # files of one name in several folders
        shown = {policy: policy for policy in shown}
    own = [Mode(name=f"own: {name}", kind="routed", policy=policy, method=None) for policy, name in shown.items()]
    modes = [*(ROUTED if local else ()), rest_mode(rest), *own]
    if seats == ("fast", "slow"):
        return [*modes, *([PROXY] if tuned else [])]
    # What two smaller models write together is nobody's own text that is compared with.
    lossless = seats[1] == "slow"
    return [
        replace(mode, name=f"{mode.name} ({seats[0]}, {seats[1]})", seats=seats, lossless=mode.lossless and lossless)
        for mode in modes
    ]
