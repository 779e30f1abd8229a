"""What one request's escalations are held to."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..contracts.policy import Ledger
from ..records import MachinePrice, Prices
from .budget import Purse


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The caps that a request is under (``purse``), and what the slow model costs.

    ``gate``: a call of an endpoint has to be worth its price. ``step_seconds`` of the slow model per token, where the
    Router knows them. ``bill_to``: whose totals the bill is entered in, where that is not the request's own ledger.
    """

    purse: Purse = field(default_factory=lambda: Purse(()))
    prices: Prices | None = None
    machine: MachinePrice | None = None
    gate: bool = False
    step_seconds: float | None = None
    bill_to: Ledger | None = None

    @property
    def countable(self) -> bool:
        """Whether anybody knows what the slow model costs."""
        return self.prices is not None or (self.machine is not None and self.machine.usd(0.0) is not None)

    @property
    def holds(self) -> bool:
        """Whether an escalation may be declined at all."""
        return self.purse.capped or (self.gate and self.prices is not None)
