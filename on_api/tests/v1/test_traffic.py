"""What goes out is counted, within budgets: over HTTP, against what the client received."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import func, select

from on_api.core.models import Traffic
from on_api.core.setting_groups import MIB, GatewaySettings, TrafficSettings
from on_api.tests.conftest import Account, DatabaseMaker, Kubo, Server, make_settings
from on_api.tests.testing.deadline import until

SIZE = 300_000
FALLBACK = "https://gateway.example"


@pytest.fixture(scope="module")
def metered(
    new_database: DatabaseMaker, kubo: Kubo, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server that writes quickly what it has counted, and sends away whose budget is used up."""
    settings = make_settings(
        tmp_path_factory.mktemp("home"),
        new_database(),
        ipfs=kubo.ipfs,
        traffic=TrafficSettings(flush_interval=0.05, over_budget="redirect"),
        gateway=GatewaySettings(fallback_url=FALLBACK),
    )
    with Server(settings) as running:
        yield running


@pytest.fixture
def ada(metered: Server) -> Iterator[Account]:
    """Somebody."""
    account = metered.new_user()
    with account.client:
        yield account


@pytest.fixture
def root(metered: Server) -> Iterator[Account]:
    """Who sets budgets."""
    account = metered.new_user(admin=True)
    with account.client:
        yield account


def egress_of(account: Account) -> dict[str, Any]:
    """What an account has spent this month."""
    answer = account.client.get("/v1/users/me/usage")
    assert answer.status_code == 200
    return dict(answer.json()["egress"])


def settles_at(account: Account, size: int) -> None:
    """Once all is written and given back, exactly this much is counted."""
    until(lambda: egress_of(account)["bytes"] == size, f"{size} bytes are counted")


def counted(server: Server, **where: object) -> dict[str, int]:
    """Sums of what was written."""
    columns = ["requests", "unchanged", "failed", "bytes_out", "bytes_in"]
    with server.services.database.session_scope(write=False) as session:
        sums = select(*[func.sum(getattr(Traffic, name)) for name in columns]).filter_by(**where)
        return {
            name: int(value or 0)
            for name, value in zip(columns, session.execute(sums).one(), strict=True)
        }


def test_exactly_the_bytes_of_bodies_are_counted(metered: Server, ada: Account) -> None:
    """Whole and part count what they carry; HEAD, 304 and errors nothing but their request."""
    data = os.urandom(SIZE)
    file = ada.upload(data)
    path = f"/v1/files/{file['id']}/content"
    assert egress_of(ada)["bytes"] == 0
    answer = ada.client.get(path)
    assert answer.content == data
    assert ada.client.get(path, headers={"Range": "bytes=100-299"}).status_code == 206
    assert ada.client.head(path).status_code == 200
    unchanged = ada.client.get(path, headers={"If-None-Match": answer.headers["etag"]})
    assert unchanged.status_code == 304
    assert ada.client.get(path, headers={"Range": f"bytes={SIZE}-"}).status_code == 416
    spent = egress_of(ada)
    # What was taken ahead for them is told apart from what went out.
    assert spent["bytes"] - spent["reserved"] <= SIZE + 200 <= spent["bytes"]
    settles_at(ada, SIZE + 200)
    assert egress_of(ada)["reserved"] == 0
    file_id = {"file_id": UUID(str(file["id"]))}
    assert counted(metered, kind="content", **file_id) == {
        "requests": 4,
        "unchanged": 1,
        "failed": 0,
        "bytes_out": SIZE + 200,
        "bytes_in": 0,
    }
    uploaded = counted(metered, kind="upload", **file_id)
    assert (uploaded["requests"], uploaded["bytes_in"], uploaded["bytes_out"]) == (1, SIZE, 0)


@pytest.mark.parametrize("form", ["car", "pins", "json"])
def test_an_export_is_counted(metered: Server, ada: Account, form: str) -> None:
    """What leaves at once, too; with nothing left it doesn't begin."""
    ada.upload(os.urandom(SIZE))
    path = f"/v1/users/me/export?format={form}"
    size = len(ada.client.get(path).content)
    assert size > (SIZE if form == "car" else 50)
    settles_at(ada, size)
    ours = {"kind": "export", "owner_id": UUID(ada.id)}
    assert counted(metered, **ours)["bytes_out"] == size
    with metered.new_user(admin=True).client as root:
        root.patch(f"/v1/users/{ada.id}", json={"egress_budget": size}).raise_for_status()
    refused = ada.client.get(path)
    assert (refused.status_code, refused.json()["error"]["reason"]) == (
        429,
        "EGRESS_BUDGET_EXCEEDED",
    )


