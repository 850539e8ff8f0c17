"""No secret in a log, an error or a file that isn't for it: everything is used once, then
searched for."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from on_api.core.ipfs.daemon.repo import rpc_auth_for
from on_api.core.settings import Settings
from on_api.tests.testing.plain_http import NO_TLS
from on_api.tests.testing.processes import Home

pytestmark = pytest.mark.skipif(
    sys.platform != "linux",
    reason="starts on-api as on Linux, and reads its processes' command lines",
)

PASSWORDS = ["correct horse battery", "another horse battery", "not the right horse"]


def test_secrets_are_nowhere_they_do_not_belong(tmp_path: Path) -> None:
    """Logs at their most talkative, answers, the database, the processes' command lines."""
    (tmp_path / "home").mkdir(mode=0o700)
    home = Home(
        tmp_path / "home", extra={"ON_API_LOG__LEVEL": "DEBUG", "ON_API_LOG__FORMAT": "json"}
    )
    admin_key = home.init()
    answers: list[str] = []
    with home.serving() as process, home.client(admin_key) as admin:
        body = {"username": "ada", "password": PASSWORDS[0]}
        answers.append(admin.post("/v1/users", json=body).text)
        form = {"username": "ada", "password": PASSWORDS[0]}
        token = admin.post("/v1/auth/token", data=form).json()["access_token"]
        made = {"name": "k", "scopes": ["files:read"]}
        once = {"Idempotency-Key": "w"}
        key = admin.post("/v1/keys", json=made, headers=once).json()["key"]
        with home.client(token) as ada:
            change = {"current_password": PASSWORDS[2], "new_password": PASSWORDS[1]}
            answers.append(ada.post("/v1/users/me/password", json=change).text)
            change["current_password"] = PASSWORDS[0]
            answers.append(ada.post("/v1/users/me/password", json=change).text)
        file = admin.put("/v1/files?name=x", content=b"shared").json()
        shared = {"file_id": file["id"], "password": PASSWORDS[0]}
        link = urlsplit(admin.post("/v1/shares", json=shared, headers=once).json()["url"])
        for path in (link.path, f"{link.path}/", f"{link.path}?download=1"):
            for password in (PASSWORDS[2], PASSWORDS[0]):
                header = {"On-Api-Share-Password": password}
                answers.append(
                    httpx.get(home.url + path, headers=header, verify=NO_TLS, trust_env=False).text
                )
                form = {"password": password}
                answers.append(
                    httpx.post(home.url + path, data=form, verify=NO_TLS, trust_env=False).text
                )
        answers.append(admin.get("/v1/shares").text)
        # Secrets where they don't belong: in queries, names of fields, bodies that are no JSON,
        # other headers.
        answers.append(admin.get("/v1/files", params={"name": key, "limit": key}).text)
        answers.append(admin.get(f"/v1/files/{key}").text)
        answers.append(admin.post("/v1/keys", json={key: token, "name": PASSWORDS[0]}).text)
        answers.append(admin.post("/v1/keys", content=PASSWORDS[0]).text)
        answers.append(admin.get("/v1/keys", headers={"X-Secret": key}).text)
        answers.append(admin.get("/v1/keys", headers={"Authorization": f"Bearer {key}x"}).text)
        answers += [admin.get(path).text for path in ("/v1/keys", "/v1/users", "/v1/audit")]
        answers += [admin.get(path).text for path in ("/v1/node", "/readyz", "/metrics")]
        commands = [
            path.read_bytes().decode(errors="replace")
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if path.parent.name in {str(process.pid), str(home.kubo_pid())}
        ]
        doctor, status = home.run("doctor", "--json"), home.run("node", "config")
    settings = Settings(_env_file=None, home=home.path)
    secrets = {
        *PASSWORDS,
        admin_key,
        token,
        key,
        link.path.removeprefix("/s/"),
        (home.path / "secret.key").read_text().strip(),
        rpc_auth_for(settings.home / "ipfs").removeprefix("bearer:"),
    }
    with sqlite3.connect(home.path / "on-api.db") as database:
        dump = "\n".join(database.iterdump())
    database.close()
    places = {
        "log": home.log(),
        "node's log": (home.path / "node.log").read_text(),
        "answers": "\n".join(answers),
        "database": dump,
        "command lines": "\n".join(commands),
        "commands": doctor.stdout + doctor.stderr + status.stdout + status.stderr,
    }
    for place, content in places.items():
        for secret in secrets:
            # A path is logged as it was asked for; what a client puts into one is its own doing.
            asked = f"/v1/files/{secret}"
            assert secret not in content.replace(asked, ""), (
                f"{place} holds a secret: {secret[:9]}…"
            )
    assert all(json.loads(line) for line in home.log().splitlines() if line.startswith("{"))
