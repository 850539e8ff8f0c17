"""No call and no secret goes to a node but the one that is expected: every method of the port,
against a real stranger and against listeners that say what they like."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
from pydantic import SecretStr

from on_api.core.errors import NodeError, NodeRefused, WrongNode
from on_api.core.ipfs.daemon.process import ManagedNode
from on_api.core.ipfs.formats.bundle import make_bundle
from on_api.core.ipfs.formats.cid import Cid
from on_api.core.ipfs.kubo.control import KuboNode
from on_api.core.ipfs.kubo.identity import AnyNode, NodeIdentity
from on_api.core.models import Database
from on_api.core.services.accounts.audit import COMMAND_LINE
from on_api.core.services.upkeep import node_adoption
from on_api.core.services.upkeep.node import connect_node
from on_api.core.services.upkeep.node_adoption import RecordedNode
from on_api.core.setting_groups import IpfsSettings, NodeSettings
from on_api.core.settings import Settings
from on_api.tests.conftest import RPC_SECRET, DatabaseMaker, Kubo, free_port, make_settings
from on_api.tests.testing.dags import block_of
from on_api.tests.testing.deadline import until
from on_api.tests.testing.foreign import HTML, Asked, Reply, says, service
from on_api.tests.testing.strangers import Listener, StrangeKubo, listener, strange_kubo

pytestmark = pytest.mark.anyio

TOKEN = RPC_SECRET.removeprefix("bearer:")
OURS = "12D3KooWOurs"


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StrangeKubo]:
    """Somebody's Kubo, with something pinned and something not."""
    with strange_kubo(tmp_path_factory.mktemp("stranger")) as kubo:
        kubo("add", "-q", "--pin=false", data=b"theirs, not pinned")
        kubo("add", "-q", data=b"theirs")
        yield kubo


@pytest.fixture
def settings(sqlite_database: DatabaseMaker, tmp_path: Path) -> Settings:
    """With a database that names another node than any that answers."""
    made = make_settings(tmp_path, sqlite_database())
    database = Database(made)
    with database.session_scope() as session:
        node_adoption.adopt(session, OURS, COMMAND_LINE)
    database.dispose()
    return made


@asynccontextmanager
async def node_at(
    settings: Settings, urls: Mapping[str, str], *, records: bool = True
) -> AsyncIterator[KuboNode]:
    """A client of an external node, and of its gateway at the same place unless it has one."""
    external = IpfsSettings.model_validate(
        {
            "gateway_url": urls["rpc_url"],
            **urls,
            "control_timeout": 5,
            "connect_timeout": 5,
            "rpc_auth": SecretStr(RPC_SECRET),
        }
    )
    database = Database(settings)
    try:
        changed = settings.model_copy(update={"ipfs": external})
        async with connect_node(changed, RecordedNode(database, records=records)) as node:
            yield node
    finally:
        database.dispose()


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    """A body."""
    for each in data:
        yield each


async def blocks(*given: tuple[Cid, bytes]) -> AsyncIterator[tuple[Cid, bytes]]:
    """Blocks to store."""
    for each in given:
        yield each


async def all_of(iterator: AsyncIterator[object]) -> list[object]:
    """A list, read to its end."""
    return [each async for each in iterator]


def calls(node: KuboNode, cid: str) -> Mapping[str, Callable[[], Awaitable[object]]]:
    """Every method of the port that speaks to the RPC."""
    block = block_of(b"a block of ours")
    return {
        "add": lambda: node.add(pieces(b"ours"), pin_name="ours"),
        "pin": lambda: node.pin(cid, name="ours", fetch=False),
        "pin and fetch": lambda: node.pin(cid, name="ours", fetch=True),
        "pin_all": lambda: node.pin_all([cid], name="ours"),
        "unpin": lambda: node.unpin(cid),
        "import_blocks": lambda: node.import_blocks(blocks(block)),
        "store_bundle": lambda: node.store_bundle(make_bundle([block], bytes(16)), pin_name="ours"),
        "connect": lambda: node.connect("/ip4/127.0.0.1/tcp/1/p2p/12D3KooWX"),
        "collect_garbage": node.collect_garbage,
        "dag_stat": lambda: node.dag_stat(cid, fetch=True),
        "dag_stats": lambda: node.dag_stats([cid], seconds=5),
        "pins": lambda: all_of(node.pins()),
        "pin_status": lambda: node.pin_status(cid),
        "addresses": node.addresses,
        "version": node.version,
        "peer_id": node.peer_id,
        "peer_count": node.peer_count,
        "exchanged": node.exchanged,
        "repo_stat": node.repo_stat,
        "config": node.config,
    }


async def test_no_method_asks_another_node(settings: Settings, stranger: StrangeKubo) -> None:
    """Each raises `WrongNode`, and nothing there is changed."""
    cid = stranger("add", "-Q", "--cid-version=1", "--raw-leaves", data=b"both have it")
    before = stranger.state()
    async with node_at(settings, stranger.urls()) as node:
        for call in calls(node, cid).values():
            with pytest.raises(WrongNode, match=OURS):
                await call()
    assert stranger.state() == before


