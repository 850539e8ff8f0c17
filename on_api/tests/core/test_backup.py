"""A backup has all that was acknowledged before it began, says what it hasn't, and can be
restored."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select, text, update

from on_api.core.crypto.secrets import SecretCopy
from on_api.core.errors import Conflict, StartupError
from on_api.core.ipfs.formats.unixfs import build_file
from on_api.core.models import (
    Base,
    Content,
    Database,
    IdempotencyRecord,
    Lease,
    Maintenance,
    Pin,
    UserUsage,
)
from on_api.core.models.content import UNPINNING
from on_api.core.models.database import database_now, new_id, utc_now
from on_api.core.services.content import maintenance
from on_api.core.services.content.maintenance import BACKUP, GARBAGE, Turn
from on_api.core.services.upkeep.backup.folder import BackupFolder
from on_api.core.services.upkeep.backup.restoring import require_empty
from on_api.core.services.upkeep.backup.tables import CHANGED, EMPTIED, KEPT
from on_api.tests.conftest import PASSWORD, Account, DatabaseMaker, Kubo, Server, make_settings
from on_api.tests.testing.backups import (
    back_up,
    content_of,
    reading,
    restore,
    verified,
)
from on_api.tests.testing.blockstore import Blockstore
from on_api.tests.testing.bundles import bundle, collect, root_of
from on_api.tests.testing.pins import some_cid
from on_api.tests.testing.processes import Home
from on_api.tests.testing.rows import pin_row
from on_api.tests.testing.shares import share

MIB = 1024 * 1024


@pytest.fixture
def target(new_database: DatabaseMaker, own: Server, tmp_path: Path) -> Home:
    """An empty home, with an empty database of the same kind as the server's."""
    home = Home(tmp_path / "restored" / "home")
    if own.services.database.is_postgresql:
        home.extra["ON_API_DATABASE_URL"] = url = new_database()
        engine = create_engine(url.replace("postgresql://", "postgresql+psycopg2://"))
        with engine.begin() as connection:  # as `createdb` makes it: without a table
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
        engine.dispose()
    return home


@contextmanager
def restored_database(target: Home) -> Iterator[Database]:
    """Open a restored database."""
    url = target.extra.get("ON_API_DATABASE_URL", f"sqlite:///{target.path / 'on-api.db'}")
    database = Database(make_settings(target.path, url))
    yield database
    database.dispose()


def test_a_home_with_the_nodes_logs_counts_as_empty(tmp_path: Path) -> None:
    """The log rotates: all of its files are left beside a node that has outlived its database."""
    settings = make_settings(tmp_path, f"sqlite:///{tmp_path / 'on-api.db'}")
    for name in ("ipfs", "lock", "node.log", "node.log.1", "node.log.2", "node.log.3"):
        (tmp_path / name).touch()
    require_empty(settings)
    (tmp_path / "notes").touch()
    with pytest.raises(StartupError, match="notes"):
        require_empty(settings)


def test_every_table_is_decided() -> None:
    """A table that is added must be classified: what a restored database has of it."""
    decided = [*KEPT, *CHANGED, *EMPTIED]
    assert sorted(decided) == sorted(Base.metadata.tables)


