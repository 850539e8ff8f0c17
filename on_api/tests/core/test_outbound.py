"""Calls to other services: where they may go, what they give away, and how long and how large an
answer may be."""

from __future__ import annotations

import gzip
import ipaddress
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpcore
import httpx
import pytest

from on_api.core.errors import AddressRefused, OnApiError
from on_api.core.net.addresses import Address
from on_api.core.net.errors import (
    SourceError,
    SourceMalformed,
    SourceMissing,
    SourceUnauthorized,
    SourceUnavailable,
)
from on_api.core.net.outbound import MAX_JSON_DEPTH, Outbound, check_url
from on_api.tests.testing.certificates import certificate_for
from on_api.tests.testing.foreign import (
    HTML,
    Asked,
    Reply,
    Service,
    limits,
    outbound,
    says,
    service,
)

pytestmark = pytest.mark.anyio

TOKEN = "a-secret-of-somebody"
NAME = "files.example"
PUBLIC = "1.1.1.1"


async def ask(url: str, **changes: object) -> object:
    """One call with a token."""
    async with outbound(**changes) as calls:
        return await calls.ask(httpx.URL(url), authorization=f"Bearer {TOKEN}")


async def test_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Says who calls and with what right; takes no proxy from the environment, keeps no cookies."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with (
        service(lambda _: says({"a": 1}, Set_Cookie="who=you")) as there,
        outbound() as calls,
    ):
        for _ in range(2):
            found = await calls.ask(
                httpx.URL(there.url), query={"b": "2"}, authorization=f"Bearer {TOKEN}"
            )
            assert found == {"a": 1}
    for asked in there.asked:
        assert asked.query == {"b": "2"}
        assert asked.headers["user-agent"] == "on-api"
        assert asked.headers["authorization"] == f"Bearer {TOKEN}"
        assert "cookie" not in asked.headers


@pytest.mark.parametrize(
    ("reply", "error", "calls"),
    [
        (says({}, "401 No"), SourceUnauthorized, 1),
        (says({}, "403 No"), SourceUnauthorized, 1),
        (says({}, "404 No"), SourceMissing, 1),
        (says({}, "451 No"), SourceMissing, 1),
        (says({}, "400 No"), SourceError, 1),
        (says({}, "204 No"), SourceError, 1),
        (says({}, "500 Oh"), SourceUnavailable, 3),
        (says({}, "429 Wait"), SourceUnavailable, 3),
        (says({}, "429 Wait", Retry_After="86400"), SourceUnavailable, 1),
        (HTML, SourceMalformed, 1),
        (Reply(b'{"a": '), SourceMalformed, 1),
        (Reply(b"\xff\xfe"), SourceMalformed, 1),
        (Reply(b"[" * 40 + b"]" * 40), SourceMalformed, 1),
        (Reply(b"[" * 2_000_000), SourceMalformed, 1),
        (Reply(b'"\\' * 1_000_000), SourceMalformed, 1),
        (Reply(b"1" * 100_000), SourceMalformed, 1),  # a number longer than Python reads
        (Reply(b" " * 3_000_000 + b"1"), SourceMalformed, 1),  # longer than is read
        (
            Reply(gzip.compress(bytes(10_000_000)), headers={"Content-Encoding": "gzip"}),
            SourceMalformed,
            1,
        ),
        (Reply(b"[1, 2", length=100), SourceUnavailable, 3),  # cut
        (Reply(headers={"X": "x" * 200_000}), SourceUnavailable, 3),
        (Reply(hangs=True), SourceUnavailable, 3),
        (Reply(pieces=[b" "] * 100, pause=0.05), SourceUnavailable, 3),
        (Reply(status="302 Go", headers={"Location": "/"}), SourceMalformed, 4),
        (Reply(status="302 Go"), SourceMalformed, 1),
        (Reply(status="302 Go", headers={"Location": "https://a:b/"}), SourceMalformed, 1),
    ],
)
async def test_what_goes_wrong(reply: Reply, error: type[OnApiError], calls: int) -> None:
    """Each has its error; only what passes is tried again, and nothing gives the token away."""
    async with service(lambda _: reply) as there:
        with pytest.raises(error) as caught:
            await ask(there.url, read_timeout=0.5, total_timeout=1.5, max_answer=2_100_000)
    assert caught.type is error
    assert len(there.asked) == calls
    assert TOKEN not in caught.value.details


async def test_the_deepest_json() -> None:
    """Brackets within texts are none."""
    body = b"[" * MAX_JSON_DEPTH + b'"[[[[\\"{{{{"' + b"]" * MAX_JSON_DEPTH
    async with service(lambda _: Reply(body)) as there:
        assert await ask(there.url)


@pytest.mark.parametrize(
    "pause",
    [
        "0",
        "1",
        "Tue, 24 Nov 2026 08:00:00 +0000",
        "nonsense",
        "-1",
        "Fri, 31 Dec 99999999999 00:00:00 GMT",  # a year longer than Python reads
        "Fri, 31 Dec 9999 00:00:00 -99999999999999",
    ],
)
async def test_it_passes(pause: str) -> None:
    """After the pause that was asked for, as seconds or as a date, or one of our own."""
    replies = iter([says({}, "503 Busy", Retry_After=pause), Reply(b"[", length=9), says([7])])
    async with service(lambda _: next(replies)) as there:
        assert await ask(there.url) == [7]


