"""Clients that send nothing, too slowly, or don't read: each is let go by itself, without a proxy
in front; whoever is merely slow is not."""

from __future__ import annotations

import asyncio
import json
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from urllib.parse import urlsplit

import pytest

from on_api.core.server_settings import ConnectionSettings
from on_api.core.setting_groups import FilesSettings
from on_api.server.patience import Patience
from on_api.tests.conftest import Account, DatabaseMaker, Kubo, Server, make_settings
from on_api.tests.testing.deadline import until
from on_api.tests.testing.raw_http import RawAnswer, Wire, wire_to

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE = 64 * 1024 * 1024
SEND_SECONDS = 3
IN_TIME = 30
"""Seconds: far above every limit below, far below what uvicorn and the kernel have."""

ServerMaker = Callable[..., Server]


@pytest.fixture(scope="module")
def new_server(
    sqlite_database: DatabaseMaker, kubo: Kubo, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerMaker]:
    """Starts a server; settings by name."""
    with ExitStack() as stack:

        def start(**changes: object) -> Server:
            home = tmp_path_factory.mktemp("home")
            settings = make_settings(home, sqlite_database(), ipfs=kubo.ipfs, **changes)
            return stack.enter_context(Server(settings))

        yield start


@pytest.fixture(scope="module")
def server(new_server: ServerMaker) -> Server:
    """One that waits for nobody."""
    return new_server(
        connections=ConnectionSettings(
            head_timeout=1, body_idle_timeout=1, body_timeout=2, send_timeout=SEND_SECONDS
        ),
        files=FilesSettings(idle_timeout=1),
    )


def trickle(wire: Wire, piece: bytes) -> None:
    """Send it again and again, until something is said or the connection has ended."""
    end = time.monotonic() + IN_TIME
    while not select.select([wire.socket], [], [], 0.2)[0]:
        assert time.monotonic() < end, "the server waits on"
        wire.send(piece)


def say_nothing(wire: Wire, _piece: bytes) -> None:
    """Only wait for what is said."""
    assert select.select([wire.socket], [], [], IN_TIME)[0], "the server waits on"


def reason_of(answer: RawAnswer) -> str:
    """Of an error, in both versions' form."""
    body = json.loads(answer.body)
    return str(body["code"] if "code" in body else body["error"]["reason"])


def is_timeout(wire: Wire, media_type: str) -> None:
    """The next answer is a 408, and the connection's last."""
    answer = wire.answer()
    assert (answer.status, reason_of(answer)) == (408, "REQUEST_TIMEOUT")
    assert answer.headers["content-type"] == media_type
    assert answer.headers["connection"] == "close"
    assert wire.rest() == b""


def test_a_client_that_says_nothing(server: Server) -> None:
    """There is nothing to answer."""
    with wire_to(server.url) as wire:
        say_nothing(wire, b"")
        assert wire.rest() == b""


@pytest.mark.parametrize("wait", [say_nothing, trickle])
@pytest.mark.parametrize("is_first", [True, False], ids=["first", "next"])
@pytest.mark.parametrize(
    ("version", "media_type"),
    [(b"/v1", "application/json"), (b"/v2", "application/problem+json")],
)
def test_a_head_without_end(
    server: Server,
    version: bytes,
    media_type: str,
    is_first: bool,
    wait: Callable[[Wire, bytes], None],
) -> None:
    """A byte now and then makes it no younger; nor does an answer before it."""
    with wire_to(server.url) as wire:
        if not is_first:
            wire.send(GET)
            assert wire.answer().status == 200
        wire.send(b"GET %s/files HTTP/1.1\r\nHost: x\r\nX-Slow: " % version)
        wait(wire, b"x")
        is_timeout(wire, media_type)


def test_a_connection_that_is_used_no_more(new_server: ServerMaker) -> None:
    """It is closed without a word, since nothing was asked."""
    server = new_server(connections=ConnectionSettings(idle_timeout=1))
    with wire_to(server.url) as wire:
        wire.send(GET)
        assert wire.answer().status == 200
        say_nothing(wire, b"")
        assert wire.rest() == b""


