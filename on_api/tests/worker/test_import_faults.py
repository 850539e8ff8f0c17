"""Sources and gateways that fail: each import ends, and says why; what can be moved is."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from anyio import to_thread

from on_api.core.ipfs.formats.car import car_header, car_section
from on_api.core.ipfs.formats.cid import Cid
from on_api.core.ipfs.formats.unixfs import DagNode, build_file
from on_api.core.setting_groups import ImportsSettings, PinsSettings, WorkerSettings
from on_api.tests.conftest import Account, DatabaseMaker, Kubo, Server, make_settings
from on_api.tests.testing.foreign import HTML, Asked, Reply, says, service
from on_api.tests.testing.migration import ask, look, over, report_of

pytestmark = pytest.mark.anyio

TOKEN = "a-token-of-somebody"
SOMEBODY = "12D3KooWJ59N9z5CyLTtcUvzuRQDdGMbGRsUGv4zGbGKGN1Vdzpa"
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def here(
    kubo: Kubo, sqlite_database: DatabaseMaker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """An on-api that calls loopback, and gives up soon."""
    settings = make_settings(
        tmp_path_factory.mktemp("here"),
        sqlite_database(),
        ipfs=kubo.ipfs,
        pins=PinsSettings(deadline=60, patience=30),
        worker=WorkerSettings(poll=0.1, lease_seconds=5),
        imports=ImportsSettings(
            allow_private=True, retries=1, longest_pause=0.1, read_timeout=2, patience=5
        ),
    )
    with Server(settings) as running:
        yield running


@pytest.fixture
def ada(here: Server) -> Iterator[Account]:
    """Who imports."""
    account = here.new_user()
    with account.client:
        yield account


async def imported(account: Account, **body: Any) -> dict[str, Any]:
    """An import at its end, with its report; in a thread, since the source runs on this loop."""

    def run() -> dict[str, Any]:
        done = over(account, ask(account, **body, start=True)["id"])
        return {**done, "report": report_of(account, done["id"])}

    return await to_thread.run_sync(run)


def a_pin(number: int, cid: str) -> dict[str, Any]:
    """As a Pinning Service shows one."""
    return {
        "requestid": str(number),
        "status": "pinned",
        "created": f"2024-01-01T00:00:{number:02}.000Z",
        "pin": {"cid": cid, "name": f"pin {number}"},
        "delegates": [
            "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWJ59N9z5CyLTtcUvzuRQDdGMbGRsUGv4zGbGKGN1Vdzpa"
        ],
    }


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (says({}, "401 No"), "rejected the credentials"),
        (says({}, "500 Oh"), "500"),
        (says({}, "429 Wait", Retry_After="1"), "limiting the request rate"),
        (HTML, "not valid JSON"),
        (Reply(b'{"count": 5, "resu', length=500), "source"),
        (says({"count": 5, "results": []}), "source"),
        (Reply(hangs=True), "source"),
    ],
)
async def test_a_source_that_fails(ada: Account, reply: Reply, words: str) -> None:
    """The import has failed, names the reason, and moved nothing; the token is told to nobody."""
    async with service(lambda _: reply) as source:
        done = await imported(
            ada, source={"kind": "pinning_api", "endpoint": source.url, "token": TOKEN}
        )
    assert (done["status"], done["total"], done["done"]) == ("failed", 0, 0)
    assert words in done["error"]
    assert done["error"] in done["report"]["verdict"]
    assert TOKEN not in str(done)


async def test_a_source_that_fails_half_way(ada: Account) -> None:
    """Its token expires between two pages: nothing is moved of half a list."""
    cids = [build_file(os.urandom(9)).cid for _ in range(3)]

    def answer(asked: Asked) -> Reply:
        if "before" in asked.query:
            return says({}, "401 No")
        rows = [a_pin(number, cid) for number, cid in enumerate(cids)]
        return says({"count": 50, "results": list(reversed(rows))})

    async with service(answer) as source:
        done = await imported(
            ada, source={"kind": "pinning_api", "endpoint": source.url, "token": TOKEN}
        )
    assert done["status"] == "failed"
    assert "rejected the credentials" in done["error"]
    assert done["done"] == 0


def car_of(file: DagNode, *, root: str | None = None) -> bytes:
    """A whole file as a gateway sends it."""
    sections = [car_section(Cid.from_text(node.cid), node.block) for node in file.walk()]
    return car_header(Cid.from_text(root or file.cid)) + b"".join(sections)


async def test_a_gateway_that_lies(ada: Account) -> None:
    """A wrong block, a CAR that is cut each time, another root, and nothing at all: each named, and
    what is good beside them is moved. Nothing that wasn't verified is pinned."""
    good, wrong, cut, other, missing = (build_file(os.urandom(3 * MIB)) for _ in range(5))

    def answer(asked: Asked) -> Reply:
        cid = asked.path.removeprefix("/ipfs/")
        kind = {"Content-Type": "application/vnd.ipld.car; version=1"}
        if cid == wrong.cid:
            whole = bytearray(car_of(wrong))
            whole[-1] ^= 1
            return Reply(bytes(whole), headers=kind)
        if cid == cut.cid:
            return Reply(car_of(cut)[: -2 * MIB], headers=kind)
        if cid == other.cid:
            return Reply(car_of(good), headers=kind)
        if cid == good.cid:
            return Reply(car_of(good), headers=kind)
        return Reply(status="404 Not Found")

    files = {"wrong": wrong, "cut": cut, "other": other, "missing": missing, "good": good}
    text = "".join(f"{file.cid} {name}\n" for name, file in files.items())
    async with service(answer) as gateway:
        done = await imported(
            ada,
            source={"kind": "cids", "text": text},
            route="gateway",
            gateway_url=gateway.url,
        )
    assert (done["status"], done["done"], done["failed"]) == ("done", 1, 4)
    items = {item["name"]: item for item in done["report"]["items"]}
    assert "wrong block" in items["wrong"]["reason"]
    assert items["cut"]["reason"]
    assert "different root" in items["other"]["reason"]
    assert "does not have" in items["missing"]["reason"]
    assert (items["good"]["route"], items["good"]["verified"]) == ("gateway", True)
    pins = ada.client.get("/v1/pins").json()
    assert [pin["pin"]["cid"] for pin in pins["results"]] == [good.cid]
    for name in ("wrong", "cut", "other", "missing"):
        assert files[name].cid in done["report"]["verdict"]


