"""Several Kubos on loopback: peers that have content, lose it, go away and come back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr

from on_api.core.ipfs.daemon.process import ManagedNode
from on_api.core.ipfs.formats.cid import ADD_OPTIONS
from on_api.core.setting_groups import IpfsSettings, NodeSettings
from on_api.tests.conftest import RPC_SECRET, free_port
from on_api.tests.testing.blockstore import Blockstore
from on_api.tests.testing.plain_http import NO_TLS


class Peer:
    """One Kubo, run by on-api's own code; private, so that it dials only named peers."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.node = NodeSettings(rpc_port=free_port(), gateway_port=free_port())
        self.blocks = Blockstore(home / "ipfs")
        self._running: ManagedNode | None = None

    @property
    def ipfs(self) -> IpfsSettings:
        """Settings for an on-api that uses this node."""
        return IpfsSettings(
            rpc_url=f"http://127.0.0.1:{self.node.rpc_port}",
            gateway_url=f"http://127.0.0.1:{self.node.gateway_port}",
            rpc_auth=SecretStr(RPC_SECRET),
        )

    @property
    def headers(self) -> dict[str, str]:
        """Headers that its RPC requires."""
        return {"Authorization": RPC_SECRET.replace("bearer:", "Bearer ")}

    def car(self, cid: str) -> bytes:
        """Return a whole DAG as a CAR, from its gateway; the blocks prove themselves."""
        answer = httpx.get(
            f"{self.ipfs.gateway_url}/ipfs/{cid}",
            params={"format": "car"},
            headers={"Accept": "application/vnd.ipld.car; version=1; order=dfs; dups=n"},
            timeout=60,
            verify=NO_TLS,
            trust_env=False,
        )
        assert answer.status_code == 200, answer.text
        return answer.content

    def stat(self, cid: str) -> tuple[int, int]:
        """Return the bytes and the number of a DAG's distinct blocks."""
        summary = self._post("dag/stat", {"arg": cid, "progress": "false"}).text.splitlines()[-1]
        return json.loads(summary)["TotalSize"], json.loads(summary)["UniqueBlocks"]

    @property
    def pid(self) -> int:
        """Process id; the node must be running."""
        pid = None if self._running is None else self._running.pid
        assert pid is not None
        return pid

    def start(self) -> None:
        """Run until `stop`; does nothing if it runs already."""
        if self._running is None:
            self._running = ManagedNode(self.home, self.node, RPC_SECRET, print)
            self._running.start()

    def stop(self) -> None:
        """Stop the node; its data stay on disk."""
        if self._running is not None:
            self._running.stop()
            self._running = None

    def add(self, data: bytes, *, pinned: bool = True) -> str:
        """Store a file under the profile, and return its CID."""
        query = {**ADD_OPTIONS, "pin": str(pinned).lower(), "progress": "false"}
        return str(self.rpc("add", query, files={"file": data})["Hash"])

    def add_many(self, files: Sequence[bytes]) -> list[str]:
        """Store small files in one request, unpinned; return their CIDs in order."""
        answer = self._post(
            "add",
            {**ADD_OPTIONS, "pin": "false", "progress": "false"},
            files=[("file", (str(number), data)) for number, data in enumerate(files)],
        )
        return [json.loads(line)["Hash"] for line in answer.text.splitlines()]

    def addresses(self) -> list[str]:
        """Return the addresses that it listens on now."""
        return list(self.rpc("id")["Addresses"])

    def pins(self) -> dict[str, str]:
        """Return the names of all recursive pins, by CID."""
        listed = self.rpc("pin/ls", {"type": "recursive", "names": "true"})
        return {cid: pin["Name"] for cid, pin in listed["Keys"].items()}

    def peers(self) -> set[str]:
        """Return the peer ids that it is connected to."""
        return {peer["Peer"] for peer in self.rpc("swarm/peers")["Peers"] or ()}

    def meet(self, other: Peer) -> None:
        """Connect to another peer."""
        self.rpc("swarm/connect", {"arg": other.addresses()[0]})

    def rpc(
        self, command: str, query: dict[str, str] | None = None, **options: Any
    ) -> dict[str, Any]:
        """Return the answer to one RPC command."""
        return dict(self._post(command, query or {}, **options).json())

    def _post(self, command: str, query: dict[str, str], **options: Any) -> httpx.Response:
        answer = httpx.post(
            f"http://127.0.0.1:{self.node.rpc_port}/api/v0/{command}",
            params=query,
            headers=self.headers,
            timeout=60,
            verify=NO_TLS,
            trust_env=False,
            **options,
        )
        assert answer.status_code == 200, answer.text
        return answer
