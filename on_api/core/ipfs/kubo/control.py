"""A Kubo node as `IpfsNode`. Control goes through ipfshttpclient in threads of its own; bytes
through `data.py`, long answers through `pins.py`.

The only module that imports ipfshttpclient.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import Self, TypeVar
from urllib.parse import urlsplit

import requests

from on_api.core.errors import NodeError, NodeRefused, NodeTimeout, NodeUnavailable
from on_api.core.ipfs.daemon.version import TESTED_RANGE, is_tested
from on_api.core.ipfs.formats.bundle import Bundle
from on_api.core.ipfs.formats.cid import Cid
from on_api.core.ipfs.kubo.data import KuboData
from on_api.core.ipfs.kubo.identity import ExpectedNode
from on_api.core.ipfs.kubo.pins import KuboPins
from on_api.core.ipfs.kubo.rpc import NOT_PINNED, KuboHttp
from on_api.core.ipfs.port import Added, DagStat, Exchanged, NodeVersion, RepoStat
from on_api.core.settings import Settings
from on_api.core.streams.blocks import Bytes

# Must be set before the import: it would otherwise patch `requests` for the whole process.
os.environ.setdefault("PY_IPFS_HTTP_CLIENT_PATCH_REQUESTS", "no")
import ipfshttpclient

logger = logging.getLogger(__name__)

CONTROL_THREADS = 8
"""Number of control calls at once; a node that hangs can occupy no more threads than these."""

T = TypeVar("T")


class KuboNode(KuboPins):
    """One Kubo, through its RPC and its gateway. Bound to the event loop of its first call.

    No RPC call is sent before the node has proved to be the `expected` one.
    """

    def __init__(
        self,
        settings: Settings,
        rpc_auth: str | None = None,
        expected: ExpectedNode | None = None,
    ) -> None:
        self._timeout = settings.ipfs.control_timeout
        self._threads = ThreadPoolExecutor(CONTROL_THREADS, thread_name_prefix="on-api-kubo")
        header = authorization(rpc_auth)
        # Never `connect()`: it checks the version against a list that ended in 2021.
        self._client = ipfshttpclient.Client(
            multiaddr_of(settings.rpc_url),
            f"{urlsplit(settings.rpc_url).path}/api/v0".removeprefix("/"),
            session=True,
            timeout=(settings.ipfs.connect_timeout, settings.ipfs.control_timeout),
            headers={} if header is None else {"Authorization": header},
        )
        _keep_to_the_node(self._client)
        super().__init__(KuboHttp(settings, header, expected), settings.ipfs)
        self._data = KuboData(self._http, settings.ipfs, self.pin_status)
        self._warned = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def add(self, source: AsyncIterator[Bytes], *, pin_name: str) -> Added:
        """See `IpfsNode.add`."""
        return await self._data.add(source, pin_name=pin_name)

    def read(
        self, cid: str, *, offset: int, length: int
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """See `IpfsNode.read`."""
        return self._data.read(cid, offset=offset, length=length)

    async def import_blocks(self, blocks: AsyncIterator[tuple[Cid, bytes]]) -> DagStat:
        """See `IpfsNode.import_blocks`."""
        return await self._data.import_blocks(blocks)

    async def store_bundle(self, bundle: Bundle, *, pin_name: str) -> None:
        """See `IpfsNode.store_bundle`."""
        await self._data.store_bundle(bundle, pin_name=pin_name)

    async def unpin(self, cid: str) -> None:
        """See `IpfsNode.unpin`."""
        try:
            await self._ask(lambda: self._client.pin.rm(cid), takes_away=True)
        except NodeError as error:
            if not _says_not_pinned(error):
                raise

    async def version(self) -> NodeVersion:
        """See `IpfsNode.version`. Warns once if on-api was not tested with the version."""
        answer = await self._ask(self._client.version)
        version = str(answer["Version"])
        tested = is_tested(version)
        if not tested and not self._warned:
            self._warned = True
            logger.warning(
                "Kubo %s is outside the range of versions that on-api was tested with (%s)",
                version,
                TESTED_RANGE,
            )
        return NodeVersion("kubo", version, tested)

    async def peer_id(self) -> str:
        """See `IpfsNode.peer_id`."""
        return str((await self._ask(self._client.id))["ID"])

    async def peer_count(self) -> int:
        """See `IpfsNode.peer_count`."""
        return len((await self._ask(self._client.swarm.peers))["Peers"] or ())

    async def exchanged(self) -> Exchanged:
        """See `IpfsNode.exchanged`."""
        answer = await self._ask(self._client.bitswap.stat)
        return Exchanged(sent=int(answer["DataSent"]), received=int(answer["DataReceived"]))

    async def repo_stat(self) -> RepoStat:
        """See `IpfsNode.repo_stat`."""
        # `size-only`: counting the blocks would read the whole store's index.
        answer = await self._ask(lambda: self._client.repo.stat(opts={"size-only": True}))
        return RepoStat(size=int(answer["RepoSize"]), storage_max=int(answer["StorageMax"]))

    async def config(self) -> dict[str, object]:
        """Return the daemon's configuration, without its private key. Specific to Kubo: not part of
        the port."""
        return dict(await self._ask(self._client.config.get))

    async def close(self) -> None:
        """See `IpfsNode.close`."""
        await self._http.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    async def _ask(self, question: Callable[[], T], *, takes_away: bool = False) -> T:
        """Call the client in a thread. Returns the answer or raises a `NodeError`, in bounded
        time."""
        await self._http.identity.headers(anew=takes_away)
        loop = asyncio.get_running_loop()
        try:
            # The client's own timeout is per read; this one is for the whole call, waiting for a
            # thread included.
            async with asyncio.timeout(2 * self._timeout):
                return await loop.run_in_executor(self._threads, question)
        except requests.TooManyRedirects as error:
            raise NodeError(
                f"The IPFS node responded with a redirect, which on-api does not follow ({error})."
            ) from error
        except (TimeoutError, requests.Timeout, ipfshttpclient.exceptions.TimeoutError) as error:
            raise NodeTimeout from error
        except (requests.ConnectionError, ipfshttpclient.exceptions.ConnectionError) as error:
            self._http.identity.distrust()
            raise NodeUnavailable from error
        except ipfshttpclient.exceptions.StatusError as error:
            refused = error.original.response is not None and (
                error.original.response.status_code in {401, 403}
            )
            raise (NodeRefused if refused else NodeError) from error
        except (ipfshttpclient.exceptions.Error, requests.RequestException) as error:
            raise NodeError from error
        except (KeyError, TypeError, ValueError) as error:
            raise NodeError("The IPFS node's response could not be parsed.") from error


def _keep_to_the_node(client: ipfshttpclient.Client) -> None:
    """Restrict the client to the node at the address: no proxy, no password of a `.netrc`, and no
    redirect."""
    # ipfshttpclient creates the session itself, and doesn't expose it.
    session: requests.Session = client._client._session
    # An https node's certificate may need these; `trust_env` would read them as well.
    session.verify = (
        os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
    )
    session.trust_env = False
    session.hooks["response"].append(_refuse_redirect)


def _refuse_redirect(response: requests.Response, **_: object) -> None:
    """Raise `TooManyRedirects` before a redirect is followed, and before its body is read as an
    answer."""
    if 300 <= response.status_code < 400:
        response.close()
        raise requests.TooManyRedirects(f"HTTP {response.status_code}", response=response)


def _says_not_pinned(error: NodeError) -> bool:
    cause = error.__cause__
    return isinstance(cause, ipfshttpclient.exceptions.ErrorResponse) and any(
        words in str(cause) for words in NOT_PINNED
    )


def authorization(rpc_auth: str | None) -> str | None:
    """Return the Authorization header for a secret as Kubo's `API.Authorizations` spells it.

    `bearer:TOKEN` and `basic:USER:PASSWORD`; anything else is sent as a bearer token.
    """
    if rpc_auth is None:
        return None
    kind, _, value = rpc_auth.partition(":")
    if kind == "basic":
        return f"Basic {base64.b64encode(value.encode()).decode()}"
    return f"Bearer {value if kind == 'bearer' else rpc_auth}"


def multiaddr_of(url: str) -> str:
    """Return a URL like `http://127.0.0.1:5001` as ipfshttpclient expects it:
    `/ip4/127.0.0.1/tcp/5001/http`."""
    parts = urlsplit(url)
    host = parts.hostname or "localhost"
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if ":" in host:
        kind = "ip6"
    elif host.replace(".", "").isdigit():
        kind = "ip4"
    else:
        kind = "dns"
    return f"/{kind}/{host}/tcp/{port}/{parts.scheme}"
