"""What a link answers to programs: the bytes, within its limits, and nothing once it is over."""

from __future__ import annotations

import logging
import os
import random
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta

import httpx
import pytest
from sqlalchemy import update

from on_api.core.models import Share
from on_api.core.models.database import utc_now
from on_api.core.server_settings import AuthSettings
from on_api.core.setting_groups import IpfsSettings
from on_api.core.settings import Settings
from on_api.tests.conftest import (
    FAST_SCRYPT,
    PASSWORD,
    Account,
    DatabaseMaker,
    Server,
    free_port,
)
from on_api.tests.testing.deadline import until
from on_api.tests.testing.shares import Link, in_an_hour, let_pass, sent_bytes, share

MIB = 1024 * 1024
NOTHING = httpx.Headers()
BROWSER = httpx.Headers(
    {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
)


def by_header(password: str, **others: str) -> httpx.Headers:
    """How a program sends a link's password."""
    return httpx.Headers({"On-Api-Share-Password": password, **others}, encoding="utf-8")


@contextmanager
def two_servers(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings], **changes: object
) -> Iterator[tuple[Server, Server]]:
    """Two processes' worth of on-api on one database."""
    url = new_database()
    with ExitStack() as stack:
        first = stack.enter_context(Server(settings_for(url)))
        yield first, stack.enter_context(Server(settings_for(url, **changes)))


def test_the_bytes_as_their_owner_gets_them(alice: Account, anonymous: httpx.Client) -> None:
    """The same answer as the owner's content, but that nobody may keep it or learn the link."""
    data = os.urandom(MIB + 100)
    file = alice.upload(data, 'ä "quoted".bin')
    link = share(alice, file)
    for headers in (
        {},
        {"Range": "bytes=5-9"},
        {"Range": f"bytes={MIB}-"},
        {"Range": "bytes=-1"},
        {"Range": "bytes=0-1,5-6"},
        {"Range": "bytes=5-9", "If-Range": f'"{file["cid"]}"'},
        {"Range": "bytes=5-9", "If-Range": '"other"'},
        {"If-None-Match": f'"{file["cid"]}"'},
        {"If-Match": '"other"'},
        {"Range": "bytes=9999999-"},
    ):
        for method in ("GET", "HEAD"):
            for query in ("", "?download=1"):
                theirs = anonymous.request(method, link.path + query, headers=headers)
                path = f"/v1/files/{file['id']}/content{query}"
                owners = alice.client.request(method, path, headers=headers)
                assert theirs.status_code == owners.status_code
                if theirs.status_code < 400:
                    assert theirs.content == owners.content
                    differ = {"date", "x-request-id", "cache-control", "vary"}
                    added = {"referrer-policy", "x-robots-tag"}
                    assert set(theirs.headers) == set(owners.headers) | added
                    for name in set(owners.headers) - differ:
                        assert theirs.headers[name] == owners.headers[name], name
                assert theirs.headers["cache-control"] == "private, no-store"
                assert theirs.headers["referrer-policy"] == "no-referrer"
                assert theirs.headers["x-content-type-options"] == "nosniff"
    policy = anonymous.get(link.path).headers["content-security-policy"]
    assert policy.startswith("sandbox;")
    assert "allow" not in policy


