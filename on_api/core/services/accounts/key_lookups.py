"""Look-ups of keys for requests: in memory, or in the database once for all requests that arrive
with the same key meanwhile."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import TypeVar

from anyio import to_thread

from on_api.core.services.accounts.access import Principal
from on_api.core.services.accounts.authentication import Authenticator, CountedKey
from on_api.core.services.accounts.strangers import Strangers
from on_api.core.tracing import detached

T = TypeVar("T")


class KeyLookups:
    """Shared look-ups of keys. All calls must come from one event loop."""

    def __init__(self, authenticator: Authenticator, strangers: Strangers) -> None:
        self._authenticator = authenticator
        self._strangers = strangers
        self._under_way: dict[tuple[int, str], asyncio.Task[Principal | CountedKey]] = {}

    async def principal_of(
        self, key: str, admit: Callable[[uuid.UUID], object] | None = None
    ) -> Principal:
        """Return the principal of a valid key and count the use of a limited one.

        `admit` is called with the key's id once the key is known to be valid, and may refuse the
        request by an exception, which costs no use. Raises `Unauthorized`, and what `admit` raises.
        """
        found = self._authenticator.recall(key) or await self._learn(key)
        if admit is not None:
            admit(found.key_id)
        if isinstance(found, CountedKey):
            return await self._in_thread(self._authenticator.authenticate, key)
        return found

    async def _learn(self, key: str) -> Principal | CountedKey:
        # A look-up that began before the last cache invalidation is not shared.
        asked = self._authenticator.generation, key
        learning = self._under_way.get(asked)
        if learning is None:
            work = self._in_thread(self._authenticator.learn, key)
            # Without this request's context: the task serves several requests.
            learning = asyncio.create_task(work, context=detached())
            self._under_way[asked] = learning
            learning.add_done_callback(lambda _: self._under_way.pop(asked))
        # Shielded: a waiter that is cancelled must not end the task for the others.
        return await asyncio.shield(learning)

    async def _in_thread(self, look_up: Callable[[str], T], key: str) -> T:
        """Look a key up in a thread. A key that was valid before does not wait behind strangers."""
        if self._authenticator.was_valid(key):
            return await to_thread.run_sync(look_up, key)
        return await self._strangers.in_thread(look_up, key)
