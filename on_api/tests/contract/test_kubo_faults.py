"""A node that misbehaves: each way has its own error, in bounded time, and nothing is ever
believed."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator

import pytest

from on_api.core.errors import (
    BadCar,
    InsufficientStorage,
    NodeError,
    NodeRefused,
    NodeTimeout,
    NodeTruncated,
    NodeUnavailable,
)
from on_api.core.ipfs.formats.bundle import make_bundle
from on_api.core.ipfs.formats.cid import Cid
from on_api.core.ipfs.formats.unixfs import build_file
from on_api.core.ipfs.kubo.control import KuboNode, authorization, multiaddr_of
from on_api.core.setting_groups import IpfsSettings
from on_api.core.settings import Settings
from on_api.tests.conftest import free_port
from on_api.tests.testing.dags import block_of
from on_api.tests.testing.faulty_node import (
    Exchange,
    begins_and_hangs,
    faulty_node,
    hangs,
    hangs_up,
    line,
    reads_nothing,
    says,
    says_at_once,
    says_with_trailer,
)

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
SMALL = b"hello"
SMALL_CID = build_file(SMALL).cid
LARGE = os.urandom(2 * MIB)
LARGE_ROOT = build_file(LARGE)
PINNED = json.dumps(
    {"Keys": {SMALL_CID: {"Type": "recursive"}, LARGE_ROOT.cid: {"Type": "recursive"}}}
).encode()
NOT_PINNED = json.dumps(
    {"Message": f"path '{SMALL_CID}' is not pinned", "Code": 0, "Type": "error"}
).encode()
GOOD = line(Name="file", Hash=SMALL_CID, Size="5")
ADD, PIN_LS, STAT, GATEWAY = "/api/v0/add", "/api/v0/pin/ls", "/api/v0/files/stat", "/ipfs/"


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    """The bytes in pieces as an upload has them: large ones go to the socket as they are."""
    for start in range(0, len(data), MIB):
        yield data[start : start + MIB]


async def add(paths: dict[str, Exchange], data: bytes = SMALL) -> None:
    """Add to a faulty node, within ten seconds."""
    async with faulty_node(paths) as settings, KuboNode(settings) as node, asyncio.timeout(10):
        await node.add(chunks(data), pin_name="on-api/x/y")


async def read(exchange: Exchange, length: int = 10) -> bytes:
    """Read `length` bytes from offset 5 of a faulty gateway, within ten seconds."""
    async with (
        faulty_node({GATEWAY: exchange}) as settings,
        KuboNode(settings) as node,
        asyncio.timeout(10),
        node.read(SMALL_CID, offset=5, length=length) as body,
    ):
        return b"".join([chunk async for chunk in body])


async def test_the_faulty_node_can_also_be_good() -> None:
    """Else the tests below would prove nothing."""
    await add({ADD: says(GOOD), PIN_LS: says(PINNED)})
    large = line(Name="file", Hash=LARGE_ROOT.cid, Size=str(LARGE_ROOT.dag_size))
    size = json.dumps({"Size": len(LARGE)}).encode()
    await add({ADD: says(large), PIN_LS: says(PINNED), STAT: says(size)}, LARGE)
    ranged = says(b"x" * 10, status="206 P", headers="Content-Range: bytes 5-14/20\r\n")
    assert await read(ranged) == b"x" * 10


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (says(b""), NodeTruncated),
        (says(b"not json\n"), NodeTruncated),
        (says(b"[]\n"), NodeTruncated),
        (says(GOOD[:-5]), NodeTruncated),
        (says(GOOD, length=len(GOOD) + 100), NodeTruncated),
        (says(line(Name="file", Bytes="5")), NodeError),
        (says(line(Name="file", Hash="garbage", Size="5")), NodeTruncated),
        (says(line(Name="file", Hash=LARGE_ROOT.cid, Size="5")), NodeError),
        (says(GOOD + line(Message="unexpected EOF", Type="error")), NodeError),
        (says(b"forbidden", status="403 Forbidden"), NodeRefused),
        (says(b"who?", status="401 Unauthorized"), NodeRefused),
        (says(b"oops", status="500 Internal Server Error"), NodeError),
        (
            says(b'{"Message": "write: no space left on device"}', status="500 X"),
            InsufficientStorage,
        ),
        (says_at_once(b"forbidden", status="403 Forbidden"), NodeRefused),
        (says(b"x" * 200_000), NodeError),
        (says_with_trailer(b"", "unexpected EOF"), NodeTruncated),
        (says_with_trailer(line(Name="file", Bytes="5"), "unexpected EOF"), NodeError),
        (hangs, NodeTimeout),
        (hangs_up, NodeTruncated),
    ],
)
async def test_wrong_answers_to_an_upload(answer: Exchange, error: type[Exception]) -> None:
    """None of them passes for a stored file."""
    with pytest.raises(error):
        await add({ADD: answer, PIN_LS: says(PINNED)})


STORED = line(Stats={"BlockCount": 3, "BlockBytesCount": 300})
IMPORT, BLOCKS = "/api/v0/dag/import", dict(block_of(os.urandom(100)) for _ in range(3))


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (says(STORED), None),
        (says(b""), NodeTruncated),
        (says(b"not json\n"), NodeTruncated),
        (says(line(Stats={"BlockCount": 2})), NodeTruncated),
        (says_with_trailer(b"", "unexpected EOF"), NodeTruncated),
        (says(line(Message='import failed at block "bafkqaaa": x'), status="500 X"), BadCar),
        (says(line(Message="write: no space left on device"), status="500 X"), InsufficientStorage),
        (says_at_once(b"forbidden", status="403 Forbidden"), NodeRefused),
        (hangs, NodeTimeout),
        (reads_nothing, NodeTimeout),
        (hangs_up, NodeTruncated),
    ],
)
async def test_wrong_answers_to_blocks(answer: Exchange, error: type[Exception] | None) -> None:
    """None of them passes for stored blocks; the first one is right."""

    async def arriving() -> AsyncIterator[tuple[Cid, bytes]]:
        for each in BLOCKS.items():
            yield each

    async with faulty_node({IMPORT: answer}) as settings, KuboNode(settings) as node:
        async with asyncio.timeout(10):
            if error is None:
                assert (await node.import_blocks(arriving())).blocks == 3
                return
            with pytest.raises(error):
                await node.import_blocks(arriving())


BUNDLE = make_bundle(list(BLOCKS.items()), bytes(16))
BUNDLED = says(line(Stats={"BlockCount": 4}))
PINNED_IT = says(line(Pins=[str(BUNDLE.cid)]))


@pytest.mark.parametrize(
    ("stored", "pinned", "error"),
    [
        (BUNDLED, PINNED_IT, None),
        (says(line(Stats={"BlockCount": 3})), PINNED_IT, NodeTruncated),
        (BUNDLED, says(b""), NodeTruncated),
        (BUNDLED, says(line(Pins=[SMALL_CID])), NodeTruncated),
        (BUNDLED, says(line(Message="x", Type="error"), status="500 X"), NodeError),
        (BUNDLED, says_with_trailer(b"", "unexpected EOF"), NodeTruncated),
        (BUNDLED, hangs_up, NodeTruncated),
    ],
)
async def test_wrong_answers_to_a_bundle(
    stored: Exchange, pinned: Exchange, error: type[Exception] | None
) -> None:
    """Stored and not pinned is not stored; the first answer is right."""
    async with (
        faulty_node({IMPORT: stored, "/api/v0/pin/add": pinned}) as settings,
        KuboNode(settings) as node,
        asyncio.timeout(10),
    ):
        if error is None:
            await node.store_bundle(BUNDLE, pin_name="on-api/x/y")
            return
        with pytest.raises(error):
            await node.store_bundle(BUNDLE, pin_name="on-api/x/y")


async def test_a_node_that_stops_taking_bytes() -> None:
    """The stall time-out ends it, though more is to be sent."""
    with pytest.raises(NodeTimeout):
        await add({ADD: reads_nothing}, os.urandom(32 * MIB))


async def test_a_node_that_leaves_a_large_upload() -> None:
    """In the middle, with more to be sent."""
    with pytest.raises(NodeTruncated):
        await add({ADD: hangs_up}, os.urandom(32 * MIB))


async def test_a_slow_client_is_not_the_nodes_fault() -> None:
    """The node's clock does not run while we wait for the client."""

    async def slow() -> AsyncIterator[bytes]:
        yield SMALL[:2]
        await asyncio.sleep(1)  # twice the stall time-out: the thing under test
        yield SMALL[2:]

    paths = {ADD: says(GOOD), PIN_LS: says(PINNED)}
    async with faulty_node(paths) as settings, KuboNode(settings) as node, asyncio.timeout(10):
        added = await node.add(slow(), pin_name="on-api/x/y")
    assert added.cid == SMALL_CID


