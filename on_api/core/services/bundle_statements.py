"""The statements of a bundle's records, made once: putting them together takes as long as sending
them. Each takes rows by the hundred."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import Insert, bindparam, insert, select, update

from on_api.core.models import Content, Holding, Lease, Maintenance, User, UserUsage
from on_api.core.models.content import PINNED
from on_api.core.models.database import Base, insert_into, table_of
from on_api.core.services.maintenance import GARBAGE


@cache
def accounts_of(*, lock: bool) -> Any:
    """Counters and quota of those of `users` that are there, in order; maybe locked."""
    usage, user = table_of(UserUsage), table_of(User)
    statement = (
        select(
            usage.c.user_id,
            usage.c.storage_bytes,
            usage.c.reserved_bytes,
            usage.c.last_created_at,
            user.c.storage_quota,
        )
        .join(user, user.c.id == usage.c.user_id)
        .where(
            usage.c.user_id.in_(bindparam("users", expanding=True)),
            user.c.deleted_at.is_(None),
        )
        .order_by(usage.c.user_id)
    )
    return statement.with_for_update(of=usage) if lock else statement


@cache
def keeping() -> Any:
    """Which of `cids` on-api keeps already."""
    table = table_of(Content)
    return select(table.c.cid).where(
        table.c.cid.in_(bindparam("cids", expanding=True)), table.c.state == PINNED
    )


@cache
def holding_on() -> Any:
    """That a lease (`id`, `token`) is there, which it then is to the transaction's end, and until
    when garbage is collected."""
    lease, maintenance = table_of(Lease), table_of(Maintenance)
    until = select(maintenance.c.lease_until).where(maintenance.c.kind == GARBAGE)
    return (
        select(until.scalar_subquery().label("until"))
        .select_from(lease)
        .where(lease.c.id == bindparam("id"), lease.c.token == bindparam("token"))
        .with_for_update(of=lease, read=True, key_share=True)
    )


@cache
def locking(dialect: str) -> Any:
    """Makes contents or finds them, in the order given, and locks each."""
    table = table_of(Content)
    # Changed to what it is: `DO NOTHING` would neither lock nor return the row.
    return (
        insert_into(dialect, table)
        .on_conflict_do_update(index_elements=["cid"], set_={"dag_size": table.c.dag_size})
        .returning(
            table.c.cid,
            table.c.state,
            table.c.pin_root_id,
            table.c.dag_size,
            table.c.unreferenced_at,
        )
    )


@cache
def counting(dialect: str) -> Any:
    """Makes holdings or adds to them."""
    table = table_of(Holding)
    statement = insert_into(dialect, table)
    return statement.on_conflict_do_update(
        index_elements=["user_id", "cid"],
        set_={"reference_count": table.c.reference_count + statement.excluded.reference_count},
    ).returning(table.c.user_id, table.c.cid, table.c.reference_count, table.c.charged_bytes)


@cache
def settling() -> Any:
    """Adds to one user's counters."""
    table = table_of(UserUsage)
    return (
        update(table)
        .where(table.c.user_id == bindparam("owner"))
        .values(
            file_count=table.c.file_count + bindparam("added"),
            storage_bytes=table.c.storage_bytes + bindparam("stored"),
            last_created_at=bindparam("last"),
        )
    )


@cache
def inserting(model: type[Base]) -> Insert:
    """Makes rows, every column given."""
    return insert(table_of(model))