def test_a_body_that_nobody_wants_but_still_comes(new_server: ServerMaker) -> None:
    """Each piece of it begins the wait for the next request anew."""
    server = new_server(connections=ConnectionSettings(idle_timeout=1))
    with wire_to(server.url) as wire:
        wire.send(b"PUT /v1/files?name=x HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n")
        assert wire.answer().status == 401
        for _ in range(12):
            assert not select.select([wire.socket], [], [], 0.25)[0], "the connection was closed"
            wire.send(b"x")
        wire.send(GET)
        assert wire.answer().status == 200


def test_a_connection_that_is_used_now_and_then(server: Server) -> None:
    """Between two requests it may be silent for longer than a head may take."""
    with wire_to(server.url) as wire:
        wire.send(GET)
        assert wire.answer().status == 200
        with wire_to(server.url) as silent:  # until the server has lost patience with another
            say_nothing(silent, b"")
        wire.send(GET)
        assert wire.answer().status == 200


JSON = b"Content-Type: application/json\r\n"
FORM = b"Content-Type: application/x-www-form-urlencoded\r\n"
PARTS = b"Content-Type: multipart/form-data; boundary=x\r\n"
FIELD = b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\n'
FILE = b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'


@pytest.mark.parametrize(
    ("wait", "is_chunked"), [(say_nothing, False), (trickle, False), (trickle, True)]
)
@pytest.mark.parametrize(
    ("request_", "beginning"),
    [
        (b"POST /v1/auth/token HTTP/1.1\r\n" + FORM, b"grant_type=password&username="),
        (b"POST /v1/auth/token HTTP/1.1\r\n" + PARTS, FIELD),
        (b"POST /v1/keys HTTP/1.1\r\n" + JSON, b'{"name": "'),
        (b"POST /v2/keys HTTP/1.1\r\n" + JSON, b'{"name": "'),
        (b"POST /v1/pins HTTP/1.1\r\n" + JSON, b'{"cid": "'),
    ],
    ids=["form", "multipart", "v1", "v2", "short cut"],
)
def test_a_body_that_is_read_whole(
    server: Server,
    alice_there: Account,
    request_: bytes,
    beginning: bytes,
    is_chunked: bool,
    wait: Callable[[Wire, bytes], None],
) -> None:
    """It may neither stop nor trickle for ever."""
    head = b"%sHost: x\r\nAuthorization: Bearer %s\r\n" % (request_, alice_there.key.encode())
    with wire_to(server.url) as wire:
        if is_chunked:
            chunk = b"%x\r\n%s\r\n" % (len(beginning), beginning)
            wire.send(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk)
            wait(wire, b"1\r\nx\r\n")
        else:
            wire.send(head + b"Content-Length: 1000\r\n\r\n" + beginning)
            wait(wire, b"x")
        answer = wire.answer()
        assert (answer.status, reason_of(answer)) == (408, "REQUEST_TIMEOUT")


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize(
    ("request_", "beginning"),
    [
        (b"PUT /v1/files?name=x HTTP/1.1\r\n", b""),
        (b"PUT /v1/files?name=x HTTP/1.1\r\n", b"begun"),
        (b"POST /v1/files HTTP/1.1\r\n" + PARTS, b""),
        (b"POST /v1/files HTTP/1.1\r\n" + PARTS, FIELD + b"a name"),
        (b"POST /v2/files HTTP/1.1\r\n" + PARTS, FILE + b"begun"),
        (b"POST /v1/files HTTP/1.1\r\n" + PARTS, FILE + b"all of it\r\n" + FIELD + b"a name"),
        (b"PUT %s HTTP/1.1\r\n", b"\x3a\xa2"),
    ],
    ids=["raw, empty", "raw", "form, empty", "field", "file", "field behind", "car"],
)
def test_an_upload_that_stops(
    server: Server, alice_there: Account, request_: bytes, beginning: bytes, is_chunked: bool
) -> None:
    """In whatever part of it, and whether or not its length was told."""
    if b"%s" in request_:
        asked = alice_there.client.post("/v1/imports", json={"source": {"kind": "car"}}).json()
        request_ %= f"/v1/imports/{asked['id']}/car".encode()
    head = b"%sHost: x\r\nAuthorization: Bearer %s\r\n" % (request_, alice_there.key.encode())
    with wire_to(server.url) as wire:
        if is_chunked:
            chunk = b"%x\r\n%s\r\n" % (len(beginning), beginning) if beginning else b""
            wire.send(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk)
        else:
            wire.send(head + b"Content-Length: 1000000\r\n\r\n" + beginning)
        say_nothing(wire, b"")
        answer = wire.answer()
        assert (answer.status, reason_of(answer)) == (408, "REQUEST_TIMEOUT")
    assert alice_there.client.get("/v1/files").json()["count"] == 0