@pytest.mark.parametrize(
    "pin", [says(NOT_PINNED, status="500 Internal Server Error"), says(b'{"Keys": {}}')]
)
async def test_added_but_not_pinned_is_not_stored(pin: Exchange) -> None:
    """Kubo tells that pinning failed only in a trailer: so it is asked."""
    with pytest.raises(NodeError, match="did not pin"):
        await add({ADD: says(GOOD), PIN_LS: pin})


@pytest.mark.parametrize("size", [len(LARGE) - 1, 0])
async def test_a_root_that_states_another_size(size: int) -> None:
    """A large file is what was sent only when its root says so."""
    large = line(Name="file", Hash=LARGE_ROOT.cid, Size="1")
    stat = says(json.dumps({"Size": size}).encode())
    with pytest.raises(NodeTruncated):
        await add({ADD: says(large), PIN_LS: says(PINNED), STAT: stat}, LARGE)


@pytest.mark.parametrize("pin", [hangs, hangs_up, says(b"garbage"), says(b"no", status="403 F")])
async def test_a_verification_that_fails_is_a_failure(pin: Exchange) -> None:
    """What could not be verified is not answered as stored."""
    with pytest.raises(NodeError):
        await add({ADD: says(GOOD), PIN_LS: pin})


RANGE = "Content-Range: bytes 5-14/20\r\n"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (says(b"x" * 10), NodeError),  # 200 where 206 was asked
        (says(b"x" * 10, status="206 P", headers="Content-Range: bytes 0-9/20\r\n"), NodeError),
        (says(b"x" * 9, status="206 P", headers=RANGE), NodeError),
        (says(b"x" * 7, status="206 P", headers=RANGE, length=10), NodeTruncated),
        (says(b"gone", status="404 Not Found"), NodeError),
        (says(b"later", status="504 Gateway Timeout"), NodeTimeout),
        (says(b"no", status="403 Forbidden"), NodeRefused),
        (says(b"", status="301 M", headers="Location: http://127.0.0.1:1/\r\n"), NodeError),
        (begins_and_hangs(b"xxx", length=10, headers=RANGE, status="206 P"), NodeTimeout),
        (hangs, NodeTimeout),
        (hangs_up, NodeTruncated),
    ],
)
async def test_wrong_answers_to_a_download(answer: Exchange, error: type[Exception]) -> None:
    """Never a short body that looks complete."""
    with pytest.raises(error):
        await read(answer)


