"""Stopping a Kubo that a killed on-api has left running on the repo.

Holds how such a Kubo is recognised as ours and asked to stop, and the short requests to a loopback
port that this takes. Ends no process by force: one that can't be asked isn't known to be ours.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from pathlib import Path

from on_api.core.errors import StartupError
from on_api.core.ipfs.daemon.repo import peer_id_of
from on_api.core.ipfs.daemon.whose import lock_holder, rpc_port_of

LOOPBACK = "127.0.0.1"

_POLL_SECONDS = 0.05


def stop_leftover(repo: Path, rpc_auth: str, timeout: float, say: Callable[[str], None]) -> None:
    """Stop a Kubo that a killed on-api has left running on this repo, and wait for its end.

    It is ours only if it answers with the repo's identity to our secret; the secret is sent only to
    the process that holds the repo (`whose.py`). A Kubo that is already shutting down is waited
    for. Raises `StartupError` when the repo isn't free after `timeout` seconds.
    """
    lock = repo / "repo.lock"
    if lock_holder(lock) is None:
        return
    say("waiting for the IPFS node from an earlier run to stop")
    deadline = time.monotonic() + timeout + 1
    asked = False
    while (holder := lock_holder(lock)) is not None:
        if not asked:  # a starting one does not answer yet
            asked = _ask_to_stop(repo, rpc_auth)
        if time.monotonic() >= deadline:
            msg = (
                f"Another program (process {holder}) is still using the IPFS node's repo"
                f" {repo}: stop it, or set ON_API_HOME to another folder."
            )
            raise StartupError(msg)
        time.sleep(_POLL_SECONDS)


def peer_id_at(port: int, rpc_auth: str) -> str | None:
    """Return the identity of the node whose RPC is at this loopback port; None without an
    answer."""
    answer = ask("POST", port, "/api/v0/id", _authorization(rpc_auth))
    if answer is None or answer[0] != http.HTTPStatus.OK:
        return None
    try:
        peer_id: object = json.loads(answer[1])["ID"]
    except (ValueError, KeyError, TypeError):
        return None
    return peer_id if isinstance(peer_id, str) else None


def ask(
    method: str, port: int, path: str, headers: dict[str, str] | None = None
) -> tuple[int, bytes] | None:
    """Send one short request to a loopback port, ignoring proxy settings; return status and body.

    None when no HTTP answer comes within 5 s. At most 64 KiB of the body are read.
    """
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=5)
    try:
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.read(65_536)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _ask_to_stop(repo: Path, rpc_auth: str) -> bool:
    port = rpc_port_of(repo)
    if port is None or peer_id_at(port, rpc_auth) != peer_id_of(repo):
        return False
    answer = ask("POST", port, "/api/v0/shutdown", _authorization(rpc_auth))
    return answer is not None and answer[0] == http.HTTPStatus.OK


def _authorization(rpc_auth: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {rpc_auth.removeprefix('bearer:')}"}