@pytest.mark.parametrize(
    "reply",
    [
        says({"ID": "12D3KooWTheirs"}),
        says({"ID": OURS + "X", "Addresses": None}),
        says({"ID": ["12D3KooWTheirs"]}),
        says(["ID"]),
        HTML,
        Reply(b"", "404 Not Found"),
        Reply(b"", "500 Internal Server Error"),
        Reply(b"", "307 Temporary Redirect", {"Location": "http://127.0.0.1:1/api/v0/id"}),
        Reply(b"ID", length=10),
    ],
    ids=["another", "longer", "no name", "no object", "page", "404", "500", "redirect", "cut"],
)
async def test_the_secret_goes_to_nobody_who_says_another_identity(
    settings: Settings, reply: Reply
) -> None:
    """Who asks for no secret hears none, and is asked for its identity alone."""
    async with service(lambda _: reply) as other, node_at(settings, {"rpc_url": other.url}) as node:
        for call in calls(node, str(block_of(b"x")[0])).values():
            with pytest.raises(NodeError):
                await call()
    assert set(other.paths()) == {"/api/v0/id"}
    assert all("authorization" not in each.headers for each in other.asked)
    assert all(TOKEN not in str(each) for each in other.asked)


async def test_who_hangs_up_hears_no_secret(settings: Settings) -> None:
    """Nor who never answers as HTTP."""
    for answer in (b"", b"SSH-2.0-OpenSSH_9.6\r\n"):
        with listener(answer=answer) as heard:
            async with node_at(settings, {"rpc_url": f"http://127.0.0.1:{heard.port}"}) as node:
                with pytest.raises((NodeError, TimeoutError)):
                    async with asyncio.timeout(2):
                        await node.collect_garbage()
        assert b"POST /api/v0/id " in heard.all_heard
        assert TOKEN.encode() not in heard.all_heard
        assert b"uthorization" not in heard.all_heard


async def test_nothing_goes_where_a_node_sends_it(settings: Settings) -> None:
    """Not even where it is the expected one that sends: a redirect is its error."""
    with listener(answer=b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}") as elsewhere:
        there = {"Location": f"http://127.0.0.1:{elsewhere.port}/api/v0/elsewhere"}

        def answer(asked: Asked) -> Reply:
            if asked.path == "/api/v0/id":
                return says({"ID": OURS})
            return Reply(b"{}", "307 Temporary Redirect", there)

        async with service(answer) as ours, node_at(settings, {"rpc_url": ours.url}) as node:
            asking = calls(node, str(block_of(b"x")[0]))
            for name in asking.keys() - {"peer_id"}:
                with pytest.raises(NodeError):
                    await asking[name]()
            with pytest.raises(NodeError, match="redirect"):
                await node.repo_stat()
    assert elsewhere.heard == []


@pytest.mark.parametrize("status", ["300 Multiple Choices", "302 Found", "304 Not Modified"])
async def test_an_answer_of_300_and_more_is_no_success(settings: Settings, status: str) -> None:
    """Wherever it leads, or nowhere."""

    def answer(asked: Asked) -> Reply:
        if asked.path == "/api/v0/id":
            return says({"ID": OURS})
        return says({"Pins": []}, status)

    async with service(answer) as ours, node_at(settings, {"rpc_url": ours.url}) as node:
        with pytest.raises(NodeError):
            await node.unpin(str(block_of(b"x")[0]))


async def test_the_environment_changes_no_call(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither whom it goes to, by a proxy, nor in whose name, by a `.netrc`."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login them password theirs\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with listener(answer=b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n") as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")

        def answer(asked: Asked) -> Reply:
            return says({"ID": OURS}) if asked.path == "/api/v0/id" else Reply(b"", "500 No")

        async with service(answer) as ours, node_at(settings, {"rpc_url": ours.url}) as node:
            for call in calls(node, str(block_of(b"x")[0])).values():
                with suppress(NodeError):
                    await call()
    assert proxy.heard == []
    proofs = [each for each in ours.asked if "authorization" not in each.headers]
    assert {each.path for each in proofs} == {"/api/v0/id"}
    secrets = {each.headers["authorization"] for each in ours.asked if each not in proofs}
    assert secrets == {f"Bearer {TOKEN}"}
    assert "/api/v0/pin/rm" in ours.paths()


async def test_a_node_that_wants_its_secret_is_asked_with_it(
    sqlite_database: DatabaseMaker, tmp_path: Path, kubo: Kubo
) -> None:
    """The first use records it; another identity in the database refuses it; adopting takes it."""
    settings = make_settings(tmp_path, sqlite_database())
    urls = {"rpc_url": str(kubo.ipfs.rpc_url), "gateway_url": str(kubo.ipfs.gateway_url)}
    async with node_at(settings, urls, records=False) as node:
        with pytest.raises(WrongNode, match="on-api node adopt"):
            await node.version()
    async with node_at(settings, urls) as node:
        peer_id = await node.peer_id()
    async with node_at(settings, urls, records=False) as node:
        assert await node.peer_id() == peer_id
    database = Database(settings)
    with database.session_scope() as session:
        assert node_adoption.adopt(session, OURS, COMMAND_LINE) == peer_id
    async with node_at(settings, urls) as node:
        with pytest.raises(WrongNode, match=peer_id):
            await node.repo_stat()
        with database.session_scope() as session:
            node_adoption.adopt(session, peer_id, COMMAND_LINE)
        assert await node.peer_id() == peer_id  # without a restart
    database.dispose()