def test_an_over_link_is_one_that_never_was(
    server: Server, alice: Account, bob: Account, admin: Account, anonymous: httpx.Client
) -> None:
    """Whatever has ended it: the same words, whether or not it had a password, and for browsers
    the same page."""
    file = alice.upload(b"shared")

    def over(**options: object) -> Link:
        link = share(alice, file, **options)
        assert anonymous.head(link.path, headers=by_header("word")).status_code == 200
        return link

    revoked, expired, used = over(), over(expires_at=in_an_hour()), over(max_downloads=1)
    used_with_password = over(max_downloads=1, password="word")
    let_pass(server, expired, 3600)
    assert alice.client.delete(f"/v1/shares/{revoked.id}").status_code == 204
    assert anonymous.get(used.path).content == b"shared"
    assert anonymous.get(used_with_password.path, headers=by_header("word")).content == b"shared"
    doomed = bob.upload(b"doomed")
    without_file = share(bob, doomed)
    bob.client.delete(f"/v1/files/{doomed['id']}")
    of_inactive = share(bob, bob.upload(b"of bob"))
    assert admin.client.patch(f"/v1/users/{bob.id}", json={"active": False}).status_code == 200
    paths = [
        link.path
        for link in (revoked, expired, used, used_with_password, without_file, of_inactive)
    ]
    paths += [f"/s/{'a' * 43}", "/s/", "/s/x", "/s/" + "a" * 5000, f"{paths[0]}/x", "/s/%00%ff"]
    part = httpx.Headers({"Range": "bytes=1-"})
    for headers in (NOTHING, BROWSER, by_header("word"), by_header("wrong"), part):
        answers = [anonymous.get(path, headers=headers) for path in paths]
        answers += [anonymous.post(path, headers=headers, data={"password": "x"}) for path in paths]
        different = {
            (answer.status_code, answer.text, tuple(without(answer.headers))) for answer in answers
        }
        assert len(different) == 1
        assert different.pop()[0] == 404
    heads = {anonymous.head(path).status_code for path in paths}
    assert heads == {404}
    # What its owner's deactivation has stopped goes on afterwards.
    admin.client.patch(f"/v1/users/{bob.id}", json={"active": True})
    assert anonymous.get(of_inactive.path).content == b"of bob"
    admin.client.delete(f"/v1/users/{bob.id}")
    assert anonymous.get(of_inactive.path).status_code == 404


def without(headers: httpx.Headers) -> list[tuple[str, str]]:
    """What doesn't differ by itself from answer to answer."""
    return [(n, v) for n, v in headers.items() if n not in {"date", "x-request-id"}]


def test_a_link_ends_by_the_clock(alice: Account, anonymous: httpx.Client) -> None:
    """While nobody looks; its owner still sees it."""
    file = alice.upload(b"x")
    link = share(alice, file, expires_at=(utc_now() + timedelta(seconds=3)).isoformat())
    assert anonymous.get(link.path).status_code == 200
    until(lambda: anonymous.head(link.path).status_code == 404, "the link has expired")
    assert link.downloads == 1


def test_what_takes_a_download(server: Server, alice: Account, anonymous: httpx.Client) -> None:
    """A file's worth of bytes is one, in whatever parts; looking is free."""
    data = os.urandom(1000)
    link = share(alice, alice.upload(data), max_downloads=2)

    def get(span: str) -> int:
        return anonymous.get(link.path, headers={"Range": f"bytes={span}"}).status_code

    for _ in range(5):
        assert anonymous.head(link.path).status_code == 200
        assert anonymous.get(link.path, headers=BROWSER).status_code == 200
        assert get("1000-") == 416
    assert (link.downloads, sent_bytes(server, link)) == (0, 0)
    assert get("0-0") == 206
    assert get("1-") == 206
    assert (link.downloads, sent_bytes(server, link)) == (1, 1000)
    assert get("-1000") == 206
    assert (link.downloads, sent_bytes(server, link)) == (2, 2000)
    for method in ("GET", "HEAD"):
        assert anonymous.request(method, link.path).status_code == 404
    assert get("5-5") == 404


WHOLE, FORM = "all of it", "the page's button"
"""Beside ranges: ways to ask."""


