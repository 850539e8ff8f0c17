"""The repo of the Kubo node that on-api runs: creating it, and keeping its config as on-api needs
it.

Holds the wanted configuration (as plain data) and the safe writing of it. Starts no daemon and
speaks no HTTP. The caller of `prepare_repo` holds the lock on the home: there is one writer.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from on_api.core.durable_files import sync
from on_api.core.errors import StartupError
from on_api.core.ipfs.daemon.binary import inherited_environment
from on_api.core.ipfs.daemon.kubo_config import (
    is_durable,
    make_durable,
    stores_of,
    value_of,
    with_values,
)
from on_api.core.setting_groups import NodeSettings
from on_api.core.settings import Settings

logger = logging.getLogger(__name__)

RPC_PATHS = (
    "/api/v0/version",
    "/api/v0/id",
    "/api/v0/add",
    "/api/v0/pin/",
    "/api/v0/bitswap/stat",
    "/api/v0/block/stat",
    "/api/v0/files/stat",
    "/api/v0/dag/stat",
    "/api/v0/dag/import",
    "/api/v0/repo/gc",
    "/api/v0/repo/stat",
    "/api/v0/repo/version",
    "/api/v0/swarm/connect",
    "/api/v0/swarm/peers",
    "/api/v0/config/show",
    "/api/v0/shutdown",
)
"""Prefixes of the RPC calls that on-api's secret allows; Kubo refuses every other call."""

INIT_TIMEOUT_SECONDS = 60.0
"""Seconds that `ipfs init` may take; it needs a fraction of one."""

MAX_SOCKET_PATH_BYTES = 100
"""Bytes of a socket's path. No system allows more than 103, some no more than that."""

_OUR_AUTHORIZATION = "API.Authorizations.on-api"

_CONFIG_PREFIX = ".config-"

# Kubo's profile unixfs-v1-2025. on-api sends the same as options with each `add`, where options
# exist: the HAMT size estimation has none and holds only by being here.
_UNIXFS_V1_2025: dict[str, object] = {
    "Import.CidVersion": 1,
    "Import.UnixFSRawLeaves": True,
    "Import.UnixFSChunker": "size-1048576",
    "Import.HashFunction": "sha2-256",
    "Import.UnixFSFileMaxLinks": 1024,
    "Import.UnixFSDirectoryMaxLinks": 0,
    "Import.UnixFSHAMTDirectoryMaxFanout": 256,
    "Import.UnixFSHAMTDirectorySizeThreshold": "256KiB",
    "Import.UnixFSHAMTDirectorySizeEstimation": "block",
    "Import.UnixFSDAGLayout": "balanced",
}

_GATEWAY: dict[str, object] = {
    "Gateway.NoFetch": True,
    "Gateway.NoDNSLink": True,
    "Gateway.ExposeRoutingAPI": False,
    "Gateway.DisableHTMLErrors": True,
    # Without this entry http://localhost:PORT/ipfs/CID answers a redirect to CID.ipfs.localhost.
    "Gateway.PublicGateways.localhost": {"Paths": ["/ipfs", "/ipns"], "UseSubdomains": False},
    # Kubo's 30 s also count while a reader pauses: the answer is cut in its middle (measured). This
    # gateway waits for no network (NoFetch); on-api has deadlines of its own for both sides.
    "Gateway.RetrievalTimeout": "0s",
    # Kubo cuts any answer after 1 h by default, however well it flows; 0 would mean that default.
    "Gateway.MaxRequestDuration": "168h",
}


def gateway_socket(repo: Path) -> Path | None:
    """Return the Unix socket at which the node's gateway listens besides its port: TCP is half of
    the kernel's work for a small answer.

    None where the path is too long for a socket, or the system has no Unix sockets. It reveals no
    more than the port, which every user of this machine can reach.
    """
    path = repo.absolute() / "gateway.sock"
    try:
        length = len(str(path).encode())
    except UnicodeEncodeError:  # Kubo's config is UTF-8
        return None
    return path if hasattr(socket, "AF_UNIX") and length <= MAX_SOCKET_PATH_BYTES else None


