"""Proof that the node that answers is the one that on-api's calls are for (ADR 27).

Obtained before RPC calls, so that nothing of ours, above all the secret, goes to another process at
the address: another Kubo on the default port, or one that took the place of ours. Knows no
database; `ExpectedNode` says which identity an external node must have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

from on_api.core.errors import NodeRefused, NodeUnavailable, StartupError, WrongNode
from on_api.core.ipfs.daemon.repo import peer_id_of
from on_api.core.ipfs.daemon.whose import rpc_port_of

FRESH_SECONDS = 1.0
"""Seconds for which a proof is used without renewing it."""
MOST_SECONDS = 3.0
"""Seconds for which a proof is used at most: after `FRESH_SECONDS` it is renewed beside the
calls."""

_REFUSED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}

Headers = Mapping[str, str]
AskForId = Callable[[Headers], Awaitable[tuple[int, str | None]]]
"""Function that requests the node's identity from the RPC with these headers: status, and identity
or None."""


class ExpectedNode(Protocol):
    """The node that has to answer."""

    async def may_get_secret(self) -> bool:
        """Return whether the listener is known to be ours before it is sent anything, the secret
        included.

        Raises a `NodeError` if it is known not to be.
        """
        ...

    async def check(self, peer_id: str) -> None:
        """Raise `WrongNode` unless the expected node has this identity."""
        ...


class ManagedNodeExpected:
    """The node that on-api runs itself: it holds our repo, and has the identity in the repo's
    config."""

    def __init__(self, repo: Path, rpc_port: int) -> None:
        self._repo = repo
        self._rpc_port = rpc_port

    async def may_get_secret(self) -> bool:
        """See `ExpectedNode.may_get_secret`."""
        port = await asyncio.to_thread(rpc_port_of, self._repo)
        if port is None:
            raise NodeUnavailable(f"The IPFS node of {self._repo.parent} is not running.")
        if port != self._rpc_port:
            raise NodeUnavailable(
                f"The IPFS node of {self._repo.parent} listens on RPC port {port} instead of"
                f" {self._rpc_port}: set ON_API_NODE__RPC_PORT={port}."
            )
        return True

    async def check(self, peer_id: str) -> None:
        """See `ExpectedNode.check`."""
        try:
            expected = await asyncio.to_thread(peer_id_of, self._repo)
        except StartupError as error:
            raise NodeUnavailable(error.details) from error
        if peer_id != expected:
            raise WrongNode(
                f"The IPFS node {peer_id} responds instead of {expected}, which is the node of"
                f" {self._repo.parent}: on-api did not use it."
            )


class AnyNode:
    """Any node at the address, for when none is prescribed."""

    async def may_get_secret(self) -> bool:
        """Return False: any process may listen at the address until it has answered as a node
        does."""
        return False

    async def check(self, peer_id: str) -> None:
        """See `ExpectedNode.check`. Accepts any identity."""


class NodeIdentity:
    """Proves, and renews the proof, that the expected node answers. Bound to the event loop of its
    first call."""

    def __init__(
        self, expected: ExpectedNode | None, authorization: str | None, ask: AskForId
    ) -> None:
        """Create it. With `expected` None no proof is needed. `ask` raises a `NodeError` in bounded
        time."""
        self._expected = expected
        self._headers = {} if authorization is None else {"Authorization": authorization}
        self._ask = ask
        self._proved_at = float("-inf")
        self._doubts = 0
        self._proving: asyncio.Task[None] | None = None

    async def headers(self, *, anew: bool = False) -> Headers:
        """Return the headers of a call, including the secret, once the node has proved to be ours.
        With `anew` the proof is newer than this call, as is needed for one that removes something.

        Raises `WrongNode`, or a `NodeError` if the identity can't be had; then send nothing.
        """
        if self._expected is not None:
            now = asyncio.get_running_loop().time()
            if self._proved_at < now - FRESH_SECONDS:
                self._begin_to_prove(self._expected)
            while self._proved_at < (now if anew else now - MOST_SECONDS):
                # Shielded: a caller that is cancelled must not cancel it for the others.
                await asyncio.shield(self._begin_to_prove(self._expected))
        return self._headers

    def _begin_to_prove(self, expected: ExpectedNode) -> asyncio.Task[None]:
        """Return the task of the proof under way, or of a new one. A finished task is replaced even
        if its callback is still to run: awaiting it returns at once, and a caller that waits in a
        loop for a newer proof would never let the event loop run the callback."""
        if self._proving is None or self._proving.done():
            self._proving = asyncio.create_task(self._prove(expected))
            self._proving.add_done_callback(self._has_proved)
        return self._proving

    def distrust(self) -> None:
        """Discard the proof: a connection has failed, and another process may accept the next
        one."""
        self._proved_at = float("-inf")
        self._doubts += 1

    async def close(self) -> None:
        """Cancel the proof under way."""
        if self._proving is not None:
            self._proving.cancel()
            await asyncio.gather(self._proving, return_exceptions=True)

    def _has_proved(self, proving: asyncio.Task[None]) -> None:
        if self._proving is proving:
            self._proving = None
        if proving.cancelled() or proving.exception() is not None:
            self.distrust()

    async def _prove(self, expected: ExpectedNode) -> None:
        began, doubts = asyncio.get_running_loop().time(), self._doubts
        # A node that needs no secret identifies itself when asked without it.
        is_ours = await expected.may_get_secret() or not self._headers
        status, peer_id = await self._ask(self._headers if is_ours else {})
        if not is_ours and status in _REFUSED:
            status, peer_id = await self._ask(self._headers)
        if status in _REFUSED:
            raise NodeRefused
        if peer_id is None:
            raise WrongNode(
                "The service at the IPFS node's address is not an IPFS node: on-api did not use it."
            )
        await expected.check(peer_id)
        if doubts == self._doubts:
            self._proved_at = began