@pytest.mark.parametrize(
    ("asked", "downloads", "next_one"),
    [
        # A player looks at the beginning, then plays.
        (["0-1", "0-"], 1, WHOLE),
        (["0-1", "0-1", "0-99", WHOLE], 1, "0-1"),
        (["0-1", FORM], 1, FORM),
        # Or at the end, where the index is.
        (["0-1", "-100", "2-"], 1, "0-1"),
        (["0-499", "500-999"], 1, "999-999"),
        (["500-999", "0-499"], 1, "0-0"),
        ([f"{n}-{n + 99}" for n in range(0, 1000, 100)], 1, WHOLE),
        ([WHOLE], 1, WHOLE),
        ([WHOLE], 1, "0-"),
        (["0-"], 1, FORM),
        ([WHOLE, WHOLE], 2, WHOLE),
        (["0-1", "0-", "0-1", "0-"], 2, "0-0"),
        (["0-499", "500-999", WHOLE], 2, "5-5"),
        # Leaving out the first byte is no way around it.
        (["1-"], 1, "1-"),
        (["1-"], 1, WHOLE),
        (["1-", "1-", "2-"], 3, "1-"),
        (["0-998", "1-"], 2, WHOLE),
    ],
)
@pytest.mark.parametrize("private", [False, True])
def test_downloads_in_parts(
    alice: Account,
    anonymous: httpx.Client,
    asked: list[str],
    downloads: int,
    next_one: str,
    private: bool,
) -> None:
    """How many these are, with a limit and without; one more is refused where the limit is that
    many, also in what the page offers."""
    data = os.urandom(1000)
    options = {"visibility": "private"} if private else {}
    file = alice.upload(data, **options)
    limited, free = share(alice, file, max_downloads=downloads), share(alice, file)

    def get(link: Link, how: str) -> httpx.Response:
        if how == FORM:
            return anonymous.post(link.path)
        span = {} if how == WHOLE else {"Range": f"bytes={how}"}
        return anonymous.get(link.path, headers=span)

    for how in asked:
        for link in (limited, free):
            answer = get(link, how)
            assert answer.is_success, how
            assert answer.content in data
    assert limited.downloads == free.downloads == downloads
    assert get(limited, next_one).status_code == 404
    assert get(limited, WHOLE).status_code == 404
    assert anonymous.get(limited.path, headers=BROWSER).status_code == 404
    assert get(free, next_one).is_success


def test_no_more_than_so_many_bytes(
    server: Server, alice: Account, anonymous: httpx.Client
) -> None:
    """Whatever parts are asked for: the file's size for each download, and a quarter for what is
    sent twice."""
    link = share(alice, alice.upload(os.urandom(1000)), max_downloads=4)
    received = 0
    for _ in range(200):
        first = random.randrange(1000)
        last = random.randrange(first, 1000)
        part = anonymous.get(link.path, headers={"Range": f"bytes={first}-{last}"})
        received += len(part.content) if part.status_code == 206 else 0
    assert 4000 <= received == sent_bytes(server, link) <= 4 * (1000 + 266)
    assert link.downloads == 4


def test_an_empty_file_can_be_shared(alice: Account, anonymous: httpx.Client) -> None:
    """It has downloads to use up, though no bytes."""
    link = share(alice, alice.upload(b""), max_downloads=2)
    answers = [anonymous.get(link.path) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 404]
    assert answers[0].content == b""


def test_exactly_so_many_downloads_over_all_processes(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings]
) -> None:
    """Twenty at once on two servers; what was refused has got nothing."""
    data = os.urandom(200_000)
    with two_servers(new_database, settings_for) as servers:
        alice = servers[0].new_user()
        with alice.client:
            link = share(alice, alice.upload(data), max_downloads=7)
            together = threading.Barrier(20)

            def download(number: int) -> int:
                with servers[number % 2].client() as client:
                    together.wait(30)
                    answer = client.get(link.path)
                    assert answer.content == data or answer.status_code == 404
                    return answer.status_code

            with ThreadPoolExecutor(20) as threads:
                statuses = list(threads.map(download, range(20)))
            assert sorted(statuses) == [200] * 7 + [404] * 13
            assert (link.downloads, sent_bytes(servers[0], link)) == (7, 7 * len(data))