def own_gateway_socket(settings: Settings) -> Path | None:
    """Return the gateway's Unix socket of the node that on-api runs itself, or None."""
    return gateway_socket(settings.home / "ipfs") if settings.manages_node else None


def wanted_config(
    settings: NodeSettings, rpc_auth: str, socket_path: Path | None = None
) -> dict[str, object]:
    """Return what on-api needs in the node's config file, as dotted key → value.

    Both networks set the same keys, so that switching from one to the other leaves none of the old
    values. Keys not named here stay the operator's. The datastore's layout is not among them: it is
    fixed when the repo is created.
    """
    gateway = [f"/ip4/127.0.0.1/tcp/{settings.gateway_port}"]
    if socket_path is not None:
        gateway.append(f"/unix/{socket_path}")  # the path begins with a slash of its own
    return {
        "Addresses.API": f"/ip4/127.0.0.1/tcp/{settings.rpc_port}",
        "Addresses.Gateway": gateway,
        _OUR_AUTHORIZATION: {"AuthSecret": rpc_auth, "AllowedPaths": list(RPC_PATHS)},
        "Datastore.StorageMax": settings.storage_max,
        "Discovery.MDNS.Enabled": False,
        "Internal.ShutdownTimeout": f"{settings.shutdown_timeout:g}s",
        "Plugins.Plugins.telemetry.Disabled": True,
        # The owner of this node would pay for the traffic of strangers through it.
        "Swarm.RelayService.Enabled": False,
        **_GATEWAY,
        **_UNIXFS_V1_2025,
        **(_public(settings.swarm_port) if settings.network == "public" else _private()),
    }


def config_differences(actual: Mapping[str, object], settings: NodeSettings) -> list[str]:
    """Return the settings of a node's config that break on-api's promises, each as a sentence with
    the remedy.

    `actual` is the nested object of the config file or of `/api/v0/config/show`. Covers the import
    profile (the same bytes get the same CID on every node), durable writes, and a gateway that
    doesn't fetch.
    """
    stale = stale_keys(actual, wanted_config(settings, rpc_auth=""))
    differences = []
    if profile := [key for key in stale if key in _UNIXFS_V1_2025]:
        differences.append(
            f"The node's settings {', '.join(profile)} differ from the profile unixfs-v1-2025,"
            " so the same files may get different CIDs than on other nodes: run `ipfs config"
            " profile apply unixfs-v1-2025` and restart the node."
        )
    if not is_durable(value_of(actual, "Datastore.Spec")):
        differences.append(
            "The node's block store does not sync its writes, so a power failure can lose"
            ' files that were already acknowledged: set "sync": true for flatfs in'
            " Datastore.Spec (or use pebble) and restart the node."
        )
    if "Gateway.NoFetch" in stale:
        differences.append(
            "The node's gateway fetches any requested content from the network: run `ipfs"
            " config --json Gateway.NoFetch true` and restart the node."
        )
    return differences


def stale_keys(actual: Mapping[str, object], wanted: Mapping[str, object]) -> list[str]:
    """Return the dotted keys of `wanted` that have another value in `actual` (nested), or none."""
    return [key for key, value in wanted.items() if value_of(actual, key) != value]


