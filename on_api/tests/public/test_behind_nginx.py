"""Debian's nginx in front of on-api: what goes through it, and what it fetches by itself."""

from __future__ import annotations

import http.client
import itertools
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import func, select

from on_api.cli.log_lines import lines_of
from on_api.core.models import AccelCharge, EgressCounter, Traffic, User
from on_api.core.models.traffic import OWNER
from on_api.core.services.traffic.accelerated import Refunded, read_line
from on_api.core.setting_groups import GatewaySettings
from on_api.core.settings import Settings
from on_api.tests.conftest import Account, DatabaseMaker, Kubo, Server, free_port, make_settings
from on_api.tests.testing.deadline import until
from on_api.tests.testing.gateway_corpus import add_folder
from on_api.tests.testing.nginx import ACCEL_LOG, ACCEL_SECRET, nginx
from on_api.tests.testing.processes import Home
from on_api.tests.testing.programs import needs
from on_api.tests.testing.shares import share
from on_api.tests.testing.tcp_proxy import Mood, TcpProxy, proxied

MIB = 1024 * 1024

pytestmark = [pytest.mark.clients, needs("nginx", "openssl")]


@dataclass(frozen=True)
class Front:
    """nginx, what it is in front of, and what stands between that and its node."""

    url: str
    server: Server
    node: TcpProxy
    folder: Path

    def client(self, key: str | None = None) -> httpx.Client:
        """Through TLS."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(
            base_url=self.url, headers=headers, verify=self.tls, timeout=60, trust_env=False
        )

    @property
    def tls(self) -> ssl.SSLContext:
        """Trusts this server's certificate."""
        return ssl.create_default_context(cafile=str(self.folder / "certificate"))


@pytest.fixture(scope="module")
def front(
    sqlite_database: DatabaseMaker, kubo: Kubo, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Front]:
    """All of it, running."""
    folder = tmp_path_factory.mktemp("nginx")
    place = urlsplit(str(kubo.ipfs.gateway_url))
    target = (str(place.hostname), int(place.port or 0))
    with ExitStack() as stack:
        node = stack.enter_context(proxied(lambda: socket.create_connection(target, 5)))
        ipfs = kubo.ipfs.model_copy(update={"gateway_url": f"http://127.0.0.1:{node.port}"})
        settings = make_settings(
            folder / "home",
            sqlite_database(),
            ipfs=ipfs,
            gateway=GatewaySettings(policy="local", accel_secret=SecretStr(ACCEL_SECRET)),
            trusted_proxies=["127.0.0.1"],
        )
        server = stack.enter_context(Server(settings))
        tls, plain = free_port(), free_port()
        listen = {
            "listen 443 ssl http2;": f"listen 127.0.0.1:{tls} ssl http2;",
            "listen 80;": f"listen 127.0.0.1:{plain};",
        }
        origin = f"http://127.0.0.1:{node.port}"
        stack.enter_context(nginx(folder, server.url, origin, listen, accel=True))
        front = Front(f"https://127.0.0.1:{tls}", server, node, folder)
        with front.client() as client:

            def answers() -> bool:
                try:
                    return client.get("/healthz").status_code == 200
                except httpx.TransportError:
                    return False

            until(answers, "nginx answers")
        yield front


def test_bytes_both_ways(front: Front) -> None:
    """A large file up without a length, and down by content, gateway and link; as nothing but
    itself, and without a temporary file."""
    data = os.urandom(20 * MIB)
    account = front.server.new_user()
    with front.client(account.key) as client, front.client() as anonymous, account.client:
        pieces = (data[at : at + MIB] for at in range(0, len(data), MIB))
        file = client.put("/v1/files?name=large", content=pieces).raise_for_status().json()
        answer = anonymous.get(f"/ipfs/{file['cid']}")
        assert answer.content == data
        assert answer.headers["content-security-policy"].startswith("sandbox")
        part = anonymous.get(f"/ipfs/{file['cid']}", headers={"Range": "bytes=5-9"})
        assert (part.status_code, part.content) == (206, data[5:10])
        assert client.get(f"/v1/files/{file['id']}/content").content == data
        link = share(account, file)
        assert anonymous.get(link.path).content == data
        assert link.token not in (front.folder / "access.log").read_text(encoding="utf-8")