def test_probes_at_once_over_all_processes(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings]
) -> None:
    """Twenty first bytes and two halves, at once on two servers, are one download."""
    with two_servers(new_database, settings_for) as servers:
        alice = servers[0].new_user()
        with alice.client:
            link = share(alice, alice.upload(os.urandom(900)), max_downloads=1)
            spans = ["0-0"] * 20 + ["20-459", "460-899"]
            together = threading.Barrier(len(spans))

            def begin(number: int) -> tuple[int, int]:
                with servers[number % 2].client() as client:
                    together.wait(30)
                    span = {"Range": f"bytes={spans[number]}"}
                    answer = client.get(link.path, headers=span)
                    return answer.status_code, len(answer.content)

            with ThreadPoolExecutor(len(spans)) as threads:
                answers = list(threads.map(begin, range(len(spans))))
            assert answers == [(206, 1)] * 20 + [(206, 440)] * 2
            assert link.downloads == 1
            assert sent_bytes(servers[0], link) == 900


def test_parts_never_pass_the_limit_over_all_processes(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings]
) -> None:
    """Parts of a third of the file, forty at once: three times its size lets nine pass."""
    with two_servers(new_database, settings_for) as servers:
        alice = servers[0].new_user()
        with alice.client:
            link = share(alice, alice.upload(os.urandom(900)), max_downloads=3)

            def part(number: int) -> int:
                span = {"Range": "bytes=1-300"}
                with servers[number % 2].client() as client:
                    return client.get(link.path, headers=span).status_code

            with ThreadPoolExecutor(20) as threads:
                statuses = list(threads.map(part, range(40)))
            assert sorted(statuses) == [206] * 9 + [404] * 31
            assert link.downloads == 3


def test_a_revocation_holds_in_every_process_at_once(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings]
) -> None:
    """Nothing of a link is remembered, not even by who has just served it."""
    with two_servers(new_database, settings_for) as servers:
        alice = servers[0].new_user()
        with alice.client as client, servers[1].client() as other:
            link = share(alice, alice.upload(b"x"), password="word")
            assert other.get(link.path, headers=by_header("word")).status_code == 200
            assert client.delete(f"/v1/shares/{link.id}").status_code == 204
            assert other.get(link.path, headers=by_header("word")).status_code == 404


def test_an_aborted_download_is_one(
    server: Server, alice: Account, anonymous: httpx.Client
) -> None:
    """It stays counted; the bytes that were never sent are there for who goes on with it, and not
    for who begins anew."""
    size = 64 * MIB
    link = share(alice, alice.upload(bytes(size)), max_downloads=1)
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"GET {link.path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        assert sent_bytes(server, link) == size
    until(lambda: 0 < sent_bytes(server, link) < size, "the rest is given back")
    assert anonymous.get(link.path).status_code == 404
    rest = anonymous.get(link.path, headers={"Range": f"bytes={MIB}-"})
    assert len(rest.content) == size - MIB
    assert link.downloads == 1