async def test_a_server_hears_that_another_node_was_adopted(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another process: the old one is asked for nothing any more, though it never went away."""
    monkeypatch.setattr(node_adoption, "BELIEVED_SECONDS", 0.2)
    database = Database(settings)

    def answer(asked: Asked) -> Reply:
        return says({"ID": OURS} if asked.path == "/api/v0/id" else {"Pins": []})

    cid = str(block_of(b"x")[0])
    async with service(answer) as old, node_at(settings, {"rpc_url": old.url}) as node:

        async def until_refused() -> None:
            async with asyncio.timeout(20):
                while True:
                    await node.unpin(cid)

        await node.unpin(cid)
        with database.session_scope() as session:
            node_adoption.adopt(session, "12D3KooWNew", COMMAND_LINE)
        with pytest.raises(WrongNode, match="12D3KooWNew"):
            await until_refused()
        calls_before = len(old.asked)
        for call in calls(node, cid).values():
            with pytest.raises(WrongNode):
                await call()
        assert {each.path for each in old.asked[calls_before:]} <= {"/api/v0/id"}
    database.dispose()


@pytest.mark.parametrize("database_url", [None, "postgresql://on_api@127.0.0.1:1/on_api"])
@pytest.mark.parametrize("reply", [HTML, Reply(b"", "500 No"), says({"ID": None})])
async def test_questions_about_an_unknown_node_tell_no_secret(
    sqlite_database: DatabaseMaker, tmp_path: Path, reply: Reply, database_url: str | None
) -> None:
    """Neither with a database that names none nor without it, nor when it is to be adopted."""
    async with service(lambda _: reply) as other:
        external = IpfsSettings(
            rpc_url=other.url, gateway_url=other.url, rpc_auth=SecretStr(RPC_SECRET)
        )
        asked_of = make_settings(tmp_path, database_url or sqlite_database(), ipfs=external)
        for opened in (node_adoption.asking(asked_of), connect_node(asked_of)):
            async with opened as node:
                for question in (node.version, node.peer_id, node.config):
                    with pytest.raises(WrongNode):
                        await question()
    assert set(other.paths()) == {"/api/v0/id"}
    assert all("authorization" not in each.headers for each in other.asked)


async def test_an_unknown_node_that_wants_its_secret_hears_it(
    sqlite_database: DatabaseMaker, tmp_path: Path, kubo: Kubo
) -> None:
    """So that it can be looked at, and adopted."""
    asked_of = make_settings(tmp_path, sqlite_database(), ipfs=kubo.ipfs)
    async with node_adoption.asking(asked_of) as node, connect_node(asked_of) as to_adopt:
        assert (await node.version()).agent == "kubo"
        assert await to_adopt.peer_id() == await node.peer_id()


async def test_a_wrong_secret_is_told_as_such(
    sqlite_database: DatabaseMaker, tmp_path: Path, kubo: Kubo
) -> None:
    """By the error that says whose fault it is."""
    settings = make_settings(tmp_path, sqlite_database())
    external = kubo.ipfs.model_copy(update={"rpc_auth": SecretStr("bearer:wrong")})
    database = Database(settings)
    changed = settings.model_copy(update={"ipfs": external})
    async with connect_node(changed, RecordedNode(database, records=True)) as node:
        with pytest.raises(NodeRefused):
            await node.version()
    database.dispose()


def test_a_port_taken_while_our_kubo_is_down(tmp_path: Path) -> None:
    """Who takes the RPC's port between its death and its restart hears nothing of ours."""
    settings = NodeSettings(rpc_port=free_port(), gateway_port=free_port())
    with ManagedNode(tmp_path / "home", settings, RPC_SECRET, print) as node, ExitStack() as stack:
        pid = node.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

        def taken() -> Listener | None:
            try:
                return stack.enter_context(listener(settings.rpc_port))
            except OSError:
                return None

        heard = until(taken, "the port is taken", 30)
        until(lambda: node.restarts >= 2, "on-api has tried to restart it", 60)
    assert heard.heard == []


async def test_a_call_that_comes_as_a_proof_ends_has_one_of_its_own() -> None:
    """Between the end of a proof and what follows of it; the loop goes on meanwhile."""
    later: list[asyncio.Task[object]] = []

    async def ask(_headers: Mapping[str, str]) -> tuple[int, str]:
        await asyncio.sleep(0.01)  # it is a later moment than that at which the proof has begun
        if not later:
            later.append(asyncio.create_task(identity.headers(anew=True)))
        return 200, OURS

    identity = NodeIdentity(AnyNode(), None, ask)
    await identity.headers()
    async with asyncio.timeout(20):
        await later[0]
    await identity.close()
