"""Look-ups of keys for requests: in memory, or in the database once for all requests that arrive
with the same key meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import TypeVar

from anyio import to_thread

from on_api.core.services.accounts.access import Principal
from on_api.core.services.accounts.authentication import Authenticator
from on_api.core.services.accounts.strangers import Strangers

T = TypeVar("T")


class KeyLookups:
    """Shared look-ups of keys. All calls must come from one event loop."""

    def __init__(self, authenticator: Authenticator, strangers: Strangers) -> None:
        self._authenticator = authenticator
        self._strangers = strangers
        self._under_way: dict[tuple[int, str], asyncio.Task[Principal | None]] = {}

    async def principal_of(self, key: str) -> Principal:
        """Return the principal of a valid key and count the use of a limited one. Raises
        `Unauthorized`."""
        principal = self._authenticator.recall(key) or await self._learn(key)
        if principal is None:
            principal = await self._in_thread(self._authenticator.authenticate, key)
        return principal

    async def _learn(self, key: str) -> Principal | None:
        # A look-up that began before the last cache invalidation is not shared.
        asked = self._authenticator.generation, key
        learning = self._under_way.get(asked)
        if learning is None:
            work = self._in_thread(self._authenticator.learn, key)
            # Without this request's context: the task serves several requests.
            learning = asyncio.create_task(work, context=Context())
            self._under_way[asked] = learning
            learning.add_done_callback(lambda _: self._under_way.pop(asked))
        # Shielded: a waiter that is cancelled must not end the task for the others.
        return await asyncio.shield(learning)

    async def _in_thread(self, look_up: Callable[[str], T], key: str) -> T:
        """Look a key up in a thread. A key that was valid before does not wait behind strangers."""
        if self._authenticator.was_valid(key):
            return await to_thread.run_sync(look_up, key)
        return await self._strangers.in_thread(look_up, key)