def test_everything_comes_back(own: Server, user: Account, target: Home, tmp_path: Path) -> None:
    """Public, private, shared, bundled and empty files and pins, with keys, links and passwords;
    the node that it is restored to had nothing of it."""
    sent = {
        user.upload(data, name)["id"]: data
        for name, data in {"large": os.urandom(3 * MIB + 5), "small": b"s", "empty": b""}.items()
    }
    secret = os.urandom(MIB + 9)
    sent[user.upload(secret, "private", visibility="private")["id"]] = secret
    shared = user.upload(os.urandom(5000), "shared")
    link = share(user, shared)
    members = bundle(own, [(user, os.urandom(700 + n)) for n in range(5)])
    sent |= {member.id: member.data for member in members}
    members[0].delete()
    del sent[members[0].id]
    assert user.client.post("/v1/pins", json={"cid": shared["cid"], "name": "p"}).status_code == 202
    folder = tmp_path / "backup"
    report = back_up(own.settings, folder)
    assert (report.outcome, report.damages) == ("complete", [])
    later = user.upload(b"later", "later")
    again = back_up(own.settings, folder)
    assert (again.copied_blocks, again.outcome) == (1, "complete")
    found = verified(folder)
    assert found.clean, found
    assert (len(found.databases), found.secrets) == (2, 2)
    told = restore(target, folder)
    assert told["fsck"]["clean"]
    assert told["fsck"]["blocks"] > 0
    with reading(target, user.key) as client:
        assert content_of(client, later["id"]) == b"later"
        for file_id, data in sent.items():
            assert content_of(client, file_id) == data
        by_link = client.get(f"/s/{link.token}", headers={"Authorization": ""})
        assert (by_link.status_code, len(by_link.content)) == (200, 5000)
        assert client.get("/v1/pins").json()["count"] == 1
        assert client.get("/v1/files").json()["count"] == len(sent) + 2
        login = {"username": user.username, "password": PASSWORD}
        assert client.post("/v1/auth/token", data=login).status_code == 200
        assert client.put("/v1/files?name=new", content=b"new").status_code == 201


def test_what_was_under_way_has_ended(
    own: Server, user: Account, target: Home, tmp_path: Path
) -> None:
    """Leases, claims, removals and jobs of processes that are gone: nothing waits for them, nothing
    stays reserved, and what is queued is done."""
    kept = user.upload(os.urandom(100), "kept")
    gone = user.upload(os.urandom(200), "gone")
    user.client.delete(f"/v1/files/{gone['id']}")
    soon = database_now(timedelta(hours=1))
    with own.services.database.session_scope() as session:
        user_id = uuid.UUID(user.id)
        session.add(Lease(kind="upload", user_id=user_id, lease_until=soon, reserved_bytes=77))
        session.execute(text("UPDATE user_usage SET reserved_bytes = 77 WHERE file_count = 1"))
        session.execute(
            update(Content)
            .where(Content.cid == gone["cid"])
            .values(state=UNPINNING, lease_token=new_id(), lease_until=soon)
        )
        session.add(
            pin_row(
                user_id,
                some_cid(),
                status="pinning",
                lease_token=new_id(),
                lease_until=soon,
                deadline_at=utc_now() + timedelta(days=1),
            )
        )
        session.add(
            IdempotencyRecord(
                user_id=user_id,
                key_id=new_id(),
                route="PUT /v1/files",
                key="k",
                lease_until=soon,
                secret_version=1,
            )
        )
    back_up(own.settings, tmp_path / "backup")
    assert restore(target, tmp_path / "backup")["fsck"]["clean"]
    with restored_database(target) as database, database.session_scope() as session:
        assert session.scalars(select(Lease.id)).all() == []
        assert session.scalars(select(IdempotencyRecord.id)).all() == []
        assert set(session.scalars(select(UserUsage.reserved_bytes))) == {0}
        states = dict(session.execute(select(Content.cid, Content.state)).all())
        assert states == {kept["cid"]: "pinned", gone["cid"]: "absent"}
        [pin] = session.scalars(select(Pin))
        assert (pin.status, pin.lease_token, pin.lease_until) == ("queued", None, None)
        assert session.get_one(Maintenance, BACKUP).lease_until is None
    with reading(target, user.key) as client:
        assert content_of(client, kept["id"])


