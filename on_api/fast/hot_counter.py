"""Counting for answers from memory: `HotCounter` does the work of a `Ticket` for answers that go
out whole, at once, and by the thousand.

Used on one event loop. Knows nothing of how answers are made.
"""

from __future__ import annotations

from on_api.core.services.traffic.metering import Charge, Meter


class HotCounter:
    """Counter for answers that go out whole and at once, all for one charge: a ticket for each
    would cost more than the answer. Used on the event loop only."""

    __slots__ = ("_accounts", "_binding", "_meter", "_row", "charge")

    def __init__(self, meter: Meter, charge: Charge) -> None:
        self.charge = charge
        self._meter = meter
        self._binding = -1

    def take(self, size: int) -> bool:
        """Count an answer of `size` bytes (not 0) that is about to be sent, as one request. Return
        False, with nothing counted, if the credit in memory does not allow it."""
        meter = self._meter
        meter.now()
        if self._binding != meter.binding:
            self._accounts = meter.accounts_of(self.charge)
            self._row = meter.row_of(self.charge)
            self._binding = meter.binding
        credit = meter.credit
        if not credit.are_fresh(self._accounts):
            return False
        for account in self._accounts:
            if account.credit + min(account.room, 0) < size and credit.limits(account):
                return False
        if not credit.spend(self._accounts, size):
            return False
        self._row.bytes_out += size
        self._row.requests += 1
        return True
