"""Answers about files from memory: never an old one where it was changed, soon none elsewhere, and
nobody's to anybody else."""

from __future__ import annotations

import ast
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from on_api.core.errors import NotFound
from on_api.core.models import Database
from on_api.core.models.invalidation import Invalidations
from on_api.core.models.revisions import PROJECT
from on_api.core.services.files import file_answers
from on_api.core.services.files.file_answers import ENTRY_BYTES, FileAnswers
from on_api.core.services.files.files import FileFacts, change_file
from on_api.tests.conftest import Account, DatabaseMaker, Kubo, Server, make_settings
from on_api.tests.testing.deadline import until

HEARD_SECONDS = 20
"""By then other processes have heard of a change, however busy the machine; without news an answer
is made anew only after a minute."""


@dataclass(frozen=True)
class Pair:
    """Two processes on one database, as far as it can tell."""

    here: Server
    there: Server

    def reads(self, file_id: object, key: str) -> dict[str, object] | int:
        """What the other one says about a file."""
        with self.there.client(key) as client:
            answer = client.get(f"/v1/files/{file_id}")
        return dict(answer.json()) if answer.status_code == 200 else answer.status_code

    def know(self, file_id: object, account: Account) -> None:
        """Both have the answer in memory."""
        user = uuid.UUID(account.id)

        def known(server: Server) -> bool:
            with server.client(account.key) as client:
                assert client.get(f"/v1/files/{file_id}").status_code == 200
            return server.services.file_answers.recall(user, str(file_id)) is not None

        until(lambda: known(self.here) and known(self.there), "both know it")


