"""`/ipfs`: who may have what, who is charged, and how soon a change holds. On both databases."""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import delete, select

from on_api.core.ipfs.formats.cid import DAG_PB, RAW, Cid
from on_api.core.ipfs.formats.dag import DAG_CBOR, links_of
from on_api.core.models import AuditEvent, File, Traffic
from on_api.core.models.invalidation import Invalidations
from on_api.core.services.accounts.audit import COMMAND_LINE
from on_api.core.services.gateway import deny_list
from on_api.core.setting_groups import GatewaySettings, TrafficSettings
from on_api.core.settings import Settings
from on_api.tests.conftest import Account, DatabaseMaker, Kubo, Server
from on_api.tests.testing.dags import linking
from on_api.tests.testing.deadline import until
from on_api.tests.testing.gateway_corpus import RawClient, add_folder, raw_client
from on_api.tests.testing.pins import add_pin, forms_of, version_0
from on_api.tests.testing.plain_http import NO_TLS
from on_api.tests.testing.processes import Home, beside

Make = Callable[..., Settings]


def some_bytes() -> bytes:
    """Of a file that nobody else has."""
    return os.urandom(5000)


def plain_forms(cid: str) -> list[str]:
    """The other forms of a CID that fit into a path."""
    return [form for form in forms_of(cid).values() if "/" not in form]


@pytest.fixture
def ask(server: Server) -> Iterator[RawClient]:
    """An anonymous client that sends paths as they are."""
    with raw_client(server.url) as client:
        yield client


def pin_folder(kubo: Kubo, account: Account, files: dict[str, bytes]) -> tuple[str, str]:
    """A folder on the node, pinned by somebody. Returns its CID and the request's id."""
    cid = add_folder(kubo, files)
    request = add_pin(account, cid)["requestid"]
    pins = account.client
    until(lambda: pins.get(f"/v1/pins/{request}").json()["status"] == "pinned", "it is pinned")
    return cid, str(request)


def test_public_files_are_there_for_everybody_until_they_are_deleted(
    server: Server, alice: Account, bob: Account, anonymous: httpx.Client
) -> None:
    """At once, in the URL that the file names; once for each who holds it; also out of memory."""
    data = some_bytes()
    file = alice.upload(data)
    assert file["gateway_url"] == f"{server.settings.base_url}/ipfs/{file['cid']}"
    path = f"/ipfs/{file['cid']}"
    for _ in range(4):
        answer = anonymous.get(path)
        assert (answer.status_code, answer.content) == (200, data)
        assert "immutable" in answer.headers["cache-control"]
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("sandbox")
        assert "allow-same-origin" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert len(answer.headers["x-request-id"]) == 16
    same = bob.upload(data)
    alice.client.delete(f"/v1/files/{file['id']}").raise_for_status()
    assert anonymous.get(path).content == data
    bob.client.delete(f"/v1/files/{same['id']}").raise_for_status()
    gone, never = anonymous.get(path), anonymous.get(f"/ipfs/{Cid(RAW, 0x12, os.urandom(32))}")
    assert (gone.status_code, gone.content) == (404, never.content)
    assert gone.headers["cache-control"] == "no-store"
    alice.upload(data)
    assert anonymous.get(path).content == data


def test_hot_answers_keep_to_http(server: Server, alice: Account, anonymous: httpx.Client) -> None:
    """Several requests sent at once are answered in their order; the last one ends the
    connection."""
    files = [alice.upload(some_bytes(), str(n)) for n in range(2)]
    paths = [f"/ipfs/{file['cid']}" for file in files]
    bodies = [anonymous.get(path).content for path in paths]
    place = httpx.URL(server.url)
    head = "GET {} HTTP/1.1\r\nHost: x\r\n{}\r\n"
    asked = [(paths[n % 2], "Connection: close\r\n" if n == 4 else "") for n in range(5)]
    with socket.create_connection((place.host, place.port or 0), 20) as connection:
        connection.sendall("".join(head.format(*one) for one in asked).encode())
        came = b""
        while piece := connection.recv(65536):
            came += piece
    answers = came.split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert [answer.partition(b"\r\n\r\n")[2] for answer in answers] == [
        bodies[n % 2] for n in range(5)
    ]
    assert [b"connection: close" in answer for answer in answers] == [False] * 4 + [True]