async def test_when_to_come_again() -> None:
    """A pause longer than we wait is told."""
    later = format_datetime(datetime.now(UTC) + timedelta(minutes=10), usegmt=True)
    async with service(lambda _: says({}, "429 Wait", Retry_After=later)) as there:
        with pytest.raises(SourceUnavailable) as caught:
            await ask(there.url)
    assert 500 < int(caught.value.headers["Retry-After"]) <= 600


async def test_credentials_stay_with_their_origin() -> None:
    """A redirect within the origin takes them along; to another port it doesn't, nor from there
    back."""

    def elsewhere(_: Asked) -> Reply:
        return Reply(status="307 Go", headers={"Location": f"{first.url}/back"})

    def start(asked: Asked) -> Reply:
        if asked.path == "/":
            return Reply(status="301 Go", headers={"Location": "/near"})
        if asked.path == "/near":
            return Reply(status="302 Go", headers={"Location": f"{second.url}/far"})
        return says("arrived")

    async with service(start) as first, service(elsewhere) as second:
        assert await ask(f"{first.url}/") == "arrived"
    assert [("authorization" in asked.headers) for asked in first.asked] == [True, True, False]
    assert ["authorization" in asked.headers for asked in second.asked] == [False]


async def test_a_call_that_changes_something_is_not_redirected() -> None:
    """A password would go where nobody sent it."""
    async with (
        service(lambda _: Reply(status="307 Go", headers={"Location": "/x"})) as there,
        outbound() as calls,
    ):
        with pytest.raises(SourceMalformed):
            await calls.ask(httpx.URL(there.url), method="POST", form={"password": TOKEN})
    assert there.paths() == ["/"]


@pytest.mark.parametrize(
    "url",
    [
        "", "files.example", "ftp://files.example", "http://files.example", "https://",
        "https://user:secret@files.example", "https://files.example/?key=secret",
        "https://files.example/#x", "https://127.0.0.1", "https://10.0.0.1:8443/x",
        "https://[::1]", "https://[::ffff:127.0.0.1]", "https://[::ffff:10.1.2.3]",
        "https://[64:ff9b::a00:1]", "https://169.254.169.254/latest", "https://0.0.0.0",
        "https://" + "a" * 3000, "https://files.example:99999", "file:///etc/passwd",
    ],
)  # fmt: skip
def test_urls_that_are_refused_at_once(url: str) -> None:
    """Before anything is looked up."""
    with pytest.raises(AddressRefused):
        check_url(url, allow_private=False)


def test_urls_that_are_called() -> None:
    """Without their last slash; plain HTTP and private addresses by the operator's word."""
    assert str(check_url("https://files.example/psa/", allow_private=False)) == (
        "https://files.example/psa"
    )
    assert check_url("http://10.0.0.1:5001", allow_private=True).port == 5001


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "0177.1", "127.1",
     "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "0"],
)  # fmt: skip
async def test_private_addresses_in_any_spelling(host: str) -> None:
    """Refused before a connection; who listens there hears nothing."""
    knocks = 0

    def count(_: Asked) -> Reply:
        nonlocal knocks
        knocks += 1
        return says({})

    async with service(count) as there, outbound(allow_private=False, retries=0) as calls:
        with pytest.raises(AddressRefused):
            await calls.ask(httpx.URL(f"https://{host}:{there.port}/"))
    assert knocks == 0


class Internet(httpcore.AnyIOBackend):
    """Public addresses, all at one port of loopback. `dialled` is where on-api wanted to go."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.dialled: list[str] = []
        self._port = port

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Note it, and connect to the service of the test."""
        self.dialled.append(host)
        return await super().connect_tcp("127.0.0.1", self._port, timeout)


class Names:
    """A name server of the tests': each look-up takes the next answer, the last one stays."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, name: str) -> Sequence[Address]:
        self.asked.append(name)
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [ipaddress.ip_address(text) for text in found]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """A certificate for `NAME`."""
    return certificate_for(NAME, tmp_path_factory.mktemp("certificate"))


@asynccontextmanager
async def on_the_internet(
    reply: Reply, tls: tuple[ssl.SSLContext, Path], names: Names
) -> AsyncIterator[tuple[Outbound, Service, Internet]]:
    """Calls that may not go to private addresses, and a service that they take for a public one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(tls[1]))
        async with service(lambda _: reply, tls[0]) as there:
            internet = Internet(there.port)
            calls = Outbound(
                limits(allow_private=False, retries=1),
                look_up=names,
                backend=internet,
                first_pause=0.01,
            )
            try:
                yield calls, there, internet
            finally:
                await calls.close()


