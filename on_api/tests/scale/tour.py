"""A walk past everything that asks the database: each list and report, uploads, pins, shares, the
gateway, and the worker's and housekeeper's steps. Each step has a name, and happens on the real
code, over HTTP where there is a way.

Needs nothing but a user: what is not there is answered as that.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from on_api.core.ipfs.formats.unixfs import build_file
from on_api.core.ipfs.port import DagStat
from on_api.core.models import File, Import, Lease, User
from on_api.core.pagination import Position
from on_api.core.services.accounts.audit import COMMAND_LINE
from on_api.core.services.accounts.keys import KeyRequest, every_scope
from on_api.core.services.content import contents
from on_api.core.services.content.leases import release_dead_leases
from on_api.core.services.files import visibility
from on_api.core.services.pins import jobs as pin_jobs
from on_api.core.services.shared.events import number_events
from on_api.core.services.traffic import upkeep as traffic_upkeep
from on_api.core.services.traffic.reports import GroupBy, Interval
from on_api.core.services.transfer import jobs as import_jobs
from on_api.tests.conftest import Account, Server
from on_api.tests.scale.explain import Recorder
from on_api.worker.housekeeping import remove_what_has_ended

LONG_AGO = datetime(2026, 1, 1, 0, 30, tzinfo=UTC)
"""Behind which the seeded have a page or two left."""
FILE_SAID = {
    "name": "a",
    "visibility": "public",
    "size": 1,
    "sha256": "00" * 32,
    "media_type": "text/plain",
    "meta": {},
}
"""What another on-api says of a file."""
LIFE = timedelta(seconds=30)

Step = Callable[[], object]

PAGES: dict[str, dict[str, Any]] = {
    "/v1/files": {"": {}},
    "/v1/pins": {"": {}, "every status": {"status": "queued,pinning,pinned,failed"}},
    "/v1/shares": {"": {}},
    "/v1/keys": {"": {}},
    "/v1/imports": {"": {}},
}
"""Lists that everybody has, in v1."""
CURSOR_LISTS = ("/v2/files", "/v2/shares", "/v2/keys", "/v2/imports")


@dataclass
class Tour:
    """One walk on a server, by somebody who has `cid` among much else."""

    server: Server
    recorder: Recorder
    cid: str

    def of_user(self, who: str, user_id: uuid.UUID) -> None:
        """All that a user can ask for."""
        account = self.account(user_id)
        with account.client:
            for name, step in itertools.chain(
                self._lists(account), self._reports(account), self._changes(account)
            ):
                with self.recorder.step(f"{who}: {name}"):
                    step()

    def of_large_lists(self, user_id: uuid.UUID) -> None:
        """What may not cost more to a user who has very much: pages of what is not filtered, or
        found by an exact name or content."""
        account = self.account(user_id)
        filtered = ("by media_type", "by visibility", "by meta", "by name_contains", "every status")
        with account.client:
            for name, step in self._lists(account):
                counted = name.startswith(("/v1/shares", "/v1/keys", "/v1 items"))
                exact = name.startswith("/v2") or "first page" in name or "last page" in name
                if exact and not counted and not any(each in name for each in filtered):
                    with self.recorder.step(f"one who has much: {name}"):
                        step()

    def of_everybody(self, admin: Account) -> None:
        """What is the operator's, the public's and the worker's."""
        for name, step in itertools.chain(
            self._operators(admin), self._gateway(), self._work(), self._imports(), self._upkeep()
        ):
            with self.recorder.step(name):
                step()

    def account(self, user_id: uuid.UUID) -> Account:
        """A client with a new key of a user's."""
        keys = self.server.services.keys
        with self.server.services.database.session_scope() as session:
            user = session.get_one(User, user_id)
            request = KeyRequest(name="tour", scopes=every_scope(user))
            _, key = keys.issue(session, user_id, request, COMMAND_LINE)
            return Account(str(user_id), user.username, key, self.server.client(key))

    def _lists(self, account: Account) -> Iterator[tuple[str, Step]]:
        def get(path: str, **query: Any) -> Step:
            return lambda: _ok(account.client.get(path, params=query), 200)

        for path, filters in PAGES.items():
            for label, query in filters.items():
                yield f"{path} {label}, first page", get(path, **query)
                yield f"{path} {label}, last page", get(path, before=_text(LONG_AGO), **query)
        for path in CURSOR_LISTS:
            behind = Position(LONG_AGO, uuid.UUID(int=0))
            cursor = self.server.services.cursors.write(behind, repr((path, [])))
            yield f"{path}, first page", get(path)
            yield f"{path}, last page", get(path, cursor=cursor)
        for query in (
            {"name": "file 1"},
            {"name_contains": "FILE 12"},
            {"cid": self.cid},
            {"media_type": "image/png"},
            {"visibility": "private"},
            {"meta": '{"album": 7}'},
            {"after": _text(LONG_AGO), "before": _text(LONG_AGO + timedelta(days=1))},
        ):
            label = ", ".join(query)
            yield f"/v1/files by {label}", get("/v1/files", **query)
            if "before" not in query:
                yield f"/v2/files by {label}", get("/v2/files", **query)
        for query in (
            {"cid": self.cid},
            {"status": "failed"},
            {"status": "queued"},
            {"name": "pin 1"},
            {"name": "PIN 1", "match": "iexact"},
            {"name": "in 1", "match": "partial"},
            {"name": "IN 1", "match": "ipartial"},
            {"meta": '{"app": "a7"}'},
        ):
            label = ", ".join(f"{key}={query[key]}" for key in query if key in {"status", "match"})
            yield f"/v1/pins by {label or next(iter(query))}", get("/v1/pins", **query)
        import_id = self._one(select(Import.id).where(Import.user_id == uuid.UUID(account.id)))
        for status in (None, "failed", "waiting"):
            query = {} if status is None else {"status": status}
            for version in ("v1", "v2"):
                path = f"/{version}/imports/{import_id}/items"
                yield f"/{version} items, status={status}", get(path, **query)
        yield "an import", get(f"/v1/imports/{import_id}")
        file_id = self._one(select(File.id).where(File.user_id == uuid.UUID(account.id)))
        yield "a file", get(f"/v1/files/{file_id}")
        yield "its links", get("/v1/shares", file_id=str(file_id))
        yield "myself", get("/v1/users/me")
        yield "my usage", get("/v1/users/me/usage")

    def _reports(self, account: Account, **short: str) -> Iterator[tuple[str, Step]]:
        """`short`: how far those that tell apart whom and what look back."""
        for interval, group in itertools.product(Interval, [None, *GroupBy]):
            query = {"interval": interval.value} | ({"group_by": group.value} if group else {})

            if short and group not in {None, GroupBy.KIND}:
                query |= short
                if interval is Interval.MONTH:
                    continue

            def ask(query: dict[str, str] = query) -> None:
                _ok(account.client.get("/v1/traffic", params=query), 200)

            yield f"traffic by {interval.value} and {group and group.value}", ask

    def _changes(self, account: Account) -> Iterator[tuple[str, Step]]:
        client, made = account.client, {}

        def send(status: int, method: str, path: str, **options: Any) -> Any:
            answer = _ok(client.request(method, path, **options), status)
            return answer.json() if answer.content else None

        def upload() -> None:
            # Known to the server before its key is limited: the quota is asked as well.
            once = {"Idempotency-Key": str(uuid.uuid4())}
            made["file"] = send(
                201, "PUT", "/v1/files?name=x", content=os.urandom(99), headers=once
            )

        def upload_many() -> None:
            parts = [("file", (f"{n}", os.urandom(99))) for n in range(3)]
            send(201, "POST", "/v1/files", files=parts)

        def pin(name: str, cid: str, path: str = "/v1/pins") -> None:
            made[name] = send(202, "POST", path, json={"cid": cid, "name": "tour"})

        def replace() -> None:
            pin("replaced", self.cid, f"/v1/pins/{made['pin']['requestid']}")

        def share() -> None:
            asked = {"file_id": made["file"]["id"], "max_downloads": 3}
            made["share"] = send(201, "POST", "/v1/shares", json=asked)

        def follow() -> None:
            _ok(client.get(made["share"]["url"].replace(self.server.settings.base_url, "")), 200)

        path = "/v1/files/"
        yield "upload", upload
        yield "upload of three", upload_many
        yield "download", lambda: send(200, "HEAD", f"{path}{made['file']['id']}/content")
        yield (
            "rename",
            lambda: send(200, "PATCH", f"{path}{made['file']['id']}", json={"name": "y"}),
        )
        yield (
            "change of visibility",
            lambda: send(
                202, "PATCH", f"{path}{made['file']['id']}", json={"visibility": "private"}
            ),
        )
        yield "new link", share
        yield "the link", follow
        yield "link's end", lambda: send(204, "DELETE", f"/v1/shares/{made['share']['id']}")
        yield "pin of what is here", lambda: pin("pin", self.cid)
        yield "pin of what is not", lambda: pin("missing", build_file(os.urandom(64)).cid)
        yield "a pin", lambda: send(200, "GET", f"/v1/pins/{made['pin']['requestid']}")
        yield "pin replaced", replace
        yield (
            "pin removed",
            lambda: send(202, "DELETE", f"/v1/pins/{made['replaced']['requestid']}"),
        )
        yield (
            "queued pin removed",
            lambda: send(202, "DELETE", f"/v1/pins/{made['missing']['requestid']}"),
        )
        yield "file deleted", lambda: send(204, "DELETE", f"{path}{made['file']['id']}")
        source = {"kind": "cids", "text": f"{self.cid} one\n"}
        yield (
            "new import",
            lambda: made.update(
                {"import": send(202, "POST", "/v1/imports", json={"source": source})}
            ),
        )
        yield (
            "import started",
            lambda: send(202, "POST", f"/v1/imports/{made['import']['id']}/start"),
        )
        yield (
            "import cancelled",
            lambda: send(202, "POST", f"/v1/imports/{made['import']['id']}/cancel"),
        )
        yield "import deleted", lambda: send(204, "DELETE", f"/v1/imports/{made['import']['id']}")

    def _operators(self, admin: Account) -> Iterator[tuple[str, Step]]:
        def get(path: str, **query: Any) -> Step:
            return lambda: _ok(admin.client.get(path, params=query), 200)

        yield "/v1/users", get("/v1/users")
        yield "/v2/users", get("/v2/users")
        yield "a user", get(f"/v1/users/{admin.id}")
        yield (
            "a user changed",
            lambda: _ok(
                admin.client.patch(f"/v1/users/{admin.id}", json={"storage_quota": 10**15}), 200
            ),
        )
        for version in ("v1", "v2"):
            path = f"/{version}/audit"
            yield f"{path}, first page", get(path)
            yield f"{path} by actor", get(path, actor_id=admin.id)
            yield f"{path} by action", get(path, action="user.rename")
        yield "/v1/audit, last page", get("/v1/audit", before=_text(LONG_AGO))
        yield "/v1/node", get("/v1/node")
        yield "/readyz", get("/readyz")
        # Told apart by whom and what, all rows of that time are read: millions of a month.
        lately = _text(datetime.now(UTC) - timedelta(hours=1))
        for name, step in self._reports(admin, **{"from": lately}):
            yield f"everybody's {name}", step

    def _gateway(self) -> Iterator[tuple[str, Step]]:
        def look(cid: str) -> None:
            with self.server.client() as anybody:
                # The node may not have it; the verdict is asked for before.
                _ok(anybody.get(f"/ipfs/{cid}"), 200, 404, 504)

        yield "gateway, popular content", lambda: look(self.cid)
        yield "gateway, unknown content", lambda: look(build_file(os.urandom(64)).cid)

    def _work(self) -> Iterator[tuple[str, Step]]:
        services = self.server.services
        hour = timedelta(hours=1)

        def unpin(session: Session) -> None:
            contents.any_to_let_go(session, hour)
            contents.let_go(session, hour, 50)
            due = contents.removable(session, hour, 50)
            for cid in due[:1]:
                removal = contents.begin_removal(session, cid, grace=hour, life=LIFE)
                assert removal is not None
                assert contents.finish_removal(session, removal)

        def pins(session: Session) -> None:
            for fetch in (False, True):
                user = pin_jobs.next_user(session, None, [], fetch=fetch)
                last = uuid.UUID("ffffffff-ffff-ffff-ffff-ffffffffffff")
                pin_jobs.next_user(session, last, [], fetch=fetch)
                claims = () if user is None else pin_jobs.claim(session, user, 8, LIFE, fetch=fetch)
                for claim in claims:
                    pin_jobs.renew(session, {claim.id: (claim.token, DagStat(1, 1))}, LIFE)
                for claim in claims[2:]:
                    pin_jobs.put_back(session, claim, due_in=hour)
                for claim in claims[:1]:
                    pin_jobs.fail(session, claim, "no")
                for claim in claims[1:2]:
                    pin_jobs.finish(session, claim, DagStat(9, 1), {claim.cid: 1})

        yield "unpinning", self._in_session(unpin)
        yield "pins' jobs", self._in_session(pins)
        yield "pins' queue", self._in_session(pin_jobs.queue_length)
        yield "garbage, busy?", lambda: services.garbage.is_busy()
        yield "garbage, all pinned?", lambda: asyncio.run(self._first_contents())

    def _imports(self) -> Iterator[tuple[str, Step]]:
        def move(session: Session) -> None:
            assert import_jobs.any_due(session) in {True, False}
            claim = import_jobs.claim(session, LIFE)
            if claim is None:
                return
            import_jobs.renew(session, claim, LIFE, {})
            for item in import_jobs.take(session, claim, 8, {}):
                import_jobs.same_pin(session, claim.user_id, item.cid, item.name, item.meta)
                import_jobs.same_file(session, claim.user_id, replace(item, file=FILE_SAID))
                row = import_jobs.get_item(session, item.id)
                import_jobs.end_item(session, claim, row, DagStat(9, 1))
            import_jobs.finish(session, claim)

        yield "imports' jobs", self._in_session(move)

    def _upkeep(self) -> Iterator[tuple[str, Step]]:
        database = self.server.services.database
        now = datetime.now(UTC)

        def changes(session: Session) -> None:
            assert visibility.any_due(session) in {True, False}
            job = visibility.claim(session, LIFE)
            if job is not None:
                visibility.put_back(session, job, None, due_in=LIFE)

        def dead_lease(session: Session) -> None:
            user = session.scalars(select(User.id).where(User.deleted_at.is_(None)).limit(1)).one()
            contents.lock_usage(session, user).reserved_bytes += 1
            session.add(Lease(kind="upload", user_id=user, lease_until=now, reserved_bytes=1))

        def merge() -> None:
            for fine, coarse, days in (("hour", "day", 7), ("day", "month", 100)):
                traffic_upkeep.merge_some(database, fine, coarse, now - timedelta(days=days))

        yield "changes of visibility", self._in_session(changes)
        self._in_session(dead_lease)()
        yield "dead leases", lambda: release_dead_leases(database)
        yield "what has ended", lambda: remove_what_has_ended(database)
        yield "events", lambda: number_events(database)
        yield "traffic's merging", merge

    async def _first_contents(self) -> None:
        """The pages that a look at all pins goes through: a page, and nothing of the rest."""
        services = self.server.services
        from on_api.core.services.upkeep.fsck.checks import NodeChecks
        from on_api.core.services.upkeep.fsck.findings import FsckReport

        checks = NodeChecks(
            services.database, services.node, services.reconciler, services.names, FsckReport(),
            repair=False, fetch=False,
        )  # fmt: skip
        async for _ in checks.pinned_contents():
            break

    def _in_session(self, work: Callable[[Session], object]) -> Step:
        def step() -> None:
            with self.server.services.database.session_scope() as session:
                work(session)

        return step

    def _one(self, statement: Any) -> object:
        with self.server.services.database.session_scope(write=False) as session:
            return session.scalars(statement.limit(1)).first() or uuid.UUID(int=0)


def _ok(answer: Any, *statuses: int) -> Any:
    assert answer.status_code in statuses, f"{answer.request.url}: {answer.text}"
    return answer


def _text(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