@pytest.fixture
def alice_there(server: Server) -> Iterator[Account]:
    """Alice, on the impatient server."""
    account = server.new_user()
    with account.client:
        yield account


@pytest.fixture
def large(alice_there: Account) -> dict[str, str]:
    """A public file that no socket's buffers could hold."""
    answer = alice_there.client.put("/v1/files?name=large", content=os.urandom(LARGE))
    assert answer.status_code == 201
    file: dict[str, str] = answer.json()
    return file


def slow_reader(server: Server) -> socket.socket:
    """A connection whose own side holds little."""
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
    opened.settimeout(60)
    place = urlsplit(server.url)
    opened.connect((place.hostname, place.port))
    return opened


def asked_for(path: str, account: Account) -> bytes:
    """A GET with a key."""
    line = f"GET {path} HTTP/1.1\r\nHost: x\r\n"
    return f"{line}Authorization: Bearer {account.key}\r\n\r\n".encode()


def has_ended(reader: socket.socket) -> bool:
    """Whether the other side has cut it; without reading anything."""
    poll = select.poll()
    poll.register(reader, 0)  # it tells POLLHUP and POLLERR all the same
    return bool(poll.poll(0))


def egress_of(account: Account) -> int:
    """Bytes sent out for it so far."""
    usage = account.client.get("/v1/users/me/usage").json()
    return int(usage["egress"]["bytes"])


@pytest.mark.parametrize("more", [b"", b"Connection: close\r\n"], ids=["stays", "closes"])
@pytest.mark.parametrize("way", ["/ipfs/{cid}", "/v1/files/{id}/content"])
def test_an_answer_that_nobody_reads(
    server: Server, alice_there: Account, large: dict[str, str], way: str, more: bytes
) -> None:
    """The connection is cut, and what wasn't delivered isn't charged."""
    with closing(slow_reader(server)) as reader:
        asked = asked_for(way.format(**large), alice_there)
        reader.sendall(asked.replace(b"\r\n\r\n", b"\r\n" + more + b"\r\n"))
        until(lambda: has_ended(reader), "it is cut", IN_TIME)
    until(lambda: egress_of(alice_there) > 0, "it is counted")
    assert egress_of(alice_there) < LARGE / 2


def test_small_answers_that_nobody_reads(server: Server, alice_there: Account) -> None:
    """Many to one connection, out of memory."""
    cid = alice_there.upload(os.urandom(32 * 1024))["cid"]
    with closing(slow_reader(server)) as reader:
        reader.settimeout(0.2)
        asking = f"GET /ipfs/{cid} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 100
        asked = asking
        end = time.monotonic() + IN_TIME
        while not has_ended(reader):
            assert time.monotonic() < end, "the server waits on"
            try:
                asked = asked[reader.send(asked) :] or asking
            except TimeoutError:
                continue
            except OSError:
                break