@pytest.mark.parametrize("change", ["altered", "missing"])
def test_a_damaged_block_on_the_node_is_told(
    own: Server, user: Account, kubo: Kubo, target: Home, tmp_path: Path, change: str
) -> None:
    """With the files that it is in, by name; the rest is saved, and the block once it is well
    again."""
    data = os.urandom(3 * MIB)
    user.upload(os.urandom(2 * MIB), "whole")
    holed = user.upload(data, "holed.bin")
    blocks, leaf = Blockstore(kubo.home / "ipfs"), build_file(data).children[1].cid
    taken = blocks.take(leaf)
    if change == "altered":
        blocks.put(leaf, bytes([taken[0] ^ 1]) + taken[1:])
    report = back_up(own.settings, tmp_path / "backup")
    assert (report.outcome, report.damaged) == ("damaged", 1)
    [damage] = report.damages
    assert damage.cid == holed["cid"]
    assert any(leaf in each for each in damage.troubles)
    assert any("holed.bin" in each and str(holed["id"]) in each for each in damage.references)
    assert report.copied_blocks == 3 + 3  # all but that one
    with own.services.database.session_scope(write=False) as session:
        outcome = maintenance.last_outcome(session, BACKUP)
    assert outcome.result is not None
    assert (outcome.result["outcome"], outcome.result["damaged"]) == ("damaged", 1)
    assert "holed.bin" not in str(outcome.result)
    if change == "missing":  # Kubo remembers that it has none
        assert not verified(tmp_path / "backup").clean
        return
    # Without a verification in between, which would have the root looked at anew by itself.
    blocks.put(leaf, taken)
    report = back_up(own.settings, tmp_path / "backup")
    assert (report.outcome, report.copied_blocks) == ("complete", 1)
    restore(target, tmp_path / "backup")
    with reading(target, user.key) as client:
        assert content_of(client, holed["id"]) == data


def test_a_dead_member_of_a_bundle_is_no_damage(
    own: Server, user: Account, kubo: Kubo, target: Home, tmp_path: Path
) -> None:
    """Nobody needs its block: the living members are saved, and get pins of their own."""
    members = bundle(own, [(user, os.urandom(900 + n)) for n in range(4)])
    root = root_of(own, members[0].cid)
    assert root != members[0].cid
    members[0].delete()
    with own.services.database.session_scope() as session:
        session.execute(update(Content).where(Content.cid == members[0].cid).values(state="absent"))
    Blockstore(kubo.home / "ipfs").take(members[0].cid)
    report = back_up(own.settings, tmp_path / "backup")
    assert (report.outcome, report.thin_bundles) == ("complete", 1)
    found = verified(tmp_path / "backup")
    assert (found.clean, found.thin_bundles) == (True, 1)
    assert restore(target, tmp_path / "backup")["fsck"]["clean"]
    with reading(target, user.key) as client:
        for member in members[1:]:
            assert content_of(client, member.id) == member.data


@pytest.mark.parametrize("change", ["altered", "cut", "removed"])
def test_a_damaged_block_in_the_backup_is_found(
    own: Server, user: Account, tmp_path: Path, change: str
) -> None:
    """By `verify`, which names the file and sees to it that the next backup copies the block
    anew."""
    user.upload(os.urandom(2 * MIB), "mine.bin")
    folder = tmp_path / "backup"
    back_up(own.settings, folder)
    assert verified(folder).clean
    path = max(folder.glob("blocks/*/*"), key=lambda each: each.stat().st_size)
    block = path.read_bytes()
    if change == "removed":
        path.unlink()
    else:
        path.write_bytes(block[:-1] if change == "cut" else bytes([block[0] ^ 1]) + block[1:])
    found = verified(folder)
    assert not found.clean
    assert len(found.damaged_blocks) == (change != "removed")
    [damage] = found.damages
    assert any("mine.bin" in each for each in damage.references)
    assert back_up(own.settings, folder).copied_blocks == 1
    assert verified(folder).clean