def test_what_is_made_private_and_what_always_was(alice: Account, anonymous: httpx.Client) -> None:
    """Ciphertext is nobody's business; the plain CID goes with the change."""
    data = some_bytes()
    private = alice.upload(some_bytes(), visibility="private")
    assert anonymous.get(f"/ipfs/{private['cid']}").status_code == 404
    file = alice.upload(data)
    assert anonymous.get(f"/ipfs/{file['cid']}").content == data
    changed = alice.client.patch(f"/v1/files/{file['id']}", json={"visibility": "private"})
    assert changed.status_code == 202

    def now() -> dict[str, str]:
        return dict(alice.client.get(f"/v1/files/{file['id']}").json())

    until(lambda: now()["visibility"] == "private", "it is private")
    assert anonymous.get(f"/ipfs/{file['cid']}").status_code == 404
    assert anonymous.get(f"/ipfs/{now()['cid']}").status_code == 404


def test_pins_and_every_path_below_them(
    kubo: Kubo, alice: Account, anonymous: httpx.Client
) -> None:
    """A root by whatever name; not its parts as roots of their own; not when the pin is removed."""
    inside = some_bytes()
    folder, request = pin_folder(kubo, alice, {"a.txt": inside, "sub/b": b"b" + inside})
    forms = plain_forms(folder)
    for root in (folder, *forms):
        assert anonymous.get(f"/ipfs/{root}/a.txt").content == inside
    part = anonymous.get(f"/ipfs/{folder}/a.txt").headers["etag"].strip('"')
    assert anonymous.get(f"/ipfs/{part}").status_code == 404
    assert anonymous.get(f"/ipfs/{folder}?format=car").status_code == 200
    alice.client.delete(f"/v1/pins/{request}").raise_for_status()
    for root in (folder, *forms):
        assert anonymous.get(f"/ipfs/{root}/a.txt").status_code == 404


def test_a_pin_that_is_replaced_is_gone_before_the_new_one_is_there(
    kubo: Kubo, alice: Account, anonymous: httpx.Client
) -> None:
    """Its content is held meanwhile; it is listed no more."""
    folder, request = pin_folder(kubo, alice, {"a.txt": some_bytes()})
    assert anonymous.get(f"/ipfs/{folder}/a.txt").status_code == 200
    never = {"cid": str(Cid(RAW, 0x12, os.urandom(32)))}
    assert alice.client.post(f"/v1/pins/{request}", json=never).status_code == 202
    assert anonymous.get(f"/ipfs/{folder}/a.txt").status_code == 404


HOSTILE = [
    "/ipfs/{listed}/../{hidden}", "/ipfs/{listed}/%2e%2e/{hidden}",
    "/ipfs/{listed}/%2E%2e/{hidden}", "/ipfs/{listed}/.%2e/{hidden}",
    "/ipfs/{listed}%2f..%2f{hidden}", "/ipfs/{listed}%2F%2e%2e%2F{hidden}",
    "/ipfs/{listed}/sub/../../{hidden}", "/ipfs/{listed}/sub/%2e%2e/%2e%2e/{hidden}",
    "/ipfs/{listed}/%2e%2e/%2e%2e/ipfs/{hidden}", "/ipfs/{listed}/..;/{hidden}",
    "/ipfs/{listed}/%2e%2e;x/{hidden}", "/ipfs/{listed}/..%5c{hidden}",
    "/ipfs/{listed}\\..\\{hidden}", "/ipfs/{listed}/%252e%252e/{hidden}",
    "/ipfs/%2e%2e/ipfs/{hidden}", "/ipfs/{listed}/%2e%2e%00/{hidden}", "/ipfs/{hidden}%00",
    "/ipfs/{hidden}%0a", "/ipfs/{hidden}%20", "/ipfs/{hidden}/", "/ipfs//{hidden}",
    "/ipfs/./{hidden}", "/ipfs/%2e/{hidden}", "/%69pfs/{hidden}", "/ipfs%2f{hidden}",
    "/ipfs/ipfs/{hidden}", "/ipfs/{listed}/../../ipfs/{hidden}", "/ipfs/{encoded}",
    "/ipfs/{hidden}?x={listed}", "/ipfs/{listed}/{hidden}", "/ipfs/{upper}", "/ipfs/{base58}",
    "/ipfs/{base36}", "/ipfs/{base16}", "/ipfs/{base64}", "/ipfs/{base64url}",
    "/ipfs/{hidden}?format=raw", "/ipfs/{hidden}?format=car", "/ipfs/{as_dag_pb}?format=raw",
    "/ipfs/?uri=ipfs://{hidden}", "/ipns/{hidden}", "/ipfs/{listed}/%2e%2e/%2e%2e/ipld/{hidden}",
    "/ipld/{hidden}", "/ipfs/{listed}/%c0%ae%c0%ae/{hidden}", "/ipfs/{listed}/%ff/../../{hidden}",
    "/ipfs/{listed}/…",
]  # fmt: skip