def test_an_export_that_the_budget_does_not_hold(ada: Account, root: Account) -> None:
    """Refused before its first byte, not cut; the list is small enough."""
    cid = ada.upload(os.urandom(SIZE))["cid"]
    answer = root.client.patch(f"/v1/users/{ada.id}", json={"egress_budget": SIZE // 2})
    assert answer.status_code == 200, answer.text
    refused = ada.client.get("/v1/users/me/export")
    assert (refused.status_code, refused.json()["error"]["reason"]) == (
        429, "EGRESS_BUDGET_EXCEEDED",
    )  # fmt: skip
    assert str(cid) in ada.client.get("/v1/users/me/export?format=pins").text


def test_a_link_is_counted_for_its_owner(metered: Server, ada: Account) -> None:
    """Whoever opens it, by whichever way."""
    file = ada.upload(os.urandom(SIZE), visibility="private")
    share = ada.client.post("/v1/shares", json={"file_id": file["id"]}).json()
    path = share["url"].split("/s/")[1]
    with metered.client() as anyone:
        assert len(anyone.get(f"/s/{path}").content) == SIZE
        assert len(anyone.post(f"/s/{path}").content) == SIZE
        page = anyone.get(f"/s/{path}", headers={"Accept": "text/html"})
        assert page.headers["content-type"].startswith("text/html")
    settles_at(ada, 2 * SIZE)
    share_id = UUID(share["id"])
    assert counted(metered, share_id=share_id)["bytes_out"] == 2 * SIZE


def test_a_used_up_budget_sends_public_content_elsewhere(
    metered: Server, ada: Account, root: Account
) -> None:
    """And refuses the rest, saying until when. A raised budget helps at once."""
    public = ada.upload(os.urandom(SIZE), name="a b.txt")
    private = ada.upload(os.urandom(SIZE), visibility="private")
    budget = {"egress_budget": SIZE - 1}
    assert root.client.patch(f"/v1/users/{ada.id}", json=budget).status_code == 200

    elsewhere = ada.client.get(f"/v1/files/{public['id']}/content")
    assert elsewhere.status_code == 302
    wanted = f"{FALLBACK}/ipfs/{public['cid']}?filename=a+b.txt"
    assert elsewhere.headers["location"] == wanted
    refused = ada.client.get(f"/v1/files/{private['id']}/content")
    assert refused.status_code == 429
    assert refused.json()["error"]["reason"] == "EGRESS_BUDGET_EXCEEDED"
    assert 0 < int(refused.headers["retry-after"]) <= 31 * 86_400
    head = ada.client.head(f"/v1/files/{private['id']}/content")
    assert head.status_code == 200
    settles_at(ada, 0)

    assert root.client.patch(f"/v1/users/{ada.id}", json={"egress_budget": SIZE}).status_code == 200
    whole = ada.client.get(f"/v1/files/{private['id']}/content")
    assert len(whole.content) == SIZE
    assert egress_of(ada) | {"forecast": 0, "period_end": "", "reserved": 0} == {
        "bytes": SIZE,
        "budget": SIZE,
        "forecast": 0,
        "period_end": "",
        "reserved": 0,
    }


def test_a_budget_that_ends_in_the_middle_cuts_the_answer(
    metered: Server, ada: Account, root: Account
) -> None:
    """Two downloads that don't both fit: what can't go out is visibly missing."""
    file = ada.upload(os.urandom(20 * SIZE))
    budget = {"egress_budget": 30 * SIZE}
    assert root.client.patch(f"/v1/users/{ada.id}", json=budget).status_code == 200
    path = f"/v1/files/{file['id']}/content"
    received, complete = 0, 0
    with ada.client.stream("GET", path) as first, ada.client.stream("GET", path) as second:
        for answer in (first, second):
            if answer.status_code != 200:  # sent elsewhere
                continue
            with contextlib.suppress(httpx.RemoteProtocolError):
                for chunk in answer.iter_raw():
                    received += len(chunk)
                complete += 1
    assert complete < 2
    assert received <= egress_of(ada)["bytes"] <= 30 * SIZE
    until(lambda: egress_of(ada)["bytes"] <= received + 8 * MIB, "unused credit comes back")


def test_a_key_has_a_budget_of_its_own(ada: Account, metered: Server) -> None:
    """Its maker goes on."""
    file = ada.upload(os.urandom(SIZE), visibility="private")
    path = f"/v1/files/{file['id']}/content"
    key = ada.make_key("files:read", egress_budget=SIZE + 10)
    with metered.client(key) as limited:
        assert limited.get(path).status_code == 200
        assert limited.get(path).json()["error"]["reason"] == "EGRESS_BUDGET_EXCEEDED"
        assert limited.get(path, headers={"Range": "bytes=0-9"}).status_code == 206
    assert ada.client.get(path).status_code == 200
    settles_at(ada, 2 * SIZE + 10)
    forbidden = ada.client.post(
        "/v1/keys", json={"name": "x", "scopes": ["keys:write"], "egress_budget": 1}
    )
    assert forbidden.status_code == 400


def report(account: Account, **query: object) -> dict[str, Any]:
    """A traffic report."""
    answer = account.client.get("/v1/traffic", params={k: str(v) for k, v in query.items()})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_reports_agree_with_each_other(metered: Server, ada: Account, root: Account) -> None:
    """By file, key, share, kind, user and content, by hour, day and month: the same sums, to the
    byte of what was received."""
    files = [ada.upload(os.urandom(size)) for size in (1000, 20_000, 300_000)]
    key = ada.make_key("files:read")
    received = 0
    with metered.client(key) as keyed:
        for file in files:
            for client in (ada.client, keyed, keyed):
                received += len(client.get(f"/v1/files/{file['id']}/content").content)
    share = ada.client.post("/v1/shares", json={"file_id": files[1]["id"]}).json()
    with metered.client() as anyone:
        received += len(anyone.get(f"/s/{share['url'].split('/s/')[1]}").content)
    settles_at(ada, received)

    total = report(ada)["total"]
    assert total == {
        "requests": 13,
        "unchanged": 0,
        "failed": 0,
        "bytes_out": received,
        "bytes_in": 321_000,
    }
    for interval in ("hour", "day", "month"):
        for group in ("file", "cid", "key", "share", "user", "kind"):
            grouped = report(ada, interval=interval, group_by=group)
            assert grouped["total"] == total
            for name, value in total.items():
                assert sum(item[name] for item in grouped["items"]) == value
            assert all(set(item) == {"period", group, *total} for item in grouped["items"])
    by_file = report(ada, group_by="file")["items"]
    assert [item["file"] for item in by_file] == [files[2]["id"], files[1]["id"], files[0]["id"]]
    shares = {item["share"]: item["bytes_out"] for item in report(ada, group_by="share")["items"]}
    assert shares == {share["id"]: 20_000, None: received - 20_000}
    keyed_bytes = {item["key"]: item["bytes_out"] for item in report(ada, group_by="key")["items"]}
    assert sorted(keyed_bytes.values()) == [20_000, 321_000, 642_000]
    top = report(ada, group_by="file", limit=1)
    assert (len(top["items"]), top["truncated"], top["total"]) == (1, True, total)
    assert report(root, group_by="user", user_id=ada.id)["items"][0]["bytes_out"] == received
    other = metered.new_user()
    with other.client:
        other.upload(b"of somebody else")
        until(lambda: report(other)["total"]["requests"] == 1, "it is counted")
    everybody = report(root, group_by="user", limit=1000)["items"]
    assert {item["user"] for item in everybody} >= {ada.id, other.id}


def test_a_report_is_nobody_elses(ada: Account, root: Account, metered: Server) -> None:
    """Someone else's is not there, and a key needs the scope; an administrator's key shows
    everybody's only with the scope admin."""
    ada.upload(b"x" * 77)
    until(lambda: report(ada)["total"]["bytes_in"] == 77, "it is counted")
    bob = metered.new_user()
    with bob.client:
        assert report(bob)["total"]["bytes_in"] == 0
        assert bob.client.get(f"/v1/traffic?user_id={ada.id}").status_code == 404
        with metered.client(bob.make_key("files:read")) as narrow:
            assert narrow.get("/v1/traffic").status_code == 403
    with metered.client(root.make_key("traffic:read")) as narrow:
        assert narrow.get("/v1/traffic").json()["total"]["bytes_in"] == 0
    assert root.client.get(f"/v1/users/{ada.id}/usage").status_code == 200


def test_traffic_outlives_its_user(ada: Account, root: Account) -> None:
    """What was counted for an account is there when it is gone."""
    file = ada.upload(b"x" * 1234)
    assert ada.client.get(f"/v1/files/{file['id']}/content").status_code == 200
    settles_at(ada, 1234)
    assert root.client.delete(f"/v1/users/{ada.id}").status_code == 202
    left = report(root, user_id=ada.id, group_by="kind")
    assert (left["total"]["bytes_in"], left["total"]["bytes_out"]) == (1234, 1234)
    metrics = root.client.get("/metrics").text
    assert 'on_api_egress_bytes_total{kind="content"}' in metrics
    assert "on_api_egress_open_credit_bytes" in metrics


def test_a_report_as_csv(ada: Account) -> None:
    """For a spreadsheet, by Accept or by format."""
    file = ada.upload(b"x" * 50)
    until(lambda: report(ada)["total"]["bytes_in"] == 50, "it is counted")
    by_format = ada.client.get("/v1/traffic?format=csv&group_by=file&interval=month")
    assert by_format.headers["content-type"].startswith("text/csv")
    head, line = by_format.text.splitlines()
    assert head == "period,file,requests,unchanged,failed,bytes_out,bytes_in"
    assert line.split(",")[1:] == [file["id"], "1", "0", "0", "0", "50"]
    by_accept = ada.client.get("/v1/traffic", headers={"Accept": "text/csv"})
    assert by_accept.text.startswith("period,requests")


@pytest.mark.parametrize(
    "query",
    [
        "from=0001-01-01T00:00:00Z&to=0001-01-02T00:00:00Z&interval=month",
        "from=9999-12-31T23:59:59Z",
        "to=9999-12-31T23:59:59Z&sort=period&group_by=cid",
    ],
)
def test_any_range_is_answered(ada: Account, query: str) -> None:
    """With nothing in it, rather than an error of ours."""
    assert ada.client.get(f"/v1/traffic?{query}").status_code == 200
