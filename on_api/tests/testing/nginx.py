"""Debian's nginx under `deploy/nginx.conf`, unchanged except for ports, paths and the secret."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from on_api.core.models.revisions import PROJECT
from on_api.tests.testing.programs import program

ACCEL_SECRET = "a secret that nginx and on-api share"
ACCEL_LOG = "on_api_accel.log"


@contextmanager
def nginx(
    folder: Path, upstream: str, node: str, listen: Mapping[str, str], *, accel: bool
) -> Iterator[None]:
    """Run nginx in front of on-api and its node (two origins), with its files in `folder`.
    `listen` replaces lines of the configuration. With `accel`, large answers are handed to it."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",  # noqa: S607
         "-subj", "/CN=files.example", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", folder / "key", "-out", folder / "certificate"],
        check=True, capture_output=True,
    )  # fmt: skip
    changes = {
        "/var/log/nginx/": f"{folder}/",
        "/run/nginx.pid": f"{folder}/pid",
        "/etc/ssl/certs/files.example.pem": f"{folder}/certificate",
        "/etc/ssl/private/files.example.key": f"{folder}/key",
        "server 127.0.0.1:8000;": f"server {urlsplit(upstream).netloc};",
        "server 127.0.0.1:8080;": f"server {urlsplit(node).netloc};",
        **listen,
    }
    if accel:
        changes['X-On-Api-Accel "";'] = f'X-On-Api-Accel "{ACCEL_SECRET}:$request_id";'
    text = (PROJECT / "deploy" / "nginx.conf").read_text(encoding="utf-8")
    for written, here in changes.items():
        assert written in text
        text = text.replace(written, here)
    config = folder / "nginx.conf"
    config.write_text(text, encoding="utf-8")
    process = subprocess.Popen(
        [program("nginx"), "-c", config, "-p", folder, "-g", "daemon off;"],
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)