@pytest.fixture(scope="module")
def pair(
    new_database: DatabaseMaker, kubo: Kubo, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """On each kind of database."""
    url, home = new_database(), tmp_path_factory.mktemp("home")
    settings = make_settings(home, url, ipfs=kubo.ipfs)
    with Server(settings) as here, Server(settings) as there:
        yield Pair(here, there)


@pytest.fixture
def ada(pair: Pair) -> Iterator[Account]:
    """Somebody who is served here."""
    account = pair.here.new_user()
    with account.client:
        yield account


def user_id(account: Account) -> uuid.UUID:
    """As services want it."""
    return uuid.UUID(account.id)


def test_a_change_is_seen_at_once_here_and_soon_there(pair: Pair, ada: Account) -> None:
    """Name, meta, visibility (a job), deletion."""
    file_id = ada.upload(os.urandom(20))["id"]
    for change in ({"name": "new"}, {"meta": {"a": 1}}, {"name": "newer", "meta": {}}):
        pair.know(file_id, ada)
        changed = ada.client.patch(f"/v1/files/{file_id}", json=change).json()
        assert ada.client.get(f"/v1/files/{file_id}").json() == changed
        until(lambda c=changed: pair.reads(file_id, ada.key) == c, "it is heard", HEARD_SECONDS)  # type: ignore[misc]

    pair.know(file_id, ada)
    ada.client.patch(f"/v1/files/{file_id}", json={"visibility": "private"}).raise_for_status()
    settled = f"/v1/files/{file_id}/visibility"
    until(lambda: ada.client.get(settled).json()["visibility"] == "private", "it is private")
    for ask in (lambda: ada.client.get(f"/v1/files/{file_id}").json(),
                lambda: pair.reads(file_id, ada.key)):  # fmt: skip
        until(lambda ask=ask: ask()["visibility"] == "private", "it is shown", HEARD_SECONDS)  # type: ignore[misc]

    pair.know(file_id, ada)
    assert ada.client.delete(f"/v1/files/{file_id}").status_code == 204
    assert ada.client.get(f"/v1/files/{file_id}").status_code == 404
    until(lambda: pair.reads(file_id, ada.key) == 404, "it is gone there too", HEARD_SECONDS)


def test_an_account_that_is_removed_takes_its_answers_along(pair: Pair, ada: Account) -> None:
    """Its key ends everywhere, and so do the answers when its files go."""
    file_id = str(ada.upload(os.urandom(20))["id"])
    pair.know(file_id, ada)
    admin = pair.here.new_user(admin=True)
    with admin.client:
        assert admin.client.delete(f"/v1/users/{ada.id}").status_code == 202
    assert ada.client.get(f"/v1/files/{file_id}").status_code == 401
    until(lambda: pair.reads(file_id, ada.key) == 401, "the key is refused there", HEARD_SECONDS)
    for server in (pair.here, pair.there):
        answers = server.services.file_answers
        until(lambda a=answers: a.recall(user_id(ada), file_id) is None, "it is forgotten")  # type: ignore[misc]


def test_no_old_answer_is_read_while_changes_come(pair: Pair, ada: Account) -> None:
    """Whoever asks after a change was answered sees that change, or a later one."""
    file_id = ada.upload(os.urandom(20), name="0")["id"]
    answered, stop, old = [0], threading.Event(), []

    def read() -> None:
        with pair.here.client(ada.key) as client:
            while not stop.is_set():
                least = answered[0]
                seen = int(client.get(f"/v1/files/{file_id}").json()["name"])
                if seen < least:
                    old.append((seen, least))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(1, 60):
        ada.client.patch(f"/v1/files/{file_id}", json={"name": str(number)}).raise_for_status()
        answered[0] = number
    stop.set()
    for reader in readers:
        reader.join()
    assert old == []


def test_what_changed_while_it_was_read_is_not_kept(pair: Pair, ada: Account) -> None:
    """The change commits between the look and the keeping."""
    file_id = uuid.UUID(str(ada.upload(os.urandom(20))["id"]))
    services = pair.here.services

    def render(facts: FileFacts) -> bytes:
        with services.database.session_scope() as session:
            change_file(session, user_id(ada), file_id, {"name": "meanwhile"})
        return facts.name.encode()

    services.file_answers.look_up(user_id(ada), file_id, render)
    assert services.file_answers.recall(user_id(ada), str(file_id)) is None


def test_it_is_nobody_elses(pair: Pair, ada: Account) -> None:
    """Someone else's file is not there, in memory neither."""
    file_id = ada.upload(os.urandom(20))["id"]
    pair.know(file_id, ada)
    eve = pair.here.new_user()
    with eve.client:
        for version in ("v1", "v2"):
            assert eve.client.get(f"/{version}/files/{file_id}").status_code == 404
    answers = pair.here.services.file_answers
    with pytest.raises(NotFound):
        answers.look_up(user_id(eve), uuid.UUID(str(file_id)), lambda _: b"")
    assert ada.client.get(f"/v1/files/{file_id}").status_code == 200


@pytest.fixture
def kept(pair: Pair) -> Iterator[Callable[[int], tuple[FileAnswers, Invalidations]]]:
    """Makes a memory of so many bytes on the pair's database, in a process that doesn't listen
    yet."""
    database = Database(pair.here.settings)
    news = Invalidations(database)
    yield lambda capacity: (FileAnswers(database, news, capacity), news)
    news.stop()
    database.dispose()


def test_it_is_used_only_while_news_can_be_heard(
    kept: Callable[[int], tuple[FileAnswers, Invalidations]],
    ada: Account,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And not for ever, in case that somebody changes the database by hand."""
    file_id = uuid.UUID(str(ada.upload(os.urandom(20))["id"]))
    answers, news = kept(10_000)

    def known() -> bool:
        answers.look_up(user_id(ada), file_id, lambda facts: facts.name.encode())
        return answers.recall(user_id(ada), str(file_id)) == b"a file"

    assert not known()
    news.start()
    until(known, "it is used")
    monkeypatch.setattr(file_answers, "REMEMBERED_SECONDS", 0.0)
    assert not known()


def test_its_memory_is_bounded(
    kept: Callable[[int], tuple[FileAnswers, Invalidations]], ada: Account
) -> None:
    """Old answers go for new ones; what it counts is what it has."""
    ids = [uuid.UUID(str(ada.upload(b"x", name=str(n))["id"])) for n in range(5)]
    one = 100 + ENTRY_BYTES
    answers, news = kept(3 * one)
    news.start()
    until(lambda: news.trusted, "it listens")
    for file_id in [*ids, *ids]:
        answers.look_up(user_id(ada), file_id, lambda _: b"x" * 100)
        assert answers.size <= 3 * one
    answers.look_up(user_id(ada), ids[0], lambda _: b"x" * (3 * one))
    assert answers.size == 0
    nothing, _ = kept(0)
    nothing.look_up(user_id(ada), ids[0], lambda _: b"x")
    assert nothing.size == 0


def test_no_statement_changes_files_past_the_mapper() -> None:
    """The news of a changed file is made by the mapper, which sees no `update(File)` or
    `delete(File)`: whoever writes one has to tell by itself."""
    found = [
        f"{path.name}:{node.lineno}"
        for path in Path(PROJECT / "on_api").rglob("*.py")
        if "tests" not in path.parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"update", "delete"}
        and any(isinstance(arg, ast.Name) and arg.id in {"File", "FileRow"} for arg in node.args)
    ]
    assert found == []