def test_no_way_to_write_a_path_leads_to_what_is_not_listed(
    kubo: Kubo, alice: Account, ask: RawClient
) -> None:
    """However it is encoded, and whatever redirects say; a listed one next to it doesn't help."""
    secret = some_bytes()
    listed, _ = pin_folder(kubo, alice, {"a.txt": b"listed", "sub/x": b"x"})
    private = alice.upload(secret)
    alice.client.delete(f"/v1/files/{private['id']}").raise_for_status()  # it stays on the node
    hidden = str(private["cid"])
    forms = forms_of(hidden)
    parsed = Cid.from_text(hidden)
    names = {
        **forms, "listed": listed, "hidden": hidden, "upper": forms["base32upper"],
        "encoded": "".join(f"%{ord(letter):02x}" for letter in hidden),
        "base58": forms["base58btc"],
        "as_dag_pb": str(Cid(DAG_PB, parsed.hash_code, parsed.digest)),
    }  # fmt: skip
    assert ask(f"/ipfs/{listed}/a.txt").body == b"listed"
    for hostile in HOSTILE:
        target, hops = hostile.format(**names), 0
        target = target.encode("ascii", "ignore").decode()
        while True:
            answer = ask(target)
            assert secret not in answer.body, hostile
            assert hidden not in answer.headers.get("x-ipfs-roots", ""), hostile
            if "location" not in answer.headers or hops == 5:
                break
            target, hops = answer.headers["location"], hops + 1
        assert answer.status in {400, 404} or hidden not in target, hostile


def test_the_deny_list(kubo: Kubo, server: Server, alice: Account, anonymous: httpx.Client) -> None:
    """Root, paths below, every form of the CID and every codec; 410 or 451; until it is undone. The
    file's own content and links are not concerned."""
    folder, _ = pin_folder(kubo, alice, {"a.txt": some_bytes()})
    file = alice.upload(some_bytes())
    database = server.services.database
    paths = [f"/ipfs/{folder}/a.txt", f"/ipfs/{file['cid']}"]
    assert [anonymous.get(path).status_code for path in paths] == [200, 200]
    with database.session_scope() as session:
        for cid, status in ((folder, 451), (forms_of(str(file["cid"]))["base58btc"], 410)):
            deny_list.deny(session, cid, status=status, reason="a letter", actor=COMMAND_LINE)
    assert [anonymous.get(path).status_code for path in paths] == [451, 410]
    assert "letter" not in anonymous.get(paths[0]).text
    parsed = Cid.from_text(folder)
    as_raw = str(Cid(RAW, parsed.hash_code, parsed.digest))
    for root in (folder, as_raw, *plain_forms(folder)):
        assert anonymous.get(f"/ipfs/{root}?format=raw").status_code == 451
    assert alice.client.get(f"/v1/files/{file['id']}/content").status_code == 200
    with database.session_scope() as session:
        deny_list.undeny(session, folder, COMMAND_LINE)
        deny_list.undeny(session, str(file["cid"]), COMMAND_LINE)
        lines = session.scalars(
            select(AuditEvent.action).where(AuditEvent.target_type == "cid")
        ).all()
    assert [anonymous.get(path).status_code for path in paths] == [200, 200]
    assert {"gateway.deny", "gateway.allow"} <= set(lines)


def test_a_change_holds_in_another_process_within_a_second(
    new_database: DatabaseMaker, settings_for: Make
) -> None:
    """Two servers on one database: deleted and denied by the one, gone from the other's memory."""
    settings = settings_for(new_database())
    with Server(settings) as first, Server(settings) as second:
        account = first.new_user()
        with second.client() as client, account.client:
            files = [account.upload(some_bytes(), str(n)) for n in range(2)]
            paths = [f"/ipfs/{file['cid']}" for file in files]

            def statuses() -> list[int]:
                return [client.get(path).status_code for path in paths]

            until(lambda: statuses() == [200, 200], "both are served")
            account.client.delete(f"/v1/files/{files[0]['id']}").raise_for_status()
            with first.services.database.session_scope() as session:
                deny_list.deny(
                    session, str(files[1]["cid"]), status=410, reason=None, actor=COMMAND_LINE
                )
            until(lambda: statuses() == [404, 410], "the news has come")