@pytest.mark.parametrize("way", ["/ipfs/{cid}", "/v1/files/{id}/content"])
def test_a_slow_reader_gets_everything(
    server: Server, alice_there: Account, large: dict[str, str], way: str
) -> None:
    """However little it takes at a time: less than frees a place in the kernel's buffers."""
    with closing(slow_reader(server)) as reader:
        reader.sendall(asked_for(way.format(**large), alice_there))
        taken = b""
        end = time.monotonic() + 3 * SEND_SECONDS
        while time.monotonic() < end:
            taken += reader.recv(4096)
            time.sleep(0.1)
        got = len(taken) - taken.index(b"\r\n\r\n") - 4
        while got < LARGE:
            data = reader.recv(1024 * 1024)
            assert data, f"it was cut after {got} bytes"
            got += len(data)
        assert got == LARGE


def connected(stack: ExitStack, server: Server, address: str = "127.0.0.1") -> Wire:
    """A connection from an address of this machine."""
    place = urlsplit(server.url)
    there = (str(place.hostname), int(place.port or 0))
    opened = socket.create_connection(there, timeout=IN_TIME, source_address=(address, 0))
    return Wire(stack.enter_context(closing(opened)))


def is_served(wire: Wire) -> bool:
    """Whether it is answered; it is kept then."""
    try:
        wire.send(GET)
        return wire.answer().status == 200
    except OSError:
        return False


def test_too_many_connections(new_server: ServerMaker) -> None:
    """Of one address, and in all; each that ends makes room."""
    server = new_server(connections=ConnectionSettings(most=6, most_per_address=4))
    with ExitStack() as stack, ExitStack() as first:
        assert is_served(connected(first, server))
        assert all(is_served(connected(stack, server)) for _ in range(3))
        refused = connected(stack, server).answer()
        assert (refused.status, reason_of(refused)) == (503, "SERVICE_UNAVAILABLE")
        assert refused.headers["retry-after"]
        assert refused.headers["connection"] == "close"
        assert all(is_served(connected(stack, server, "127.0.0.2")) for _ in range(2))
        assert connected(stack, server, "127.0.0.3").answer().status == 503
        first.close()
        until(lambda: is_served(connected(stack, server, "127.0.0.3")), "there is room")


def test_a_proxy_has_as_many_as_it_needs(new_server: ServerMaker) -> None:
    """All that comes, comes from its address."""
    server = new_server(
        connections=ConnectionSettings(most_per_address=2), trusted_proxies=["127.0.0.1"]
    )
    with ExitStack() as stack:
        assert all(is_served(connected(stack, server)) for _ in range(5))


class Odd:
    """A connection, and its transport, that nothing can be known of."""

    written = 0

    def __init__(self) -> None:
        self.aborted = False

    def awaited_head(self) -> int:
        """See `Watched`."""
        raise ZeroDivisionError

    def head_is_late(self) -> None:
        """See `Watched`."""

    def is_busy(self) -> bool:
        """See `Watched`."""
        return False

    def undelivered(self, *, is_busy: bool) -> int:
        """See `Sending`."""
        return int(is_busy)

    def abort(self) -> None:
        """See `Sending`."""
        self.aborted = True
        raise ZeroDivisionError


class Late(Odd):
    """One that owes a head for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.told = asyncio.Event()

    def awaited_head(self) -> int:
        """See `Watched`."""
        return 1

    def head_is_late(self) -> None:
        """See `Watched`."""
        self.told.set()


def test_one_that_can_not_be_looked_at_keeps_no_other_waiting() -> None:
    """It is ended, and counts no more."""

    async def look() -> None:
        limits = ConnectionSettings(head_timeout=1, send_timeout=1, most=2)
        patience = Patience(limits, asyncio.get_running_loop())
        odd, late = Odd(), Late()
        for connection in (late, odd):  # the last one is looked at like the others
            assert patience.admit(connection, connection, "192.0.2.1")
        assert not patience.admit(Odd(), Odd(), "192.0.2.1")
        await asyncio.wait_for(late.told.wait(), IN_TIME)
        assert odd.aborted
        assert patience.admit(Odd(), Odd(), "192.0.2.1")

    asyncio.run(look())
