"""The application under uvicorn's own command, as somebody may serve it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx

from on_api.core.crypto.tokens import new_key, new_share_token
from on_api.core.settings import Settings
from on_api.tests.conftest import DatabaseMaker, free_port
from on_api.tests.testing.deadline import until
from on_api.tests.testing.plain_http import NO_TLS


def test_its_access_log_tells_no_secret(
    sqlite_database: DatabaseMaker, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    """A link, and a key that a client has put into a path."""
    settings = settings_for(sqlite_database())
    assert settings.database_url is not None
    assert settings.secret_key is not None
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ON_API_")} | {
        "ON_API_HOME": str(tmp_path),
        "ON_API_DATABASE_URL": settings.database_url.get_secret_value(),
        "ON_API_SECRET_KEY": settings.secret_key.get_secret_value(),
        "ON_API_IPFS__RPC_URL": str(settings.ipfs.rpc_url),
        "ON_API_IPFS__GATEWAY_URL": str(settings.ipfs.gateway_url),
    }
    arguments = ["--factory", "on_api.main:create_app", "--port", str(port)]
    log = tmp_path / "uvicorn.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", *arguments],
            env=environment,
            cwd=tmp_path,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:

        def lives() -> bool:
            try:
                answer = httpx.get(f"{url}/healthz", verify=NO_TLS, trust_env=False)
            except httpx.TransportError:
                return False
            return answer.status_code == 200

        until(lambda: process.poll() is not None or lives(), "uvicorn serves", 60)
        assert process.poll() is None, log.read_text()
        token, key = new_share_token(), new_key()
        for path in (f"/s/{token}?download=1", f"/v1/files/{key}"):
            assert httpx.get(url + path, verify=NO_TLS, trust_env=False).status_code in {401, 404}
    finally:
        process.terminate()
        process.wait(30)
    told = log.read_text()
    assert '"GET /s/…?download=1 HTTP/1.1" 404' in told
    assert token not in told
    assert key not in told