def prepare_repo(binary: Path, repo: Path, settings: NodeSettings, rpc_auth: str) -> None:
    """Create the repo if there is none, and write the configuration that on-api needs.

    May be killed at any moment and run again: the repo appears complete or not at all, and so does
    each version of its config file. `binary` is Kubo's program, `rpc_auth` the RPC secret like
    `bearer:TOKEN`. Raises `StartupError` when the repo is damaged or can't be written.
    """
    socket_path = gateway_socket(repo) if _takes_sockets(repo.parent) else None
    wanted = wanted_config(settings, rpc_auth, socket_path)
    try:
        if repo.is_symlink():  # renaming onto the link would replace it
            repo = repo.resolve(strict=True)
        _remove_half_made(repo)
        if not (repo / "config").exists():
            if repo.exists() and any(repo.iterdir()):
                raise damaged(repo, "it has no config file")
            _init(binary, repo, wanted)
        config = read_config(repo)
        _check_whole(repo, config)
        if stale_keys(config, wanted):
            _write_config(repo, with_values(config, wanted))
    except OSError as error:
        reason = error.strerror or error
        msg = (
            f"Can't prepare the IPFS node's repo {repo} ({reason}): check disk space and"
            " permissions."
        )
        raise StartupError(msg) from error
    if not is_durable(value_of(config, "Datastore.Spec")):
        # Not changed here: the operator may have a reason for it.
        logger.warning(
            "the IPFS node's repo %s does not sync its writes: a power failure can lose files"
            ' that were already acknowledged (set "sync": true for flatfs in Datastore.Spec'
            " of its config)",
            repo,
        )


def read_config(repo: Path) -> dict[str, object]:
    """Return the repo's config file, which has its private key: for comparing, never for printing.

    Raises `StartupError` when it can't be read or is not a JSON object.
    """
    try:
        config: object = json.loads((repo / "config").read_text("utf-8"))
    except OSError as error:
        msg = f"Can't read the IPFS node's config file {repo / 'config'} ({error.strerror})."
        raise StartupError(msg) from error
    except ValueError as error:
        raise damaged(repo, "its config file is not valid JSON") from error
    if not isinstance(config, dict):
        raise damaged(repo, "its config file is not a JSON object")
    return config


def peer_id_of(repo: Path) -> str:
    """Return the identity in the repo's config. Raises `StartupError` when there is none."""
    peer_id = value_of(read_config(repo), "Identity.PeerID")
    if not isinstance(peer_id, str) or not peer_id:
        raise damaged(repo, "its config file contains no identity")
    return peer_id


def rpc_auth_of(repo: Path) -> str | None:
    """Return the RPC secret in the repo's config, like `bearer:TOKEN`, or None."""
    try:
        secret = value_of(read_config(repo), f"{_OUR_AUTHORIZATION}.AuthSecret")
    except StartupError:  # the start of the node will report it
        return None
    return secret if isinstance(secret, str) else None


def rpc_auth_for(repo: Path) -> str:
    """Return the RPC secret for a node on this repo: the present one, so that a node still running
    on it accepts us, or a new one."""
    return rpc_auth_of(repo) or f"bearer:{secrets.token_hex(32)}"


def kubo_environment(repo: Path) -> dict[str, str]:
    """Return the environment for Kubo's program: without on-api's secrets and without telemetry."""
    return {**inherited_environment(), "IPFS_PATH": str(repo), "IPFS_TELEMETRY": "off"}


def damaged(repo: Path, what: str) -> StartupError:
    """Return the error for a repo that can't be used: where it is, and the two remedies."""
    return StartupError(
        f"The IPFS node's repo {repo} is damaged ({what}): restore it from a backup, or move"
        " it away to start with an empty node."
    )


def _private() -> dict[str, object]:
    """Return values for loopback only: no peers, no lookups, no announcements, no port mapping."""
    return {
        # A free port of the system's choice, so that a Kubo on the same machine can still be a
        # peer.
        "Addresses.Swarm": ["/ip4/127.0.0.1/tcp/0"],
        "AutoConf.Enabled": False,
        "AutoTLS.Enabled": False,
        "Bootstrap": [],
        "DNS.Resolvers": {},
        "HTTPRetrieval.Enabled": False,
        "Ipns.DelegatedPublishers": [],
        "Provide.Enabled": False,
        "Provide.Strategy": "pinned",
        "Routing.DelegatedRouters": [],
        "Routing.Type": "none",
        "Swarm.DisableNatPortMap": True,
        "Swarm.RelayClient.Enabled": False,
    }