def test_what_the_node_cant_open_costs_no_download(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings]
) -> None:
    """503 with Retry-After; the link can still be used where the node is."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    ipfs = IpfsSettings(rpc_url=nowhere, gateway_url=nowhere, connect_timeout=1)
    with two_servers(new_database, settings_for, ipfs=ipfs) as (well, broken):
        alice = well.new_user()
        with alice.client, broken.client() as unlucky, well.client() as lucky:
            link = share(alice, alice.upload(b"shared"), max_downloads=1)
            failed = unlucky.get(link.path)
            assert failed.status_code == 503
            assert failed.json()["error"]["reason"] == "NODE_UNAVAILABLE"
            assert int(failed.headers["retry-after"]) > 0
            page = unlucky.post(link.path, headers=BROWSER)
            assert page.status_code == 503
            assert page.headers["content-type"] == "text/html; charset=utf-8"
            assert (link.downloads, sent_bytes(well, link)) == (0, 0)
            assert lucky.get(link.path).content == b"shared"


@pytest.mark.parametrize("password", ["word", "päß wört 日本語", "a" * 256, '"; \\ <&>'])
def test_a_password(alice: Account, anonymous: httpx.Client, password: str) -> None:
    """By header or form; without it neither the bytes nor what tells of them, and no download."""
    file = alice.upload(b"shared", "named.txt")
    link = share(alice, file, password=password)
    for headers in (NOTHING, by_header(""), by_header(password + "x"), by_header("x" * 300)):
        for method in ("GET", "HEAD"):
            answer = anonymous.request(method, link.path, headers=headers)
            assert answer.status_code == 403
            assert "etag" not in answer.headers
            assert str(file["cid"]) not in str(answer.headers)
        answer = anonymous.get(link.path, headers=headers)
        assert answer.json()["error"]["reason"] == "SHARE_PASSWORD_REQUIRED"
        anonymous.get(link.path, headers=by_header(password))
    assert link.downloads == 4
    part = anonymous.get(link.path, headers=by_header(password, Range="bytes=1-2"))
    assert (part.status_code, part.content) == (206, b"ha")
    form = anonymous.post(link.path, data={"password": password})
    assert (form.status_code, form.content) == (200, b"shared")
    assert form.headers["content-disposition"] == 'attachment; filename="named.txt"'
    # A form's answer is the whole, whatever a program asks for beside it.
    whole = anonymous.post(
        link.path,
        data={"password": password},
        headers={"Range": "bytes=1-", "If-None-Match": form.headers["etag"]},
    )
    assert (whole.status_code, whole.content) == (200, b"shared")
    query = anonymous.get(link.path, params={"password": password})
    assert query.status_code == 403


def test_wrong_passwords_are_throttled_over_all_processes(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings]
) -> None:
    """A growing pause for that link alone; the right password ends it, but not before its time."""
    auth = AuthSettings(scrypt_log_n=FAST_SCRYPT, failures_allowed=3, failure_pause=100)
    with two_servers(new_database, settings_for, auth=auth) as (owners, server):
        alice = owners.new_user()
        with alice.client, server.client() as client, Server(server.settings) as third:
            file = alice.upload(b"shared")
            link, other = (share(alice, file, password="word") for _ in range(2))

            def attempt(password: str, at: httpx.Client = client) -> httpx.Response:
                return at.get(link.path, headers=by_header(password))

            with third.client() as elsewhere:
                tries = [attempt("wrong", at) for at in (client, elsewhere, client)]
                assert [answer.status_code for answer in tries] == [403, 403, 403]
                for at in (client, elsewhere):
                    refused = attempt("word", at)
                    assert refused.status_code == 429
                    assert refused.json()["error"]["reason"] == "TOO_MANY_REQUESTS"
                    assert 90 < int(refused.headers["retry-after"]) <= 101
            page = client.post(link.path, data={"password": "word"}, headers=BROWSER)
            assert page.status_code == 429
            assert int(page.headers["retry-after"]) > 90
            assert "try again later" in page.text
            assert client.get(other.path, headers=by_header("word")).status_code == 200
            let_pass(owners, link, 101)
            assert attempt("wrong").status_code == 403
            assert 190 < int(attempt("word").headers["retry-after"]) <= 201
            let_pass(owners, link, 201)
            assert attempt("word").status_code == 200
            # Forgiven; and who was right here before isn't kept waiting by others' wrong ones.
            assert [attempt("wrong").status_code for _ in range(4)] == [403, 403, 403, 429]
            assert attempt("word").status_code == 200


def test_many_parts_at_once_with_the_right_password(
    alice: Account, server: Server, anonymous: httpx.Client
) -> None:
    """As download programs ask: none of them counts as a wrong password of another."""
    data = os.urandom(1000)
    link = share(alice, alice.upload(data), password="word")
    together = threading.Barrier(16)

    def part(number: int) -> bytes:
        span = f"bytes={number * 10}-{number * 10 + 9}"
        with server.client() as client:
            together.wait(30)
            answer = client.get(link.path, headers=by_header("word", Range=span))
            assert answer.status_code == 206, answer.text
            return answer.content

    with ThreadPoolExecutor(16) as threads:
        assert b"".join(threads.map(part, range(16))) == data[:160]
    assert anonymous.get(link.path, headers=by_header("wrong")).status_code == 403


def test_many_wrong_passwords_at_once(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings]
) -> None:
    """No more are tried than are allowed, however they come."""
    # Slow enough that several would be under way at once.
    auth = AuthSettings(scrypt_log_n=14)
    with two_servers(new_database, settings_for, auth=auth) as servers:
        alice = servers[1].new_user()
        with alice.client:
            link = share(alice, alice.upload(b"x"), password="word")

            def attempt(number: int) -> int:
                with servers[number % 2].client() as client:
                    return client.get(link.path, headers=by_header(f"wrong {number}")).status_code

            with ThreadPoolExecutor(20) as threads:
                statuses = sorted(threads.map(attempt, range(30)))
            assert statuses == [403] * 5 + [429] * 25


def test_bodies_are_bounded(alice: Account, anonymous: httpx.Client) -> None:
    """413 for a form over a mebibyte, 400 for one that is none or has too long a password; never
    an echo, and never a download."""
    link = share(alice, alice.upload(b"x"), password="word", max_downloads=1)
    large = anonymous.post(link.path, data={"password": "a" * 2**20})
    assert large.status_code == 413
    long = anonymous.post(link.path, data={"password": "a" * 257})
    assert long.status_code == 400
    assert "aaaa" not in long.text
    as_file = anonymous.post(link.path, files={"password": ("a", b"word")})
    assert as_file.status_code == 400
    broken = anonymous.post(
        link.path, content=b"--x", headers={"Content-Type": "multipart/form-data; boundary=b"}
    )
    assert broken.status_code in {400, 403}
    assert anonymous.get(link.path, params={"download": "perhaps"}).status_code == 400
    answer = anonymous.put(link.path)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")
    assert link.downloads == 0


def test_the_token_is_nowhere(
    server: Server,
    alice: Account,
    anonymous: httpx.Client,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not in a log, a metric, a header or an error; no slash too many gets a redirect with it."""
    caplog.set_level(logging.DEBUG, "on_api")
    link = share(alice, alice.upload(b"x"), password="word")
    ways = [link.path, f"{link.path}/", f"{link.path}//", f"{link.path}/x/y/z", f"{link.path}?a=b"]
    for path in ways:
        for method in ("GET", "HEAD", "POST", "PUT", "OPTIONS"):
            for headers in (BROWSER, by_header("word"), by_header("wrong")):
                answer = anonymous.request(method, path, headers=headers)
                assert not answer.is_redirect
                assert link.token not in answer.text + str(answer.headers)
    anonymous.get(f"/v1{link.path}")
    text = anonymous.get("/metrics").text
    assert link.token not in text
    assert 'route="/s/{token:path}"' in text
    lines = [record.getMessage() for record in caplog.records if record.name == "on_api.access"]
    assert "GET /s/…" in lines
    assert not any(link.token in line for line in lines if "/v1/s/" not in line)


def test_a_failure_of_ours_tells_no_token(
    server: Server, alice: Account, anonymous: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """The row says what no code of ours can have written: a 500, its traceback without the link."""
    link = share(alice, alice.upload(b"x"), password="word")
    with server.services.database.session_scope() as session:
        broken = update(Share).where(Share.id == uuid.UUID(link.id))
        session.execute(broken.values(password_hash="$scrypt$ln=10,r=0,p=0$AAAA$AAAA"))
    answer = anonymous.get(link.path, headers=by_header(PASSWORD))
    assert answer.status_code == 500
    page = anonymous.post(link.path, headers=BROWSER, data={"password": PASSWORD})
    assert page.status_code == 500
    assert page.headers["x-request-id"] in page.text
    assert "a request failed" in caplog.text
    for place in (caplog.text, answer.text, page.text):
        assert link.token not in place
        assert PASSWORD not in place