async def test_auto_goes_to_the_gateway(ada: Account) -> None:
    """Where IPFS brings nothing; and says both reasons where the gateway has nothing either."""
    good, missing = build_file(os.urandom(2 * MIB)), build_file(os.urandom(100))

    def answer(asked: Asked) -> Reply:
        if asked.path.endswith(good.cid):
            return Reply(car_of(good), headers={"Content-Type": "application/vnd.ipld.car"})
        return Reply(status="404 Not Found")

    async with service(answer) as gateway:
        done = await imported(
            ada,
            source={"kind": "cids", "text": f"{good.cid}\n{missing.cid}\n"},
            gateway_url=gateway.url,
        )
    first, second = done["report"]["items"]
    assert (first["status"], first["route"]) == ("done", "gateway")
    assert "no peers" in second["reason"]
    assert "From the gateway:" in second["reason"]


async def test_cancelled_and_paused_under_way(here: Server, ada: Account) -> None:
    """A fetch that hangs ends at once; nothing is left reserved, and a pause can be ended."""
    slow = build_file(os.urandom(2 * MIB))
    nodes = {node.cid: node for node in slow.walk()}
    hangs = True

    def answer(asked: Asked) -> Reply:
        # Its root may have come before: then a child of it is asked for.
        car = car_of(nodes[asked.path.removeprefix("/ipfs/")])
        kind = {"Content-Type": "application/vnd.ipld.car"}
        if not hangs:
            return Reply(car, headers=kind)
        return Reply(car[:MIB], headers=kind, length=len(car), pieces=(b"",), pause=60)

    source = {"kind": "cids", "text": f"{slow.cid} slow\n"}
    async with service(answer) as gateway:
        how = {"route": "gateway", "gateway_url": gateway.url, "start": True}
        asked = await to_thread.run_sync(partial(ask, ada, source=source, **how))

        def fetching(times: int) -> bool:
            return len(gateway.asked) >= times

        await until_async(lambda: fetching(1))
        url = f"/v1/imports/{asked['id']}"
        paused = await to_thread.run_sync(ada.client.post, f"{url}/pause")
        assert paused.json()["status"] == "paused"
        items = (await to_thread.run_sync(ada.client.get, f"{url}/items")).json()["items"]
        assert items[0]["status"] == "waiting"
        await to_thread.run_sync(ada.client.post, f"{url}/start")
        await until_async(lambda: fetching(2))
        cancelled = await to_thread.run_sync(ada.client.post, f"{url}/cancel")
        assert cancelled.json()["status"] == "cancelled"
        hangs = False
        await to_thread.run_sync(ada.client.post, f"{url}/start")
        done = await to_thread.run_sync(over, ada, asked["id"])
        assert (done["status"], done["done"]) == ("done", 1)
    assert look(ada, asked["id"])["bytes_under_way"] == 0


async def until_async(condition: Callable[[], bool]) -> None:
    """Wait without holding the loop up."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)
