"""Answers whose bytes nginx takes from the node directly: charged in full before, refunded by what
nginx's log says was sent.

Any failure in between leaves an answer charged in full: never less is counted than was sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, select

from on_api.core.errors import EgressBudgetExceeded
from on_api.core.metrics import Metrics
from on_api.core.models import AccelCharge, Database
from on_api.core.models.database import utc_now
from on_api.core.models.traffic import KEY, OWNER
from on_api.core.services.traffic.egress import EgressLedger, Subject, instance, log_notices
from on_api.core.services.traffic.sums import Charge, Kind, Sums, add_traffic, take_back

_LINE = re.compile(r"\S+ ([0-9a-f]{32}) [0-9]{3} ([0-9]{1,18})\s*")


@dataclass(frozen=True, slots=True)
class Refunded:
    """Result of reading a piece of nginx's log: answers refunded, and bytes taken off."""

    answers: int = 0
    bytes: int = 0


def read_line(line: str) -> tuple[str, int] | None:
    """Parse a line of the log format `on_api_accel` (`deploy/nginx.conf`: time, name, status,
    bytes). Returns the request's name and the bytes sent; None for any other line."""
    found = _LINE.fullmatch(line)
    return (found[1], int(found[2])) if found else None


class AcceleratedAnswers:
    """Service for open charges of accelerated answers. Thread-safe."""

    def __init__(self, database: Database, ledger: EgressLedger, metrics: Metrics) -> None:
        self._database = database
        self._ledger = ledger
        self._metrics = metrics

    def charge(self, identity: str, charge: Charge, length: int) -> bool:
        """Count an answer of `length` bytes under nginx's name for the request, once only.

        Returns False, counting nothing, when a budget may leave less (credit held by processes
        counts as spent here), or the name was used before. Raises `DatabaseUnavailable`.
        """
        period = utc_now().replace(minute=0, second=0, microsecond=0)
        subjects = _subjects(period.strftime("%Y-%m"), charge)
        try:
            with self._database.session_scope() as session:
                if session.get(AccelCharge, identity) is not None:
                    return False
                add_traffic(session, [Sums(period, charge, requests=1, bytes_out=length)])
                charged, notices = self._ledger.spend(session, subjects, length)
                session.add(
                    AccelCharge(
                        id=identity,
                        length=length,
                        period=period,
                        owner_id=charge.owner_id,
                        key_id=charge.key_id,
                        cid=charge.cid,
                        key_counted=any(subject.kind == KEY for subject in charged),
                    )
                )
        except EgressBudgetExceeded:
            return False
        log_notices(notices)
        self._metrics.traffic_requests.labels(charge.kind.value).inc()
        self._metrics.egress_bytes.labels(charge.kind.value).inc(length)
        return True

    def refund(self, sent: Mapping[str, int]) -> Refunded:
        """Lower charges to what was sent, by nginx's names for the requests, in one transaction.
        Each answer is refunded once: a repeated or unknown name changes nothing. Raises
        `DatabaseUnavailable`."""
        with self._database.session_scope() as session:
            rows = session.scalars(
                select(AccelCharge)
                .where(AccelCharge.id.in_(sent))
                .order_by(AccelCharge.id)
                .with_for_update()
            ).all()
            unsent: dict[tuple[datetime, Charge], int] = {}
            for row in rows:
                sums_key = _sums_key(row)
                unsent[sums_key] = unsent.get(sums_key, 0) + row.length - sent[row.id]
            done = set(take_back(session, unsent))
            counters: dict[Subject, int] = {}
            for row in rows:
                period, charge = sums_key = _sums_key(row)
                if sums_key not in done:
                    continue
                for subject in _subjects(period.strftime("%Y-%m"), charge):
                    if subject.kind != KEY or row.key_counted:
                        rest = row.length - sent[row.id]
                        counters[subject] = counters.get(subject, 0) + rest
            if counters:
                self._ledger.give_back(session, counters)
            session.execute(delete(AccelCharge).where(AccelCharge.id.in_([r.id for r in rows])))
            return Refunded(len(rows), sum(unsent[sums_key] for sums_key in done))


def _sums_key(row: AccelCharge) -> tuple[datetime, Charge]:
    return row.period, Charge(Kind.GATEWAY, row.owner_id, row.key_id, cid=row.cid)


def _subjects(month: str, charge: Charge) -> list[Subject]:
    found = [instance(month)]
    if charge.owner_id is not None:
        found.append(Subject(OWNER, charge.owner_id, month))
    if charge.key_id is not None:
        found.append(Subject(KEY, charge.key_id, month))
    return found
