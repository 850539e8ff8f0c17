"""The statements of a bundle's records, made once: putting them together takes as long as sending
them. Each takes rows by the hundred."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import Insert, bindparam, insert, update

from on_api.core.models import Content, Holding, UserUsage
from on_api.core.models.database import Base, insert_into, table_of


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
            reserved_bytes=table.c.reserved_bytes - bindparam("given_back"),
            last_created_at=bindparam("last"),
        )
    )


@cache
def inserting(model: type[Base]) -> Insert:
    """Makes rows, every column given."""
    return insert(table_of(model))