def test_nothing_remembered_is_used_while_no_news_comes(
    server: Server, alice: Account, anonymous: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that goes without a word, as another process's would."""
    file = alice.upload(some_bytes())
    path = f"/ipfs/{file['cid']}"
    assert [anonymous.get(path).status_code for _ in range(3)] == [200] * 3
    monkeypatch.setattr(Invalidations, "trusted", False)
    with server.services.database.session_scope() as session:
        session.execute(delete(File).where(File.id == uuid.UUID(str(file["id"]))))
    assert anonymous.get(path).status_code == 404


def test_keys_are_charged_too_and_wrong_ones_refused(
    server: Server, alice: Account, bob: Account
) -> None:
    """The bytes are the holder's, and the key's that asked."""
    data = some_bytes()
    file = alice.upload(data)
    path = f"/ipfs/{file['cid']}"
    with server.client("onapi_" + "x" * 40) as stranger:
        refused = stranger.get(path)
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    for _ in range(2):
        assert bob.client.get(path).content == data
    rows = _counted(server, str(file["cid"]), 2)
    assert {(row.owner_id, row.kind) for row in rows} == {(uuid.UUID(alice.id), "gateway")}
    assert sum(row.bytes_out for row in rows if row.key_id is not None) == 2 * len(data)


def _counted(server: Server, cid: str, requests: int = 1) -> list[Traffic]:
    """What was counted for a root, once so many requests are written."""
    database = server.services.database

    def rows() -> list[Traffic]:
        with database.session_scope(write=False) as session:
            wanted = (Traffic.cid == cid) & (Traffic.kind == "gateway")
            found = list(session.scalars(select(Traffic).where(wanted)))
            return found if sum(row.requests for row in found) >= requests else []

    return until(rows, "what went out is written")


def test_who_is_charged(
    server: Server, admin: Account, alice: Account, bob: Account, anonymous: httpx.Client
) -> None:
    """The oldest holder with budget left, files before pins; from memory as from the node."""
    data = some_bytes()
    pinned = bob.upload(data)
    add_pin(alice, str(pinned["cid"]))
    bob.client.delete(f"/v1/files/{pinned['id']}").raise_for_status()
    bob.upload(data)
    path = f"/ipfs/{pinned['cid']}"
    for _ in range(3):
        assert anonymous.get(path).status_code == 200
    [row] = _counted(server, str(pinned["cid"]), 3)
    assert (row.owner_id, row.bytes_out) == (uuid.UUID(bob.id), 3 * len(data))
    spent = {"egress_budget": 3 * len(data)}
    admin.client.patch(f"/v1/users/{bob.id}", json=spent).raise_for_status()
    for _ in range(3):
        assert anonymous.get(path).status_code == 200

    def owners() -> set[uuid.UUID | None]:
        return {row.owner_id for row in _counted(server, str(pinned["cid"]))}

    until(lambda: uuid.UUID(alice.id) in owners(), "the pin's owner is charged")
    admin.client.patch(f"/v1/users/{alice.id}", json={"egress_budget": 0}).raise_for_status()
    refused = anonymous.get(path)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    assert anonymous.head(path).status_code == 200


def test_over_budget_public_content_is_to_be_had_elsewhere(
    sqlite_database: DatabaseMaker, settings_for: Make
) -> None:
    """When the operator has chosen so: with path and query."""
    settings = settings_for(
        sqlite_database(),
        gateway=GatewaySettings(fallback_url="https://elsewhere.example"),
        traffic=TrafficSettings(over_budget="redirect", instance_budget=0),
    )
    with Server(settings) as server:
        account = server.new_user()
        with account.client, server.client() as client:
            path = f"/ipfs/{account.upload(some_bytes())['cid']}?filename=a%20b"
            answer = client.get(path)
            assert answer.status_code == 302
            assert answer.headers["location"] == f"https://elsewhere.example{path}"


def test_closed_is_for_keys_alone(sqlite_database: DatabaseMaker, settings_for: Make) -> None:
    """Nothing is told without one; what isn't listed stays hidden; nobody keeps a copy."""
    settings = settings_for(sqlite_database(), gateway=GatewaySettings(policy="closed"))
    with Server(settings) as server, server.client() as anonymous:
        alice, bob = server.new_user(), server.new_user()
        with alice.client, bob.client:
            data = some_bytes()
            path = f"/ipfs/{alice.upload(data)['cid']}"
            hidden = f"/ipfs/{alice.upload(data, visibility='private')['cid']}"
            for asked in (path, hidden):
                answer = anonymous.get(asked)
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            with server.client(bob.make_key("pins:read")) as narrow:
                assert narrow.get(path).status_code == 403
            for _ in range(3):
                answer = bob.client.get(path)
                assert (answer.status_code, answer.content) == (200, data)
                assert answer.headers["cache-control"] == "private, no-store"
            assert bob.client.get(path, headers={"Range": "bytes=1-2"}).content == data[1:3]
            assert bob.client.get(hidden).status_code == 404
            assert anonymous.get(path).status_code == 401


def test_local_serves_all_but_private_files(
    sqlite_database: DatabaseMaker, settings_for: Make, kubo: Kubo
) -> None:
    """What nobody refers to is the instance's own to pay for."""
    settings = settings_for(sqlite_database(), gateway=GatewaySettings(policy="local"))
    with Server(settings) as server, server.client() as anonymous:
        account = server.new_user()
        with account.client:
            folder = add_folder(kubo, {"a.txt": some_bytes()})
            private = account.upload(os.urandom(2**21), visibility="private")
            assert anonymous.get(f"/ipfs/{folder}/a.txt").status_code == 200
            [row] = _counted(server, folder)
            assert (row.owner_id, row.bytes_out) == (None, 5000)
            parsed = Cid.from_text(str(private["cid"]))
            for codec in (RAW, DAG_PB):
                root = str(Cid(codec, parsed.hash_code, parsed.digest))
                for query in ("", "?format=raw", "?format=car"):
                    assert anonymous.get(f"/ipfs/{root}{query}").status_code == 404


def children_of(kubo: Kubo, root: str) -> list[Cid]:
    """What a root links to, from the node itself."""
    address = f"{kubo.ipfs.gateway_url}/ipfs/{root}"
    block = httpx.get(address, params={"format": "raw"}, verify=NO_TLS, trust_env=False)
    return links_of(Cid.from_text(root).codec, block.content)


def test_local_serves_no_block_of_a_private_file(
    new_database: DatabaseMaker, settings_for: Make, kubo: Kubo
) -> None:
    """Neither the root nor what is below it, in whatever form, nor by a DAG that leads there; not
    when the file has been deleted or made public since. Blocks of public files are served."""
    settings = settings_for(new_database(), gateway=GatewaySettings(policy="local"))
    with Server(settings) as server, server.client() as anonymous:
        account = server.new_user()
        with account.client as client:
            data = os.urandom(2**21 + 5)
            public = children_of(kubo, str(account.upload(data)["cid"]))
            assert {anonymous.get(f"/ipfs/{cid}").status_code for cid in public} == {200}
            private = account.upload(data, visibility="private")
            hidden = [*children_of(kubo, str(private["cid"])), Cid.from_text(str(private["cid"]))]
            assert len(hidden) == 4

            def statuses(query: str = "") -> set[int]:
                return {anonymous.get(f"/ipfs/{cid}{query}").status_code for cid in hidden}

            for query in ("", "?format=raw", "?format=car", "?format=car&entity-bytes=0:9"):
                assert statuses(query) == {404}
            for form in written(hidden[0]) | written(hidden[-1]):
                assert anonymous.get(f"/ipfs/{form}").status_code == 404
            inline = Cid(DAG_CBOR, 0, linking(hidden[0])[1])
            for query in ("/0", "/0?format=raw", "?format=car"):
                assert anonymous.get(f"/ipfs/{inline}{query}").status_code == 404
            assert {anonymous.get(f"/ipfs/{cid}").status_code for cid in public} == {200}
            path = f"/v1/files/{private['id']}"
            assert client.delete(path).status_code == 204
            assert statuses() == {404}


def written(cid: Cid) -> set[str]:
    """The same multihash in other spellings."""
    forms = set()
    for codec in (RAW, DAG_PB):
        text = str(Cid(codec, cid.hash_code, cid.digest))
        forms |= {text, text.upper(), *(f for f in forms_of(text).values() if "/" not in f)}
    return forms | {version_0(cid.digest)}


def test_a_private_file_of_before_is_found(
    sqlite_database: DatabaseMaker, settings_for: Make, kubo: Kubo
) -> None:
    """One that another policy has stored, at the first request; no block of it goes out before."""
    url = sqlite_database()
    with Server(settings_for(url)) as listed:
        account = listed.new_user()
        with account.client:
            private = account.upload(os.urandom(2**21), visibility="private")
    children = children_of(kubo, str(private["cid"]))
    settings = settings_for(url, gateway=GatewaySettings(policy="local"))
    with Server(settings) as local, local.client() as anonymous:
        assert {anonymous.get(f"/ipfs/{cid}").status_code for cid in children} == {404}


@pytest.mark.parametrize("policy", ["listed", "local"])
def test_a_cid_that_is_its_own_content(
    sqlite_database: DatabaseMaker, settings_for: Make, policy: str
) -> None:
    """Served to everybody: clients probe for it. One with links leads nowhere that it may not."""
    settings = settings_for(sqlite_database(), gateway=GatewaySettings(policy=policy))
    with Server(settings) as server, server.client() as anonymous:
        account = server.new_user()
        with account.client:
            hidden = Cid.from_text(str(account.upload(b"x" * 300, visibility="private")["cid"]))
            for cid, body in (("bafkqaaa", b""), (str(Cid(RAW, 0, b"inline")), b"inline")):
                for query in ("", "?format=raw"):
                    for method in ("GET", "HEAD"):
                        answer = anonymous.request(method, f"/ipfs/{cid}{query}")
                        assert answer.status_code == 200
                        assert answer.content == (body if method == "GET" else b"")
                probe = anonymous.get(
                    f"/ipfs/{cid}", headers={"Accept": "application/vnd.ipld.raw"}
                )
                assert (probe.status_code, probe.content) == (200, body)
                assert probe.headers["content-type"] == "application/vnd.ipld.raw"
            leading = Cid(DAG_CBOR, 0, linking(hidden)[1])
            for query in ("", "/0", "?format=raw", "?format=car"):
                assert anonymous.get(f"/ipfs/{leading}{query}").status_code == 404


def test_the_deny_list_by_command_beside_a_running_server(tmp_path: Path, kubo: Kubo) -> None:
    """`on-api gateway deny`, `list`, `undeny`: heard by a server that has the content in memory."""
    home = Home(tmp_path, beside(kubo))
    key = home.init()
    with home.serving(), home.client(key) as client:
        file = client.put("/v1/files?name=x", content=some_bytes()).json()
        assert file["gateway_url"] == f"http://localhost:{home.port}/ipfs/{file['cid']}"
        nobody = httpx.Client(base_url=home.url, verify=NO_TLS, trust_env=False)
        path = f"/ipfs/{file['cid']}"
        with nobody:
            assert [nobody.get(path).status_code for _ in range(3)] == [200] * 3
            done = home.run("gateway", "deny", file["cid"], "--status", "451", "--reason", "why")
            assert (done.returncode, done.stderr) == (0, "")
            until(lambda: nobody.get(path).status_code == 451, "it is denied")
            [listed] = json.loads(home.run("gateway", "list", "--json").stdout)
            assert (listed["cid"], listed["status"], listed["reason"]) == (file["cid"], 451, "why")
            assert home.run("gateway", "undeny", file["cid"]).returncode == 0
            until(lambda: nobody.get(path).status_code == 200, "it is back")
            assert home.run("gateway", "deny", "nonsense").returncode == 1


def test_too_many_requests_of_one_address_or_key(
    sqlite_database: DatabaseMaker, settings_for: Make
) -> None:
    """Also of what is in memory; answers say how much is left, refusals when to come back."""
    limits = GatewaySettings(rate_per_ip=0.01, rate_per_key=0.01)
    with Server(settings_for(sqlite_database(), gateway=limits)) as server:
        account = server.new_user()
        with account.client as client, server.client() as anonymous:
            path = f"/ipfs/{account.upload(some_bytes())['cid']}"
            answer = anonymous.get(path)
            assert (answer.status_code, answer.headers["ratelimit"]) == (200, '"address";r=0;t=100')
            refused = anonymous.get(path)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) > 1
    limits = GatewaySettings(rate_per_key=0.01)
    with Server(settings_for(sqlite_database(), gateway=limits)) as server:
        account = server.new_user()
        with account.client as client, server.client() as anonymous:
            path = f"/ipfs/{account.upload(some_bytes())['cid']}"
            assert [client.get(path).status_code for _ in range(2)] == [200, 429]
            assert [anonymous.get(path).status_code for _ in range(5)] == [200] * 5
