"""Every table, as a restored database takes it over: as it is, changed, or emptied.

A test fails for a table that isn't named here: whoever adds one decides what a restored database is
to know of it.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Select, delete, select, update
from sqlalchemy.orm import Session

from on_api.core.models import (
    Content,
    Deployment,
    IdempotencyRecord,
    Import,
    Lease,
    LeasedPin,
    Maintenance,
    Pin,
    Process,
    QuarantinedPin,
    UserUsage,
    VisibilityChange,
)
from on_api.core.models.content import ABSENT, PINNED
from on_api.core.models.database import database_now
from on_api.core.models.pin import PINNING, QUEUED
from on_api.core.services.content import bundles

KEPT = frozenset(
    {
        "accel_charges",
        "audit_events",
        "denied_cids",
        "egress_counters",
        "egress_credits",
        "events",
        "files",
        "holdings",
        "identities",
        "import_items",
        "keys",
        "metering_processes",
        "password_throttles",
        "private_blocks",
        "secret_in_use",
        "shares",
        "traffic",
        "traffic_totals",
        "users",
    }
)
"""Tables whose rows are restored as they were. Credit that a process had open is given back by the
worker, as after a crash."""

CHANGED: Mapping[str, str] = {
    "contents": "removals under way have ended; what nobody holds is not in the backup",
    "deployment": "the node is another one; its addresses are asked for anew",
    "idempotency_records": "requests without an answer have ended",
    "imports": "no worker is at them",
    "maintenance": "no run is under way",
    "pins": "no worker is at them",
    "user_usage": "nothing is reserved",
    "visibility_changes": "no worker is at them",
}
EMPTIED: Mapping[str, str] = {
    "leases": "the uploads have ended, and the restored node has nothing of them",
    "leased_pins": "these pins were on the old node; on a newer one `fsck` has them in quarantine",
    "processes": "none of them uses this database",
    "quarantined_pins": "they were seen on another node, or long ago: their time begins anew",
}


def needed() -> Select[str]:
    """Return the query for the CIDs whose DAGs a backup needs: what somebody holds, and bundles
    that cover anything. The rest is pinned only until the worker unpins it."""
    return select(Content.cid).where(bundles.is_held(Content.cid))


def settle(session: Session) -> None:
    """End in a restored database what was under way when it was copied: nothing waits for processes
    that are gone, and nothing is said to be pinned that the backup doesn't hold."""
    for model in (LeasedPin, Lease, Process, QuarantinedPin):
        session.execute(delete(model))
    session.execute(update(UserUsage).values(reserved_bytes=0))
    session.execute(update(Maintenance).values(token=None, lease_until=None))
    session.execute(delete(IdempotencyRecord).where(IdempotencyRecord.status.is_(None)))
    for job in (Pin, Import, VisibilityChange):
        session.execute(update(job).values(lease_token=None, lease_until=None))
    fetched = update(Pin).where(Pin.status == PINNING)
    session.execute(fetched.values(status=QUEUED, due_at=database_now()))
    session.execute(update(Deployment).values(node_id=None, delegates=None))
    _settle_contents(session)


def _settle_contents(session: Session) -> None:
    unleased = {"lease_token": None, "lease_until": None}
    held = bundles.is_held(Content.cid)
    # Removed as the worker would have done it: under a new generation. Members of a bundle stay
    # with it, whose blocks are in the backup.
    session.execute(
        update(Content)
        .where(Content.state != ABSENT, ~held, Content.pin_root_id == Content.cid)
        .values(
            state=ABSENT,
            generation=Content.generation + 1,
            unreferenced_at=None,
            thinned_at=None,
            **unleased,
        )
        .execution_options(synchronize_session=False)
    )
    session.execute(
        update(Content)
        .where(Content.state != PINNED, held)
        .values(state=PINNED, pin_root_id=Content.cid, unreferenced_at=None, **unleased)
        .execution_options(synchronize_session=False)
    )
