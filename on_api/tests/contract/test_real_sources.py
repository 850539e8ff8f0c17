"""Sources that are really there: another on-api, by its pins and by its files, and a Kubo."""

from __future__ import annotations

import os

import pytest

from on_api.core.crypto.age import X25519Identity
from on_api.core.net.errors import SourceUnauthorized
from on_api.core.providers import kubo, on_api, pinning_api
from on_api.core.providers.base import Source, SourceItem, SourceSpec
from on_api.core.providers.opening import open_source
from on_api.tests.conftest import PASSWORD, RPC_SECRET, Account, Kubo, Server
from on_api.tests.testing.foreign import outbound

pytestmark = pytest.mark.anyio

NAMES = ["a", "地図.pdf", "näme", "with space", "emoji 🎈"]


@pytest.fixture(autouse=True)
def short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that few things are several pages."""
    monkeypatch.setattr(pinning_api, "PAGE_ITEMS", 4)
    monkeypatch.setattr(on_api, "PAGE_ITEMS", 4)
    monkeypatch.setattr(kubo, "PAGE_ITEMS", 4)


async def listed(source: Source) -> list[SourceItem]:
    """Everything."""
    return [item async for page in source.pages() for item in page.items]


def pinned(server: Server, account: Account, count: int) -> dict[str, str]:
    """So many pins of what lies on the node already: name by CID."""
    made = {}
    for number in range(count):
        cid = str(account.upload(os.urandom(20))["cid"])
        name = NAMES[number % len(NAMES)]
        body = {"cid": cid, "name": name, "meta": {"number": str(number)}}
        answer = account.client.post("/v1/pins", json=body)
        assert answer.json()["status"] == "pinned", answer.text
        made[cid] = name
    assert server.url
    return made


async def test_pins_of_another_on_api(server: Server, alice: Account) -> None:
    """By the Pinning Service API: all of them, over several pages, and where they are served."""
    made = pinned(server, alice, 11)
    async with outbound() as calls:
        spec = SourceSpec("pinning_api", endpoint=f"{server.url}/v1", token=alice.key)
        source = open_source(spec, calls)
        found = await listed(source)
        delegates = await source.delegates()
        wrong = SourceSpec("pinning_api", endpoint=f"{server.url}/v1", token="onapi_wrong")
        with pytest.raises(SourceUnauthorized):
            await listed(open_source(wrong, calls))
    assert {item.cid: item.name for item in found} == made
    assert len(found) == 11
    assert [item.meta["number"] for item in found] == [str(n) for n in reversed(range(11))]
    assert all(item.created_at and item.problem is None for item in found)
    assert delegates
    assert all("/p2p/" in address for address in delegates)


async def test_files_of_another_on_api(server: Server, alice: Account) -> None:
    """Stay files, private ones with the identity that opens them; pins come after them."""
    public = [alice.upload(os.urandom(30), f"file {n}", meta='{"n": 1}') for n in range(5)]
    private = alice.upload(b"nobody's business", "private", visibility="private")
    made = pinned(server, alice, 3)
    spec = SourceSpec(
        "on_api",
        endpoint=server.url,
        token=alice.key,
        username=alice.username,
        password=PASSWORD,
    )
    async with outbound() as calls:
        source = open_source(spec, calls)
        found = await listed(source)
        secrets = await source.identities()
        wrong = SourceSpec(
            "on_api", endpoint=server.url, token=alice.key, username=alice.username, password="no"
        )
        with pytest.raises(SourceUnauthorized):
            await open_source(wrong, calls).identities()
    files = {item.file.id: item.file for item in found if item.file is not None}
    assert len(files) == 5 + 1 + 3  # what was uploaded to be pinned is a file as well
    for told in [*public, private]:
        file = files[str(told["id"])]
        assert (file.name, file.size, file.sha256.hex(), file.visibility, file.meta) == (
            told["name"],
            told["size"],
            told["sha256"],
            told["visibility"],
            told["meta"],
        )
    assert all(item.problem is None for item in found)
    assert {item.cid for item in found if item.file is None} == set(made)
    (secret,) = secrets
    recipient = alice.client.get("/v1/users/me/identities").json()["items"][0]["recipient"]
    assert str(X25519Identity.parse(secret).recipient) == recipient


async def test_pins_of_a_kubo(kubo: Kubo, alice: Account) -> None:
    """By its RPC, with their names; and where it listens."""
    cid = str(alice.upload(os.urandom(40))["cid"])
    async with outbound() as calls:
        spec = SourceSpec("kubo", endpoint=kubo.ipfs.rpc_url, token=RPC_SECRET)
        source = open_source(spec, calls)
        found = {item.cid: item for item in await listed(source)}
        delegates = await source.delegates()
        with pytest.raises(SourceUnauthorized):
            await listed(open_source(SourceSpec("kubo", endpoint=kubo.ipfs.rpc_url), calls))
    assert (found[cid].name or "").startswith("on-api/")
    assert found[cid].problem is None
    told = alice.client.post("/v1/pins", json={"cid": cid}).json()["delegates"]
    assert set(delegates) == set(told)