@pytest.mark.parametrize("answer", [hangs, hangs_up, says(b"garbage"), says(b"", status="500 X")])
async def test_wrong_answers_to_questions(answer: Exchange) -> None:
    """The control plane too: an error of ours, and the node object works on."""
    async with faulty_node({"/api/": answer}) as settings, KuboNode(settings) as node:
        for _ in range(2):
            for ask in (node.version, node.peer_id, node.peer_count, node.repo_stat):
                async with asyncio.timeout(5):
                    with pytest.raises(NodeError):
                        await ask()


async def test_nobody_is_there() -> None:
    """Refused connections are 503 on every way."""
    url = f"http://127.0.0.1:{free_port()}"
    settings = Settings(_env_file=None, ipfs=IpfsSettings(rpc_url=url, gateway_url=url))
    async with KuboNode(settings) as node:
        with pytest.raises(NodeUnavailable):
            await node.version()
        with pytest.raises(NodeUnavailable):
            await node.add(chunks(SMALL), pin_name="on-api/x/y")
        with pytest.raises(NodeUnavailable):
            async with node.read(SMALL_CID, offset=0, length=1):
                pass


async def test_an_untested_version_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    """With both versions in the line; never a crash."""
    future = says(json.dumps({"Version": "0.99.1+git"}).encode())
    async with faulty_node({"/api/": future}) as settings, KuboNode(settings) as node:
        for _ in range(2):
            version = await node.version()
            assert (version.version, version.tested) == ("0.99.1+git", False)
    warnings = [record.getMessage() for record in caplog.records]
    assert len([w for w in warnings if "0.99.1+git" in w and ">=0.43.0" in w]) == 1


def test_addresses_and_secrets_are_spelt_as_the_node_wants_them() -> None:
    """URLs become multiaddrs, Kubo's secrets become headers."""
    assert multiaddr_of("http://127.0.0.1:5001") == "/ip4/127.0.0.1/tcp/5001/http"
    assert multiaddr_of("https://kubo.example") == "/dns/kubo.example/tcp/443/https"
    assert multiaddr_of("http://[::1]:5001") == "/ip6/::1/tcp/5001/http"
    assert authorization(None) is None
    assert authorization("bearer:abc") == "Bearer abc"
    assert authorization("basic:user:pass:word") == "Basic dXNlcjpwYXNzOndvcmQ="
    assert authorization("abc") == "Bearer abc"