def test_a_damaged_database_in_the_backup_is_found(
    own: Server, user: Account, tmp_path: Path
) -> None:
    """And a secret that doesn't open."""
    user.upload(os.urandom(100), "mine")
    back_up(own.settings, tmp_path / "backup")
    saved = BackupFolder.open(tmp_path / "backup").database()
    data = bytearray(saved.path.read_bytes())
    data[8192:12288] = bytes(4096)
    saved.path.write_bytes(data)
    [trouble] = verified(tmp_path / "backup").troubles
    assert saved.path.name in trouble
    saved.secret.write_bytes(saved.secret.read_bytes()[:-1])
    back_up(own.settings, tmp_path / "backup", keep=1)
    assert verified(tmp_path / "backup").clean
    newest = BackupFolder.open(tmp_path / "backup").database()
    assert newest.stamp > saved.stamp
    assert not saved.path.exists()
    newest.secret.write_bytes(newest.secret.read_bytes()[:-1])
    [trouble] = verified(tmp_path / "backup").troubles
    assert newest.secret.name in trouble


def test_no_garbage_is_collected_meanwhile(own: Server, user: Account, tmp_path: Path) -> None:
    """While a backup runs, though uploads go on; after one that was killed, as soon as its turn has
    expired; and a backup waits for the end of a collection."""
    turn = Turn(own.services.database, BACKUP)
    with pytest.raises(Conflict, match="backup"):
        collect(own.settings)
    user.upload(os.urandom(100), "meanwhile")
    members = bundle(own, [(user, os.urandom(300 + n)) for n in range(3)])
    assert members[0].read() == members[0].data
    with own.services.database.session_scope() as session:  # killed a minute ago
        session.execute(update(Maintenance).values(lease_until=database_now(-timedelta(seconds=1))))
    assert not turn.renew()
    assert collect(own.settings) == "collected"
    collection = Turn(own.services.database, GARBAGE)
    waits = threading.Event()

    def tell(what: str, _done: int, _total: int, _copied: int) -> None:
        if what.startswith("waiting") and not waits.is_set():
            waits.set()
            collection.end({"outcome": "collected"})

    assert back_up(own.settings, tmp_path / "backup", tell=tell).outcome == "complete"
    assert waits.is_set()
    assert collect(own.settings) == "collected"


def test_a_schedule_begins_though_a_backup_came_first(own: Server) -> None:
    """Its look at the collection's row is no run."""
    Turn(own.services.database, BACKUP).end({"outcome": "complete"})
    garbage = own.services.garbage
    assert not garbage.is_due(timedelta(0))
    assert garbage.is_due(timedelta(0))


def test_only_a_backup_is_written_to(own: Server, user: Account, tmp_path: Path) -> None:
    """Neither a folder with other things, nor another deployment's backup."""
    user.upload(b"mine", "mine")
    other = tmp_path / "home of somebody"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    with pytest.raises(StartupError, match=r"letter\.txt"):
        back_up(own.settings, other)
    assert [path.name for path in other.iterdir()] == ["letter.txt"]
    foreign = tmp_path / "foreign"
    BackupFolder.prepare(foreign, "somebody-else")
    with pytest.raises(StartupError, match="another deployment"):
        back_up(own.settings, foreign)
    assert list(foreign.glob("databases/*")) == []
    back_up(own.settings, tmp_path / "busy")
    folder = BackupFolder.open(tmp_path / "busy")
    with folder.locked(alone=True), pytest.raises(StartupError, match="at work"):
        back_up(own.settings, tmp_path / "busy")


def test_the_index_of_roots_may_be_lost(own: Server, user: Account, tmp_path: Path) -> None:
    """It is made again from the blocks that are there; nothing is copied anew."""
    user.upload(os.urandom(2 * MIB), "mine")
    back_up(own.settings, tmp_path / "backup")
    (tmp_path / "backup" / "roots.sqlite3").unlink()
    report = back_up(own.settings, tmp_path / "backup")
    assert (report.outcome, report.copied_blocks) == ("complete", 0)


def test_a_copy_of_secrets_keeps_them_all(tmp_path: Path) -> None:
    """Also one with blanks, as an environment variable may have it."""
    lines = ["a secret with blanks, long enough to be one", "b" * 40]
    SecretCopy(lines).put_into(tmp_path)
    assert SecretCopy.of_home(tmp_path).versions == SecretCopy(lines).versions
    assert (tmp_path / "secret.key").stat().st_mode & 0o777 == 0o600