def test_the_clients_address_and_paths_reach_on_api(front: Front, kubo: Kubo) -> None:
    """What the client says of its address isn't believed; a path goes through as it was sent."""
    folder = add_folder(kubo, {"a b+c.txt": b"1"})
    with front.client() as anonymous:
        said = {"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Host": "localhost"}
        answer = anonymous.get(f"/ipfs/{folder}/a%20b+c.txt", headers=said)
        assert answer.content == b"1"
        assert anonymous.get(f"/ipfs/{folder}/%2e%2e/{folder}/a%20b%2Bc.txt").content == b"1"


def test_what_is_cut_is_seen_to_be_cut(front: Front, kubo: Kubo) -> None:
    """A CAR has no length: only the connection's end tells."""
    folder = add_folder(kubo, {"f": os.urandom(40 * MIB)})
    place = urlsplit(front.url)
    try:
        connection = http.client.HTTPSConnection(
            str(place.hostname), place.port, context=front.tls, timeout=20
        )
        connection.request("GET", f"/ipfs/{folder}?format=car")
        response = connection.getresponse()
        assert (response.status, len(response.read(MIB))) == (200, MIB)
        front.node.mood = Mood.REFUSE
        with pytest.raises(http.client.IncompleteRead):
            response.read()
        connection.close()
    finally:
        front.node.mood = Mood.GOOD


TWICE = [("Cache-Control", "max-age=1"), ("Cache-Control", "max-age=1")]
"""Headers with which an answer takes the usual way, through on-api."""


def counted(front: Front, account: Account) -> int:
    """Bytes that went out for a user by `/ipfs`, by the detail."""
    of_owner = (Traffic.owner_id == UUID(account.id)) & (Traffic.kind == "gateway")
    with front.server.services.database.session_scope(write=False) as session:
        return session.scalar(select(func.sum(Traffic.bytes_out)).where(of_owner)) or 0


def spent(front: Front, account: Account) -> int:
    """Bytes on a user's account."""
    of_owner = (EgressCounter.subject_kind == OWNER) & (
        EgressCounter.subject_id == UUID(account.id)
    )
    with front.server.services.database.session_scope(write=False) as session:
        return session.scalar(select(EgressCounter.bytes).where(of_owner)) or 0


def awaited(front: Front) -> int:
    """Answers of which nginx's log has not been read."""
    with front.server.services.database.session_scope(write=False) as session:
        return session.scalar(select(func.count()).select_from(AccelCharge)) or 0


def logged(front: Front) -> str:
    """What nginx has written for on-api."""
    return (front.folder / ACCEL_LOG).read_text(encoding="utf-8")


def read_log(front: Front) -> Refunded:
    """As the command does."""
    lines = [line for some in lines_of(front.folder / ACCEL_LOG, follow=False) for line in some]
    sent = dict(found for line in lines if (found := read_line(line)))
    return front.server.services.accelerated.refund(sent)


def settle(front: Front) -> None:
    """Read nginx's log until it tells of every answer."""

    def is_settled() -> bool:
        read_log(front)
        return awaited(front) == 0

    until(is_settled, "nginx's log tells of every answer")


def headers_of(answer: httpx.Response) -> dict[str, str]:
    """But those of one answer alone."""
    return {n: v for n, v in answer.headers.items() if n not in {"date", "x-request-id"}}


