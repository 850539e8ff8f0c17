"""The worker's removal of leftovers, done at once."""

from __future__ import annotations

from datetime import timedelta

from anyio import sleep, to_thread
from sqlalchemy import select

from on_api.core.models import Lease
from on_api.core.models.database import database_now
from on_api.core.services.container import Services
from on_api.worker.leftovers import LeftoverRemover


def remover_of(services: Services) -> LeftoverRemover:
    """Return a remover built like the worker's."""
    return LeftoverRemover(
        services.database,
        services.node,
        services.reconciler,
        services.names,
        services.metrics,
        timedelta(seconds=30),
    )


async def remove_leftovers(services: Services) -> None:
    """Run the remover's step until no dead lease is left."""
    remover = remover_of(services)

    def any_left() -> bool:
        with services.database.session_scope(write=False) as session:
            dead = select(Lease.id).where(Lease.lease_until < database_now())
            return session.scalar(dead.limit(1)) is not None

    while await to_thread.run_sync(any_left):
        await remover.step()
        await sleep(0.1)
