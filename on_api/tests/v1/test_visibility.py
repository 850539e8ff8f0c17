"""A file becomes private, or public: the id stays, the bytes stay, the CID changes, and nothing is
lost on the way."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from anyio import to_thread
from sqlalchemy import select

from on_api.core.errors import NodeUnavailable
from on_api.core.ipfs.formats.unixfs import build_file
from on_api.core.ipfs.port import Added
from on_api.core.models import Event, Lease, VisibilityChange
from on_api.core.models.database import utc_now
from on_api.core.services.container import Services
from on_api.core.services.upkeep.node import connect_node
from on_api.core.setting_groups import FilesSettings, WorkerSettings
from on_api.core.settings import Settings
from on_api.core.streams.blocks import Bytes
from on_api.tests.conftest import Account, DatabaseMaker, Server
from on_api.tests.testing.deadline import until
from on_api.tests.testing.leftovers import remove_leftovers
from on_api.worker.visibility import VisibilityWorker

MIB = 1024 * 1024


@pytest.fixture
def own(new_database: DatabaseMaker, settings_for: Callable[..., Settings]) -> Iterator[Server]:
    """A server without a worker: the test decides when one comes. It remembers no answers: of what
    that worker, another process to it, changes it would hear a moment later."""
    settings = settings_for(
        new_database(),
        worker=WorkerSettings(embedded=False),
        files=FilesSettings(answers_bytes=0),
    )
    with Server(settings) as running:
        yield running


@pytest.fixture
def user(own: Server) -> Iterator[Account]:
    """Somebody there."""
    account = own.new_user()
    with account.client:
        yield account


def work(server: Server, spoil: Callable[[Services], None] | None = None) -> None:
    """What a worker of another process does until nothing is due, then `fsck`: all must be well."""

    async def run() -> None:
        services = Services.build(server.settings, connect_node(server.settings))
        try:
            if spoil is not None:
                spoil(services)
            worker = VisibilityWorker(services)
            while await worker.step():
                pass
            await remove_leftovers(services)
            report = await services.fsck.run(repair=False, walk=True)
            assert report.clean, report.findings
        finally:
            await services.close()

    asyncio.run(run())


def change(account: Account, file: dict[str, object], visibility: str) -> dict[str, object]:
    """Ask for it; 202."""
    answer = account.client.patch(f"/v1/files/{file['id']}", json={"visibility": visibility})
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


def test_there_and_back(server: Server, alice: Account, bob: Account) -> None:
    """The embedded worker does it; on each side the file is what it would be if uploaded so."""
    data = os.urandom(2 * MIB + 5)
    file = alice.upload(data, "a", meta='{"b": 1}')
    others = bob.upload(data)
    url = f"/v1/files/{file['id']}"

    answer = change(alice, file, "private")
    assert (answer["id"], answer["cid"], answer["visibility"]) == (
        file["id"],
        file["cid"],
        "public",
    )
    said = answer["change"]
    assert isinstance(said, dict)
    assert (said["changing_to"], said["status"]) == ("private", "waiting")
    assert "downloaded" in said["notice"]

    def settled(visibility: str) -> dict[str, object] | None:
        shown = alice.client.get(url).json()
        return shown if shown["visibility"] == visibility else None

    now = until(lambda: settled("private"), "it is private")
    assert now["cid"] != file["cid"]
    assert now["gateway_url"] is None
    same = ("id", "name", "size", "sha256", "meta", "created_at", "media_type")
    assert [now[name] for name in same] == [file[name] for name in same]
    assert alice.client.get(f"{url}/content").content == data
    raw = alice.client.get(f"{url}/content?raw=1").content
    assert alice.client.get("/v1/users/me/usage").json()["storage"]["bytes"] >= len(raw)
    assert bob.client.get(f"/v1/files/{others['id']}/content").content == data
    status = alice.client.get(f"{url}/visibility").json()
    assert (status["visibility"], status["status"], status["changing_to"]) == (
        "private",
        "settled",
        None,
    )

    change(alice, file, "public")
    now = until(lambda: settled("public"), "it is public")
    assert now["cid"] == file["cid"]
    assert now == file
    assert alice.client.get(f"{url}/content").content == data
    with server.services.database.session_scope(write=False) as session:
        wanted = (Event.kind == "file.changed", Event.subject_id == uuid.UUID(str(file["id"])))
        events = session.scalars(select(Event).where(*wanted).order_by(Event.id)).all()
        assert [event.data["visibility"] for event in events] == ["private", "public"]
        assert [event.data["cid"] for event in events] == [build_file(raw).cid, file["cid"]]


def test_name_and_visibility_together(alice: Account) -> None:
    """The name changes at once; what is so already is 200 and no job."""
    file = alice.upload(b"x", "old")
    url = f"/v1/files/{file['id']}"
    answer = alice.client.patch(url, json={"name": "new", "visibility": "public"})
    assert (answer.status_code, answer.json()["name"]) == (200, "new")
    answer = alice.client.patch(url, json={"name": "newer", "visibility": "private"})
    assert (answer.status_code, answer.json()["name"]) == (202, "newer")
    for wrong in ({"visibility": None}, {"visibility": "secret"}):
        assert alice.client.patch(url, json=wrong).status_code == 400


@pytest.mark.parametrize("by", ["passphrase", "recipients"])
def test_what_the_server_can_not_open_stays_private(alice: Account, by: str) -> None:
    """409, now and for good."""
    from on_api.core.crypto.age import X25519Identity

    query = {"name": "x", "visibility": "private"}
    headers = {"On-Api-Passphrase": "open sesame"} if by == "passphrase" else {}
    if by == "recipients":
        query |= {"recipients": str(X25519Identity.generate().recipient), "owner_access": "false"}
    file = alice.client.put("/v1/files", params=query, content=b"x", headers=headers).json()
    answer = alice.client.patch(f"/v1/files/{file['id']}", json={"visibility": "public"})
    assert answer.status_code == 409


def test_asked_back_before_it_was_done(own: Server, user: Account) -> None:
    """The job ends; the file is as it was."""
    file = user.upload(os.urandom(100))
    change(user, file, "private")
    change(user, file, "private")
    answer = user.client.patch(f"/v1/files/{file['id']}", json={"visibility": "public"})
    assert (answer.status_code, answer.json()) == (200, file)
    work(own)
    assert user.client.get(f"/v1/files/{file['id']}").json() == file


def test_deleting_the_file_ends_the_change(own: Server, user: Account) -> None:
    """Before it began, and in its middle: nothing is left but a dead lease."""
    first, second = (user.upload(os.urandom(3 * MIB)) for _ in range(2))
    change(user, first, "private")
    assert user.client.delete(f"/v1/files/{first['id']}").status_code == 204
    change(user, second, "private")

    def delete_in_the_middle(services: Services) -> None:
        add = services.node.add

        async def and_delete(source: AsyncIterator[Bytes], *, pin_name: str) -> Added:
            added = await add(source, pin_name=pin_name)
            gone = await to_thread.run_sync(user.client.delete, f"/v1/files/{second['id']}")
            assert gone.status_code == 204
            return added

        services.node.add = and_delete  # type: ignore[method-assign]

    work(own, delete_in_the_middle)
    assert user.client.get("/v1/files").json()["count"] == 0
    assert user.client.get("/v1/users/me/usage").json()["storage"]["bytes"] == 0
    with own.services.database.session_scope(write=False) as session:
        assert session.scalars(select(VisibilityChange)).all() == []
        assert sum(lease.reserved_bytes for lease in session.scalars(select(Lease))) == 0


def test_it_is_tried_again(own: Server, user: Account) -> None:
    """After the node was away, and after a worker died in the middle of it."""
    data = os.urandom(MIB)
    file = user.upload(data)
    change(user, file, "private")

    def no_node(services: Services) -> None:
        async def away(*_: object, **__: object) -> None:
            raise NodeUnavailable

        services.node.add = away  # type: ignore[assignment,method-assign]

    work(own, no_node)
    status = user.client.get(f"/v1/files/{file['id']}/visibility").json()
    assert (status["status"], status["details"]) == ("waiting", NodeUnavailable().details)
    assert user.client.get(f"/v1/files/{file['id']}/content").content == data
    with own.services.database.session_scope() as session:
        row = session.scalars(select(VisibilityChange)).one()
        assert row.attempts == 1
        # As a killed worker leaves it.
        row.due_at = utc_now()
        row.lease_token, row.lease_until = row.id, utc_now()
    work(own)
    assert user.client.get(f"/v1/files/{file['id']}").json()["visibility"] == "private"
    assert user.client.get(f"/v1/files/{file['id']}/content").content == data


def test_who_lost_the_lease_changes_nothing(own: Server, user: Account) -> None:
    """Another worker took it over: only that one's file counts, and what the first stored goes."""
    data = os.urandom(100)
    file = user.upload(data)
    change(user, file, "private")
    stored: list[str] = []

    def take_over() -> None:
        with own.services.database.session_scope() as session:
            session.scalars(select(VisibilityChange)).one().lease_token = uuid.uuid4()

    def lose_it(services: Services) -> None:
        add = services.node.add

        async def and_lose(source: AsyncIterator[Bytes], *, pin_name: str) -> Added:
            added = await add(source, pin_name=pin_name)
            stored.append(added.cid)
            await to_thread.run_sync(take_over)
            return added

        services.node.add = and_lose  # type: ignore[method-assign]

    work(own, lose_it)
    assert user.client.get(f"/v1/files/{file['id']}").json() == file
    with own.services.database.session_scope() as session:
        session.scalars(select(VisibilityChange)).one().lease_until = utc_now()
    work(own)
    now = user.client.get(f"/v1/files/{file['id']}").json()
    assert now["visibility"] == "private"
    assert now["cid"] not in stored
    assert user.client.get(f"/v1/files/{file['id']}/content").content == data


def test_no_room_for_both(own: Server, user: Account) -> None:
    """It fails, says so, and can be asked for again when there is room."""
    file = user.upload(os.urandom(1000))
    admin = own.new_user(admin=True)
    quota = {"storage_quota": 1500}
    assert admin.client.patch(f"/v1/users/{user.id}", json=quota).status_code == 200
    change(user, file, "private")
    work(own)
    status = user.client.get(f"/v1/files/{file['id']}/visibility").json()
    assert (status["status"], status["visibility"]) == ("failed", "public")
    assert "quota" in status["details"]
    admin.client.patch(f"/v1/users/{user.id}", json={"storage_quota": None})
    change(user, file, "private")
    work(own)
    assert user.client.get(f"/v1/files/{file['id']}").json()["visibility"] == "private"
    admin.client.close()