def test_nginx_fetches_large_answers_by_itself(front: Front, kubo: Kubo) -> None:
    """What a client gets is the same as on the usual way, header by header, and counted as much;
    the first path holds what may be written in more than one way."""
    data = os.urandom(3 * MIB + 7)
    account = front.server.new_user()
    with account.client, front.client() as anonymous:
        cid = account.upload(data)["cid"]
        folder = add_folder(kubo, {"a b+c%3F é.bin": data})
        settle(front)  # what other tests have left
        fetched = 0
        for path, part in (
            (f"/ipfs/{folder}/a%20b+c%253F%20%C3%A9.bin", None),
            (f"/ipfs/{folder}/%2e%2e/{cid}?download=true&filename=%C3%A9%20a+b.bin", None),
            (f"/ipfs/{cid}", (5, 2 * MIB + 8)),
            (f"/ipfs/{cid}?format=raw", None),  # of links: small
        ):
            ranges = {} if part is None else {"Range": f"bytes={part[0]}-{part[1]}"}
            ours = anonymous.get(path, headers=ranges)
            theirs = anonymous.get(path, headers=[*ranges.items(), *TWICE])
            assert ours.status_code == theirs.status_code == (206 if part else 200), path
            assert ours.content == theirs.content
            assert headers_of(ours) == headers_of(theirs), path
            assert ours.headers["content-security-policy"].startswith("sandbox")
            fetched += len(ours.content) >= MIB
            assert awaited(front) == fetched
        assert fetched == 3
    settle(front)


def test_what_an_aborted_client_did_not_get_is_refunded_once(front: Front) -> None:
    """Charged in full when it begins; by nginx's log no less than what arrived, and 8 MiB more at
    most. The command reads the same log as often as it likes."""
    data = os.urandom(32 * MIB)
    account = front.server.new_user()
    with account.client:
        cid = account.upload(data)["cid"]
    settle(front)  # what other tests have left
    lines = len(logged(front).splitlines())
    received = read_some(front, f"/ipfs/{cid}", 3 * MIB)
    assert counted(front, account) == spent(front, account) == len(data)
    until(lambda: len(logged(front).splitlines()) > lines, "nginx has written it")

    database = front.server.settings.database_url
    assert database is not None
    home = Home(front.folder / "home", {"ON_API_DATABASE_URL": database.get_secret_value()})
    done = home.run("gateway", "refund", str(front.folder / ACCEL_LOG))
    assert done.stdout.startswith("1 responses settled"), done.stderr
    now = counted(front, account)
    assert received <= now <= received + 8 * MIB
    assert spent(front, account) == now
    assert read_log(front) == Refunded(0, 0)
    assert counted(front, account) == spent(front, account) == now


def read_some(front: Front, path: str, size: int) -> int:
    """Read so many bytes of an answer, and go away. Returns how many arrived."""
    place = urlsplit(front.url)
    with socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        plain.connect((str(place.hostname), place.port))
        connection = front.tls.wrap_socket(plain, server_hostname=place.hostname)
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: files.example\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(1)
        assert b" 200 OK" in head
        left = size
        while left:
            left -= len(connection.recv(left))
        connection.close()
    return size


def test_a_node_that_dies_cuts_the_answer(front: Front) -> None:
    """Nobody takes a part for all of it."""
    account = front.server.new_user()
    with account.client:
        cid = account.upload(os.urandom(40 * MIB))["cid"]
    place = urlsplit(front.url)
    try:
        connection = http.client.HTTPSConnection(
            str(place.hostname), place.port, context=front.tls, timeout=20
        )
        connection.request("GET", f"/ipfs/{cid}")
        response = connection.getresponse()
        assert (response.status, len(response.read(MIB))) == (200, MIB)
        assert awaited(front) == 1
        front.node.mood = Mood.REFUSE
        with pytest.raises(http.client.IncompleteRead):
            response.read()
        connection.close()
    finally:
        front.node.mood = Mood.GOOD
    settle(front)
    assert MIB <= counted(front, account) < 40 * MIB


