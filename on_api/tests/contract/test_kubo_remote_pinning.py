"""A real Kubo uses on-api as its remote pinning service, as `ipfs pin remote` and by its policy."""

from __future__ import annotations

import os
from collections.abc import Iterator

import httpx
import pytest
from pydantic import SecretStr

from on_api.core.ipfs.daemon.process import ManagedNode
from on_api.core.ipfs.formats.cid import normalise
from on_api.core.setting_groups import IpfsSettings, NodeSettings, PinsSettings
from on_api.tests.conftest import (
    RPC_SECRET,
    Account,
    DatabaseMaker,
    Server,
    free_port,
    make_settings,
)
from on_api.tests.testing.deadline import until
from on_api.tests.testing.kubo_client import KuboClient, running_client
from on_api.tests.testing.pins import add_pin, forms_of, list_pins, some_cid
from on_api.tests.testing.plain_http import NO_TLS

EVERY = "--status=queued,pinning,pinned,failed"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KuboClient]:
    """The user's own Kubo; it looks at its policies each second."""
    folder = tmp_path_factory.mktemp("client")
    with running_client(folder, MFS_PIN_POLL_INTERVAL="1s") as running:
        yield running


@pytest.fixture(scope="module")
def service(
    new_database: DatabaseMaker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """An on-api with a node that meets the client, on one machine."""
    home = tmp_path_factory.mktemp("service")
    node = NodeSettings(rpc_port=free_port(), gateway_port=free_port())
    with ManagedNode(home, node, RPC_SECRET, print):
        settings = make_settings(
            home,
            new_database(),
            ipfs=IpfsSettings(
                rpc_url=f"http://127.0.0.1:{node.rpc_port}",
                gateway_url=f"http://127.0.0.1:{node.gateway_port}",
                rpc_auth=SecretStr(RPC_SECRET),
            ),
            pins=PinsSettings(dial_private=True),
        )
        with Server(settings) as running:
            yield running


@pytest.fixture
def erin(service: Server, client: KuboClient) -> Iterator[Account]:
    """Somebody whose Kubo knows on-api as a service with the name of their id.

    The name is never used again: in Kubo 0.43 a service that was removed comes back with the next
    `ipfs config`.
    """
    account = service.new_user()
    client("pin", "remote", "service", "add", account.id, f"{service.url}/v1", account.key)
    with account.client:
        yield account
    client("pin", "remote", "service", "rm", account.id)


def remote(
    client: KuboClient, account: Account, command: str, *options: str
) -> list[dict[str, str]]:
    """`ipfs pin remote …` with somebody's service."""
    return client.lines("pin", "remote", command, f"--service={account.id}", *options)


def test_add_fetches_from_the_client(service: Server, erin: Account, client: KuboClient) -> None:
    """The command waits until it is pinned; the node has the bytes, under the client's own CID."""
    data = os.urandom(3_000_000)
    cid = client("add", "-Q", "--cid-version=0", "--chunker=size-262144", data=data)
    assert cid.startswith("Qm")
    [added] = remote(client, erin, "add", "--name=film.mp4", f"/ipfs/{cid}")
    assert added == {"Status": "pinned", "Cid": cid, "Name": "film.mp4"}
    gateway = service.settings.ipfs.gateway_url
    answer = httpx.get(f"{gateway}/ipfs/{cid}", verify=NO_TLS, trust_env=False)
    assert answer.content == data
    [seen] = list_pins(erin)["results"]
    assert (seen["pin"]["cid"], seen["pin"]["name"]) == (cid, "film.mp4")
    assert int(seen["info"]["dag_size"]) > 3_000_000
    # The same again is another request, and is there at once.
    assert remote(client, erin, "add", "--name=again", cid)[0]["Status"] == "pinned"
    assert len(remote(client, erin, "ls")) == 2


def test_ls_with_every_filter_over_25_pins(erin: Account, client: KuboClient) -> None:
    """Kubo asks for page after page until it has as many as were counted."""
    cids = [str(erin.upload(f"{erin.id} {n}".encode())["cid"]) for n in range(27)]
    for number, cid in enumerate(cids):
        add_pin(erin, cid, name=f"name {number % 3}", meta={"n": str(number)})
    nowhere = some_cid()
    [queued] = remote(client, erin, "add", "--background", "--name=name 0", nowhere)
    assert queued["Status"] in {"queued", "pinning"}

    def found(*options: str) -> list[str]:
        return [pin["Cid"] for pin in remote(client, erin, "ls", *options)]

    assert found() == found("--status=pinned") == cids[::-1]
    assert found(EVERY) == [nowhere, *cids[::-1]]
    assert found("--name=name 1") == cids[1::3][::-1]
    assert found("--name=name 0", EVERY) == [nowhere, *cids[0::3][::-1]]
    assert found("--name=NAME 1") == found("--name=name") == []
    assert found(f"--cid={cids[3]},{cids[7]}") == [cids[7], cids[3]]
    assert found(f"--cid={forms_of(cids[5])['base36']}") == [cids[5]]
    assert found(f"--cid={nowhere}") == []
    assert found(f"--cid={nowhere}", EVERY) == [nowhere]
    assert found(f"--cid={cids[3]}", "--name=name 0", "--status=pinned") == [cids[3]]
    assert found(f"--cid={cids[3]}", "--name=name 1") == []
    services = client.lines("pin", "remote", "service", "ls", "--stat")[0]["RemoteServices"]
    [mine] = [known for known in services if known["Service"] == erin.id]
    assert mine["Stat"]["Status"] == "valid"
    counted = mine["Stat"]["PinCount"]
    assert counted["Pinned"] == 27
    assert counted["Queued"] + counted["Pinning"] + counted["Failed"] == 1


def test_rm(erin: Account, client: KuboClient) -> None:
    """One by its CID or name; several only by force."""
    cids = [str(erin.upload(f"{erin.id} {n}".encode())["cid"]) for n in range(12)]
    for number, cid in enumerate(cids):
        add_pin(erin, cid, name=f"name {number % 2}")
    client("pin", "remote", "rm", f"--service={erin.id}", f"--cid={cids[0]}")
    assert list_pins(erin)["count"] == 11
    refused = client.run("pin", "remote", "rm", f"--service={erin.id}", "--name=name 1")
    assert refused.returncode != 0
    assert list_pins(erin)["count"] == 11
    client("pin", "remote", "rm", f"--service={erin.id}", "--name=name 1", "--force")
    assert [pin["Cid"] for pin in remote(client, erin, "ls")] == cids[2::2][::-1]
    client("pin", "remote", "rm", f"--service={erin.id}", "--force")
    assert remote(client, erin, "ls", EVERY) == []


def test_errors_reach_the_person(service: Server, erin: Account, client: KuboClient) -> None:
    """A key that is none, and one that may only read."""
    for name, key, said in (
        (f"wrong {erin.id}", "purposefullyInvalid", "UNAUTHORIZED"),
        (f"reader {erin.id}", erin.make_key("pins:read"), "INSUFFICIENT_SCOPE"),
    ):
        client("pin", "remote", "service", "add", name, f"{service.url}/v1", key)
        failed = client.run("pin", "remote", "add", f"--service={name}", "bafkqaaa")
        client("pin", "remote", "service", "rm", name)
        assert failed.returncode != 0
        assert said in failed.stderr


def test_the_policy_replaces_the_pin_of_mfs(
    service: Server, erin: Account, client: KuboClient
) -> None:
    """Kubo pins its MFS by itself; each change replaces the pin, and the old one is let go."""

    def root() -> str:
        return normalise(client("files", "stat", "--hash", "/"))

    def pinned() -> list[str]:
        pins = list_pins(erin, name="mfs")["results"]
        return [normalise(pin["pin"]["cid"]) for pin in pins if pin["status"] == "pinned"]

    policies = f"Pinning.RemoteServices.{erin.id}.Policies.MFS"
    policy = '{"Enable": true, "PinName": "mfs", "RepinInterval": "1s"}'
    client("config", "--json", policies, policy)
    seen = []
    for number in range(3):
        data = os.urandom(1000)
        client("files", "write", "--create", f"/{number}", data=data)
        until(lambda: pinned() == [root()], "the policy has pinned MFS as it is now", 60)
        seen.append(list_pins(erin, name="mfs"))
        path = f"{service.settings.ipfs.gateway_url}/ipfs/{root()}/{number}"
        assert httpx.get(path, verify=NO_TLS, trust_env=False).content == data
    assert [page["count"] for page in seen] == [1, 1, 1]
    assert len({page["results"][0]["requestid"] for page in seen}) == 3
    client("config", "--json", f"{policies}.Enable", "false")
    usage = erin.client.get("/v1/users/me/usage").json()["storage"]["bytes"]
    assert usage == int(seen[-1]["results"][0]["info"]["dag_size"])