def _public(port: int) -> dict[str, object]:
    """Return values for a member of the IPFS network that announces its pins. None is Kubo's
    default."""
    return {
        "Addresses.Swarm": [
            f"/ip4/0.0.0.0/tcp/{port}",
            f"/ip6/::/tcp/{port}",
            f"/ip4/0.0.0.0/udp/{port}/quic-v1",
            f"/ip4/0.0.0.0/udp/{port}/quic-v1/webtransport",
            f"/ip4/0.0.0.0/udp/{port}/webrtc-direct",
            f"/ip6/::/udp/{port}/quic-v1",
            f"/ip6/::/udp/{port}/quic-v1/webtransport",
            f"/ip6/::/udp/{port}/webrtc-direct",
        ],
        "AutoConf.Enabled": True,
        "AutoTLS.Enabled": None,
        "Bootstrap": ["auto"],
        "DNS.Resolvers": {".": "auto"},
        "HTTPRetrieval.Enabled": True,
        "Ipns.DelegatedPublishers": ["auto"],
        "Provide.Enabled": True,
        "Provide.Strategy": "pinned",
        "Routing.DelegatedRouters": ["auto"],
        "Routing.Type": "auto",
        "Swarm.DisableNatPortMap": False,
        "Swarm.RelayClient.Enabled": True,
    }


def _init(binary: Path, repo: Path, wanted: Mapping[str, object]) -> None:
    """Create the repo beside its place and move it there when it is complete and on disk."""
    draft = Path(tempfile.mkdtemp(prefix=_init_prefix(repo), dir=repo.parent))
    try:
        made = subprocess.run(
            [binary, "init"],
            env=kubo_environment(draft),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INIT_TIMEOUT_SECONDS,
            check=False,
        )
        if made.returncode != 0:
            lines = (made.stderr.strip() or made.stdout.strip()).splitlines()
            msg = f"`{binary} init` failed ({lines[-1] if lines else made.returncode})."
            raise StartupError(msg)
        config = read_config(draft)
        make_durable(value_of(config, "Datastore.Spec"))
        _write_config(draft, with_values(config, wanted))
        for path in (*draft.rglob("*"), draft):
            sync(path)
        draft.rename(repo)
        sync(repo.parent)
    except subprocess.TimeoutExpired as error:
        msg = f"`{binary} init` did not finish within {INIT_TIMEOUT_SECONDS:g} s."
        raise StartupError(msg) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _takes_sockets(folder: Path) -> bool:
    """Return whether a Unix socket can be bound in this folder: some file systems refuse, and then
    Kubo wouldn't start."""
    path = folder.absolute() / ".socket"
    try:
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as tried:
            tried.bind(str(path))
        path.unlink()
    except (OSError, ValueError, AttributeError):
        return False
    return True


def _init_prefix(repo: Path) -> str:
    return f".{repo.name}.init-"


def _remove_half_made(repo: Path) -> None:
    """Remove the drafts that a killed on-api has left behind."""
    for draft in repo.parent.glob(f"{_init_prefix(repo)}*"):
        shutil.rmtree(draft, ignore_errors=True)
    for draft in repo.glob(f"{_CONFIG_PREFIX}*"):
        draft.unlink(missing_ok=True)


def _check_whole(repo: Path, config: Mapping[str, object]) -> None:
    """Raise `StartupError` for a repo whose blocks or index are gone: Kubo would create empty ones
    and start as if new."""
    stores = stores_of(value_of(config, "Datastore.Spec"))
    names = [path for store in stores if isinstance(path := store.get("path"), str)]
    for name in ("version", "datastore_spec", *names):
        if not (repo / name).exists():
            raise damaged(repo, f"`{name}` is missing")


def _write_config(repo: Path, config: Mapping[str, object]) -> None:
    """Replace the config file atomically, mode 0600: it holds a private key and the RPC secret."""
    descriptor, name = tempfile.mkstemp(prefix=_CONFIG_PREFIX, dir=repo)  # made with 0600
    draft = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(config, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(repo / "config")
        sync(repo)
    finally:
        draft.unlink(missing_ok=True)