def test_a_client_that_goes_at_once_costs_little(front: Front) -> None:
    """Else whoever asks and leaves would use up somebody's budget without a byte. However early
    that was, nginx's log has a line."""
    account = front.server.new_user()
    with account.client:
        cid = account.upload(os.urandom(20 * MIB))["cid"]
    settle(front)  # what other tests have left
    lines = len(logged(front).splitlines())
    place = urlsplit(front.url)
    request = f"GET /ipfs/{cid} HTTP/1.1\r\nHost: files.example\r\n\r\n".encode()
    received = 0
    for _ in range(10):
        plain = socket.create_connection((str(place.hostname), place.port or 0))
        with front.tls.wrap_socket(plain, server_hostname=place.hostname) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                received += len(piece)
    with front.client() as anonymous:
        assert len(anonymous.get(f"/ipfs/{cid}").content) == 20 * MIB
    until(lambda: len(logged(front).splitlines()) == lines + 11, "each has its line")
    settle(front)
    assert 20 * MIB <= counted(front, account) <= 28 * MIB + received


def test_only_nginx_is_told_to_fetch(front: Front) -> None:
    """Whoever else is told would get no bytes. What a client says of itself has no effect."""
    data = os.urandom(2 * MIB)
    account = front.server.new_user()
    name = "0" * 32
    settle(front)  # what the tests before have left nginx to write down
    with account.client, front.server.client() as direct, front.client() as through:
        cid = account.upload(data)["cid"]
        for said in ("", "1", f":{name}", f"{ACCEL_SECRET}:", f"x{ACCEL_SECRET}:{name}"):
            answer = direct.get(f"/ipfs/{cid}", headers={"X-On-Api-Accel": said})
            assert "x-accel-redirect" not in answer.headers
            assert answer.content == data
        assert awaited(front) == 0
        forged = {"X-On-Api-Accel": f"{ACCEL_SECRET}:{name}", "X-Accel-Redirect": "/"}
        assert through.get(f"/ipfs/{cid}", headers=forged).content == data
        assert through.get("/@on_api_node").status_code == 404
    settle(front)
    assert name not in logged(front)


def test_a_budget_refuses_before_the_first_byte(front: Front) -> None:
    """As on the usual way, and nothing is charged."""
    account = front.server.new_user()
    with account.client, front.client() as anonymous:
        cid = account.upload(os.urandom(4 * MIB))["cid"]
        with front.server.services.database.session_scope() as session:
            session.get_one(User, UUID(account.id)).egress_budget = 6 * MIB
            front.server.services.invalidations.announce(session)
        assert anonymous.get(f"/ipfs/{cid}").status_code == 200
        settle(front)
        answer = anonymous.get(f"/ipfs/{cid}")
        assert (answer.status_code, answer.headers["retry-after"].isdigit()) == (429, True)
        assert counted(front, account) == 4 * MIB


def test_only_what_is_public_and_has_a_length(
    sqlite_database: DatabaseMaker, settings_for: Callable[..., Settings]
) -> None:
    """By the policy, whoever asks: nginx's secret opens nothing."""
    data = os.urandom(2 * MIB)
    names = (f"{number:032x}" for number in itertools.count())
    for policy in ("listed", "closed"):
        gateway = GatewaySettings(policy=policy, accel_secret=SecretStr(ACCEL_SECRET))
        settings = settings_for(sqlite_database(), gateway=gateway)
        with Server(settings) as server:
            account = server.new_user()
            key = {"Authorization": f"Bearer {account.key}"}

            def ask(client: httpx.Client, path: str, **headers: str) -> httpx.Response:
                said = {"X-On-Api-Accel": f"{ACCEL_SECRET}:{next(names)}", **headers}
                return client.get(path, headers=said)

            with account.client, server.client() as client:
                cid = account.upload(data)["cid"]
                private = account.upload(data, visibility="private")["cid"]
                told = ask(client, f"/ipfs/{cid}", **key)
                if policy == "closed":
                    assert told.content == data
                    continue
                assert told.headers["x-accel-redirect"] == "@on_api_node"
                assert told.headers["x-on-api-path"] == f"/ipfs/{cid}"
                assert told.content == b""
                assert ask(client, f"/ipfs/{private}", **key).status_code == 404
                assert len(ask(client, f"/ipfs/{cid}?format=car").content) > len(data)
                assert ask(client, f"/ipfs/{cid}", Range="bytes=0-99").content == data[:100]
                known = {"If-None-Match": f'"{cid}"'}
                assert ask(client, f"/ipfs/{cid}", **known).status_code == 304
