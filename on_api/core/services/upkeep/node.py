"""Description of the node, and connecting to it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from sqlalchemy.orm import Session

from on_api.core.errors import NodeError
from on_api.core.ipfs.daemon.repo import rpc_auth_of
from on_api.core.ipfs.daemon.version import TESTED_RANGE
from on_api.core.ipfs.kubo.control import KuboNode
from on_api.core.ipfs.kubo.identity import AnyNode, ExpectedNode, ManagedNodeExpected
from on_api.core.ipfs.port import Exchanged, IpfsNode
from on_api.core.services.content import maintenance
from on_api.core.services.content.maintenance import Outcome
from on_api.core.settings import Settings


@dataclass(frozen=True, slots=True)
class NodeDescription:
    """The node at present; sizes in bytes."""

    id: str
    agent: str
    version: str
    tested: bool
    tested_range: str
    peers: int
    repo_size: int
    repo_limit: int
    exchanged: Exchanged | None
    """Bytes exchanged; None: the node doesn't say (its RPC secret may not ask, or it is
    offline)."""


@dataclass(frozen=True, slots=True)
class MaintenanceReport:
    """Results of the last garbage collection and the last check."""

    gc: Outcome
    fsck: Outcome


def maintenance_report(session: Session) -> MaintenanceReport:
    """Return the recorded results of maintenance."""

    def ended(kind: str) -> Outcome:
        outcome = maintenance.last_outcome(session, kind)
        return outcome if outcome.result is not None else Outcome(None, None)

    return MaintenanceReport(gc=ended(maintenance.GARBAGE), fsck=ended(maintenance.FSCK))


async def describe_node(node: IpfsNode) -> NodeDescription:
    """Ask the node about itself. Raises a `NodeError` when it can't be reached."""
    version, peer_id, peers, repo, exchanged = await asyncio.gather(
        node.version(), node.peer_id(), node.peer_count(), node.repo_stat(), _exchanged(node)
    )
    return NodeDescription(
        id=peer_id,
        agent=version.agent,
        version=version.version,
        tested=version.tested,
        tested_range=TESTED_RANGE,
        peers=peers,
        repo_size=repo.size,
        repo_limit=repo.storage_max,
        exchanged=exchanged,
    )


async def _exchanged(node: IpfsNode) -> Exchanged | None:
    try:
        return await node.exchanged()
    except NodeError:
        return None


def connect_node(settings: Settings, recorded: ExpectedNode | None = None) -> KuboNode:
    """Create a client of the Kubo that the settings name; nothing is sent to it yet.

    A node that on-api runs must be that of the home; for others `recorded` says which it must be,
    and None accepts any node at the address.
    """
    return KuboNode(settings, node_auth(settings), expected_node(settings, recorded))


def expected_node(settings: Settings, recorded: ExpectedNode | None) -> ExpectedNode:
    """Return the node that RPC calls are meant for."""
    if not settings.manages_node:
        return AnyNode() if recorded is None else recorded
    return ManagedNodeExpected(settings.home / "ipfs", settings.node.rpc_port)


def node_auth(settings: Settings) -> str | None:
    """Return the secret of the node's RPC: from the settings, or from the config of our own
    node."""
    if settings.ipfs.rpc_auth is not None:
        return settings.ipfs.rpc_auth.get_secret_value()
    return rpc_auth_of(settings.home / "ipfs") if settings.manages_node else None
