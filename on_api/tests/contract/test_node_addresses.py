"""A node under any URL that means it: downloads come as bytes, never as a redirect or an error."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from on_api.core.ipfs.gateway_client.gateway import NodeGateway
from on_api.core.ipfs.kubo.control import KuboNode
from on_api.core.services.upkeep.readiness import gateway_problem
from on_api.core.setting_groups import IpfsSettings
from on_api.core.settings import Settings
from on_api.tests.conftest import DatabaseMaker, Server, make_settings
from on_api.tests.testing.foreign import Asked, Reply, says, service
from on_api.tests.testing.processes import Home
from on_api.tests.testing.strangers import StrangeKubo, strange_kubo

pytestmark = pytest.mark.anyio

DATA = b"as it is"


def has_ipv6() -> bool:
    """Whether this machine has an IPv6 loopback."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def kubo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StrangeKubo]:
    """One with its gateway as Kubo has it by itself: it redirects `localhost`."""
    with strange_kubo(tmp_path_factory.mktemp("kubo"), ipv6=has_ipv6()) as running:
        yield running


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "LOCALHOST", "[::1]"])
@pytest.mark.parametrize("ending", ["", "/"])
async def test_a_kubo_as_it_is_by_itself(kubo: StrangeKubo, host: str, ending: str) -> None:
    """RPC and gateway by name and by both kinds of address."""
    if host == "[::1]" and not has_ipv6():
        pytest.skip("no IPv6 on this machine")
    cid = kubo("add", "-Q", "--cid-version=1", "--raw-leaves", data=DATA)
    urls = {name: url + ending for name, url in kubo.urls(host).items()}
    settings = Settings(_env_file=None, ipfs=IpfsSettings.model_validate(urls))
    gateway = NodeGateway(settings)
    try:
        answer = await gateway.ask("GET", f"/ipfs/{cid}", "", [])
        assert (answer.status, answer.whole) == (200, DATA)
    finally:
        await gateway.close()
    async with KuboNode(settings) as node:
        async with node.read(cid, offset=0, length=len(DATA)) as chunks:
            assert b"".join([chunk async for chunk in chunks]) == DATA
        assert await node.block(cid) == DATA
        assert await gateway_problem(node) is None
        assert await node.peer_id() == kubo.peer_id
        assert await node.pin_status(cid) is not None


def test_downloads_when_the_url_says_localhost(
    kubo: StrangeKubo, sqlite_database: DatabaseMaker, tmp_path: Path
) -> None:
    """By content, by the gateway, small and large."""
    settings = make_settings(
        tmp_path, sqlite_database(), ipfs=IpfsSettings.model_validate(kubo.urls("localhost"))
    )
    with Server(settings) as server:
        user = server.new_user()
        with user.client as client:
            for data in (b"small", bytes(3 * 2**20)):
                file = user.upload(data)
                for path in (f"/v1/files/{file['id']}/content", f"/ipfs/{file['cid']}"):
                    answer = client.get(path)
                    assert (answer.status_code, answer.content) == (200, data)
            assert client.get("/readyz").status_code == 200


async def test_a_path_in_front_and_a_name_that_only_a_proxy_knows() -> None:
    """The path stays before every request; the gateway is asked as an address."""

    def answer(asked: Asked) -> Reply:
        if asked.path.endswith("/version"):
            return says({"Version": "0.43.0"})
        if asked.path.endswith("/pin/ls"):
            return says({"Keys": {}})
        return Reply(b"")

    async with service(answer) as proxy:
        base = f"http://localhost:{proxy.port}"
        settings = Settings(
            _env_file=None,
            ipfs=IpfsSettings(rpc_url=f"{base}/rpc/api/v0/", gateway_url=f"{base}/gw/ipfs/"),
        )
        async with KuboNode(settings) as node:
            assert (await node.version()).version == "0.43.0"
            assert await node.pin_status("bafkqaaa") is None
            assert await node.block("bafkqaaa") == b""
    assert proxy.paths() == ["/rpc/api/v0/version", "/rpc/api/v0/pin/ls", "/gw/ipfs/bafkqaaa"]
    assert [each.headers["host"] for each in proxy.asked] == [
        f"localhost:{proxy.port}",
        f"localhost:{proxy.port}",
        f"127.0.0.1:{proxy.port}",
    ]


@pytest.mark.parametrize(
    "reply",
    [
        Reply(b"", "301 Moved Permanently", {"Location": "http://bafkqaaa.ipfs.localhost/"}),
        Reply(b"", "502 Bad Gateway"),
        Reply(b"", "404 Not Found"),
        Reply(b"<html>"),
    ],
    ids=["redirect", "502", "404", "page"],
)
async def test_a_gateway_that_is_none(
    reply: Reply, kubo: StrangeKubo, sqlite_database: DatabaseMaker, tmp_path: Path
) -> None:
    """`/readyz` and doctor say so, while the RPC is well."""
    import anyio

    home = Home(tmp_path / "home")

    def look(gateway_url: str) -> None:
        rpc_url = kubo.urls()["rpc_url"]
        ipfs = IpfsSettings(rpc_url=rpc_url, gateway_url=gateway_url)
        settings = make_settings(tmp_path, sqlite_database(), ipfs=ipfs)
        with Server(settings) as server, server.client() as client:
            ready = client.get("/readyz")
        assert ready.status_code == 503
        checks = {each["name"]: each["ok"] for each in ready.json()["checks"]}
        assert (checks["node"], checks["gateway"]) == (True, False)
        home.extra |= {"ON_API_IPFS__RPC_URL": rpc_url, "ON_API_IPFS__GATEWAY_URL": gateway_url}
        done = home.run("doctor", "--json")
        found = {each["name"]: each for each in json.loads(done.stdout)}
        assert found["node"]["verdict"] == "ok"
        assert found["gateway"]["verdict"] == "broken"
        assert "ON_API_IPFS__GATEWAY_URL" in found["gateway"]["cure"]

    async with service(lambda _: reply) as other:
        await anyio.to_thread.run_sync(look, other.url)
