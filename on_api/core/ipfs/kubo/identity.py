"""Whether the node that answers is the one that on-api's calls are for (ADR 27).

Asked before any RPC call, so that nothing of ours, the secret first of all, goes to whoever happens
to listen at the address: another Kubo on the default port, or one that took the place of ours.
Knows no database; what an external node's identity must be is told by `ExpectedNode`.
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
"""An answer is believed so long without a thought."""
MOST_SECONDS = 3.0
"""And so long at most: meanwhile it is asked anew beside the calls."""

_REFUSED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}

Headers = Mapping[str, str]
AskForId = Callable[[Headers], Awaitable[tuple[int, str | None]]]
"""Asks the RPC for the node's identity with these headers: the status, and what it said."""


class ExpectedNode(Protocol):
    """Which node it has to be."""

    async def may_be_told(self) -> bool:
        """Whether who listens is known to be ours before anything is asked, the secret included.

        Raises a `NodeError` where it is known not to be.
        """
        ...

    async def check(self, peer_id: str) -> None:
        """Raise `WrongNode` unless it is this one."""
        ...


class ManagedNodeExpected:
    """The node that on-api runs itself: who holds its repo, and has the identity in its config."""

    def __init__(self, repo: Path, rpc_port: int) -> None:
        self._repo = repo
        self._rpc_port = rpc_port

    async def may_be_told(self) -> bool:
        """See `ExpectedNode.may_be_told`."""
        port = await asyncio.to_thread(rpc_port_of, self._repo)
        if port is None:
            raise NodeUnavailable(f"The IPFS node of {self._repo.parent} is not running.")
        if port != self._rpc_port:
            raise NodeUnavailable(
                f"The IPFS node of {self._repo.parent} takes calls at port {port}, not at"
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
                f"The IPFS node {peer_id} answers in place of {expected}, which is that of"
                f" {self._repo.parent}: nothing was asked of it."
            )


class AnyNode:
    """Whichever is at the address, where nobody knows which it must be."""

    async def may_be_told(self) -> bool:
        """Not before it has answered as a node does: anybody may listen at the address."""
        return False

    async def check(self, peer_id: str) -> None:
        """See `ExpectedNode.check`. Any will do."""


class NodeIdentity:
    """Proves now and then who answers. Bound to the event loop of its first call."""

    def __init__(
        self, expected: ExpectedNode | None, authorization: str | None, ask: AskForId
    ) -> None:
        """`expected`: None asks for no proof at all. `ask` raises a `NodeError` in bounded time."""
        self._expected = expected
        self._headers = {} if authorization is None else {"Authorization": authorization}
        self._ask = ask
        self._proved_at = float("-inf")
        self._doubts = 0
        self._proving: asyncio.Task[None] | None = None

    async def headers(self, *, anew: bool = False) -> Headers:
        """The headers of a call, the secret among them, for the node that was proved to be ours;
        `anew`: proved since this was asked for, as a call needs that takes something away.

        Raises `WrongNode`, or the `NodeError` for which it can't be told; then ask nothing.
        """
        if self._expected is not None:
            now = asyncio.get_running_loop().time()
            if self._proved_at < now - FRESH_SECONDS:
                self._begin_to_prove(self._expected)
            while self._proved_at < (now if anew else now - MOST_SECONDS):
                # Shielded: whoever gives up waiting must not end it for the others.
                await asyncio.shield(self._begin_to_prove(self._expected))
        return self._headers

    def _begin_to_prove(self, expected: ExpectedNode) -> asyncio.Task[None]:
        """The proof that is under way, or else a new one. One that is over is none, though its
        callback may be still to come: to wait for it takes no time, and whoever goes round waiting
        for a later one would never let the loop go on."""
        if self._proving is None or self._proving.done():
            self._proving = asyncio.create_task(self._prove(expected))
            self._proving.add_done_callback(self._has_proved)
        return self._proving

    def distrust(self) -> None:
        """Believe nothing that was proved: a connection has failed, and who takes the next one is
        not known."""
        self._proved_at = float("-inf")
        self._doubts += 1

    async def close(self) -> None:
        """End what is under way."""
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
        # By its answer to a question without the secret a node is told that asks for none.
        is_ours = await expected.may_be_told() or not self._headers
        status, peer_id = await self._ask(self._headers if is_ours else {})
        if not is_ours and status in _REFUSED:
            status, peer_id = await self._ask(self._headers)
        if status in _REFUSED:
            raise NodeRefused
        if peer_id is None:
            raise WrongNode(
                "What answers at the IPFS node's address is no IPFS node: nothing was asked of it."
            )
        await expected.check(peer_id)
        if doubts == self._doubts:
            self._proved_at = began