async def test_the_address_that_was_checked_is_dialled(
    tls: tuple[ssl.SSLContext, Path],
) -> None:
    """By number, while the service is asked by its name."""
    names = Names([PUBLIC])
    async with on_the_internet(says(1), tls, names) as (calls, there, internet):
        assert await calls.ask(httpx.URL(f"https://{NAME}/")) == 1
        assert internet.dialled == [PUBLIC]
        assert there.asked[0].headers["host"] == NAME


async def test_a_name_that_changes_its_mind(tls: tuple[ssl.SSLContext, Path]) -> None:
    """DNS rebinding: public when it is looked at, private a moment later. One look-up decides and
    is what is dialled; the next connection is judged by its own."""
    names = Names([PUBLIC], ["127.0.0.1"])
    async with on_the_internet(says(1), tls, names) as (calls, there, internet):
        await calls.ask(httpx.URL(f"https://{NAME}/"))
        assert (names.asked, internet.dialled) == ([NAME], [PUBLIC])
        with pytest.raises(AddressRefused):
            await calls.ask(httpx.URL(f"https://{NAME}/"))
        assert internet.dialled == [PUBLIC]
        assert len(there.asked) == 1


async def test_private_ones_among_public_ones(tls: tuple[ssl.SSLContext, Path]) -> None:
    """Are passed over; with nothing else it is refused, in any clothes."""
    mixed = Names(["10.0.0.1", "::1", PUBLIC])
    async with on_the_internet(says(1), tls, mixed) as (calls, _, internet):
        await calls.ask(httpx.URL(f"https://{NAME}/"))
        assert internet.dialled == [PUBLIC]
    private = Names(["10.0.0.1", "::ffff:192.168.1.1", "fe80::1", "64:ff9b::7f00:1"])
    async with on_the_internet(says(1), tls, private) as (calls, _, internet):
        with pytest.raises(AddressRefused):
            await calls.ask(httpx.URL(f"https://{NAME}/"))
        assert internet.dialled == []


@pytest.mark.parametrize(
    "target",
    ["http://files.example/", "https://127.0.0.1/", "https://[::ffff:127.0.0.1]/",
     "https://169.254.169.254/latest/meta-data", "https://inside.example/",
     "https://user:word@files.example/", "file:///etc/passwd"],
)  # fmt: skip
async def test_redirects_are_checked_again(target: str, tls: tuple[ssl.SSLContext, Path]) -> None:
    """To plain HTTP, to a private address, to a name of one: nobody there is called."""
    names = Names([PUBLIC], ["127.0.0.1"])
    reply = Reply(status="302 Go", headers={"Location": target})
    async with on_the_internet(reply, tls, names) as (calls, there, internet):
        with pytest.raises(AddressRefused):
            await calls.ask(httpx.URL(f"https://{NAME}/"), authorization=f"Bearer {TOKEN}")
        assert internet.dialled == [PUBLIC]
        assert len(there.asked) == 1


@pytest.mark.parametrize("target", ["http://files.example/", "https://user:word@files.example/"])
async def test_redirects_to_what_is_no_url_of_ours(
    target: str, tls: tuple[ssl.SSLContext, Path]
) -> None:
    """Plain HTTP and credentials of others are refused at public addresses too."""
    reply = Reply(status="302 Go", headers={"Location": target})
    async with on_the_internet(reply, tls, Names([PUBLIC])) as (calls, there, internet):
        with pytest.raises(AddressRefused):
            await calls.ask(httpx.URL(f"https://{NAME}/"))
        assert internet.dialled == [PUBLIC]
        assert len(there.asked) == 1


async def test_the_certificate_must_be_the_names(tls: tuple[ssl.SSLContext, Path]) -> None:
    """Whoever answers at the address must prove to be who was asked."""
    async with on_the_internet(says(1), tls, Names([PUBLIC])) as (calls, there, _):
        with pytest.raises(SourceUnavailable, match="certificate"):
            await calls.ask(httpx.URL("https://another.example/"), authorization=TOKEN)
        assert there.asked == []


async def test_a_body_that_streams() -> None:
    """As it comes; the head is tried again, the body is the reader's matter."""
    replies = iter([says({}, "503 Busy"), Reply(pieces=[b"one", b"two"], length=9)])
    async with (
        service(lambda _: next(replies)) as there,
        outbound() as calls,
        calls.open(httpx.URL(there.url), accept="text/x") as answer,
    ):
        chunks = aiter(answer.chunks)
        got = b""
        while len(got) < len(b"onetwo"):
            got += await anext(chunks)
        assert got == b"onetwo"
        with pytest.raises(SourceUnavailable):
            await anext(chunks)
    assert there.asked[0].headers["accept"] == "text/x"


async def test_nothing_secret_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """At no level, by no library."""
    caplog.set_level(logging.DEBUG)
    async with service(lambda _: says({}, "401 No")) as there:
        with pytest.raises(SourceUnauthorized):
            await ask(there.url)
    assert TOKEN not in caplog.text


async def test_nobody_listens() -> None:
    """Told as such."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(SourceUnavailable, match="reached"):
            await ask(f"http://127.0.0.1:{port}")
