"""`deploy/nginx.conf` as it is, but for its ports and paths: Debian's nginx in front of on-api."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from on_api.core.models.migrations import PROJECT
from on_api.core.setting_groups import GatewaySettings
from on_api.tests.conftest import DatabaseMaker, Kubo, Server, free_port, make_settings
from on_api.tests.contract.tcp_proxy import Mood, TcpProxy, proxied
from on_api.tests.deadline import until
from on_api.tests.public.gateway_corpus import add_folder
from on_api.tests.shares import share

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
MIB = 1024 * 1024

pytestmark = pytest.mark.skipif(
    NGINX is None and os.environ.get("CI") != "true",
    reason="needs Debian's nginx (apt-get install nginx)",
)


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
    assert NGINX is not None, "CI=true, and there is no nginx"
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
            gateway=GatewaySettings(policy="local"),
            trusted_proxies=["127.0.0.1"],
        )
        server = stack.enter_context(Server(settings))
        tls, plain = free_port(), free_port()
        config = _placed(folder, server.url, tls, plain)
        stack.enter_context(_running(NGINX, config, folder))
        front = Front(f"https://127.0.0.1:{tls}", server, node, folder)
        with front.client() as client:

            def answers() -> bool:
                try:
                    return client.get("/healthz").status_code == 200
                except httpx.TransportError:
                    return False

            until(answers, "nginx answers")
        yield front


def _placed(folder: Path, upstream: str, tls: int, plain: int) -> Path:
    """The configuration with this test's ports and paths."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",  # noqa: S607
         "-subj", "/CN=files.example", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", folder / "key", "-out", folder / "certificate"],
        check=True, capture_output=True,
    )  # fmt: skip
    text = (PROJECT / "deploy" / "nginx.conf").read_text(encoding="utf-8")
    for written, here in {
        "/var/log/nginx/": f"{folder}/",
        "/run/nginx.pid": f"{folder}/pid",
        "/etc/ssl/certs/files.example.pem": f"{folder}/certificate",
        "/etc/ssl/private/files.example.key": f"{folder}/key",
        "server 127.0.0.1:8000;": f"server {urlsplit(upstream).netloc};",
        "listen 443 ssl http2;": f"listen 127.0.0.1:{tls} ssl http2;",
        "listen 80;": f"listen 127.0.0.1:{plain};",
    }.items():
        assert written in text
        text = text.replace(written, here)
    path = folder / "nginx.conf"
    path.write_text(text, encoding="utf-8")
    return path


def _running(nginx: str, config: Path, folder: Path) -> ExitStack:
    stack = ExitStack()
    process = subprocess.Popen(
        [nginx, "-c", config, "-p", folder, "-g", "daemon off;"], stderr=subprocess.DEVNULL
    )
    stack.callback(process.wait, 20)
    stack.callback(process.terminate)
    return stack


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
