"""`on-api imports` and `on-api export`, as they are run in a terminal, in a script and in a log."""

from __future__ import annotations

import io
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from on_api.cli import progress
from on_api.cli.progress import Progress, ProgressLine
from on_api.core.ipfs.formats.unixfs import build_file
from on_api.core.models.revisions import PROJECT
from on_api.core.setting_groups import ImportsSettings
from on_api.tests.conftest import PASSWORD, Account, DatabaseMaker, Kubo, Server, make_settings
from on_api.tests.testing.migration import pins_of
from on_api.tests.testing.processes import ON_API


@pytest.fixture(scope="module")
def server(
    kubo: Kubo, sqlite_database: DatabaseMaker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One is enough: a command takes two seconds."""
    settings = make_settings(
        tmp_path_factory.mktemp("cli"),
        sqlite_database(),
        ipfs=kubo.ipfs,
        imports=ImportsSettings(allow_private=True),
    )
    with Server(settings) as running:
        yield running


def run(server: Server, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A command beside a running server; its output is no terminal."""
    settings = server.settings
    secret, rpc_auth = settings.secret_key, settings.ipfs.rpc_auth
    assert secret is not None
    assert rpc_auth is not None
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("ON_API_")},
        "ON_API_HOME": str(settings.home),
        "ON_API_DATABASE_URL": settings.sqlalchemy_url,
        "ON_API_SECRET_KEY": secret.get_secret_value(),
        "ON_API_IPFS__RPC_URL": str(settings.ipfs.rpc_url),
        "ON_API_IPFS__GATEWAY_URL": settings.gateway_url,
        "ON_API_IPFS__RPC_AUTH": rpc_auth.get_secret_value(),
        "ON_API_IMPORTS__ALLOW_PRIVATE": "true",
        **more,
    }
    return subprocess.run(
        [ON_API, *arguments],
        env=environment,
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,  # nobody answers a question
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_list_and_its_report(
    server: Server, alice: Account, bob: Account, tmp_path: Path
) -> None:
    """Plain lines in a log, the verdict last, an exit code that says whether all was moved."""
    cid = str(alice.upload(os.urandom(1000))["cid"])
    missing = build_file(os.urandom(10)).cid
    (tmp_path / "good.txt").write_text(f"{cid} 名前\n")
    (tmp_path / "bad.txt").write_text(f"{missing} nobody\n")
    who = ("--user", bob.username)
    done = run(server, "imports", "start", "cids", str(tmp_path / "good.txt"), *who)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    assert "\r" not in done.stderr
    assert "1 of 1 items (100%)" in done.stderr.splitlines()[-1]
    assert done.stdout.splitlines()[-1].startswith("Everything was imported and verified: 1 items")
    assert [(pin.cid, pin.name) for pin in pins_of(bob)] == [(cid, "名前")]

    failed = run(server, "imports", "start", "cids", str(tmp_path / "bad.txt"), *who, "--json")
    assert failed.returncode == 1
    shown = json.loads(failed.stdout)
    assert (shown["status"], shown["failed"]) == ("failed", 1)
    assert missing in shown["verdict"]
    report = run(server, "imports", "report", shown["id"], "--csv")
    assert report.returncode == 1, report.stderr  # a script sees that it is not good
    assert report.stdout.splitlines()[-1].startswith("verdict,")
    listed = json.loads(run(server, "imports", "list", *who, "--json").stdout)
    assert [row["status"] for row in listed] == ["failed", "done"]


def test_preview_and_out_and_in(
    server: Server, alice: Account, bob: Account, tmp_path: Path
) -> None:
    """A preview moves nothing; an export is a file that an import takes."""
    alice.upload(os.urandom(3000), "三")
    car, names = tmp_path / "all.car", tmp_path / "names.csv"
    out = run(server, "export", "--user", alice.username, "-o", str(car))
    assert out.returncode == 0, out.stderr
    named = run(server, "export", "--user", alice.username, "--format", "pins")
    names.write_text(named.stdout)
    who = ("--user", bob.username)
    preview = run(server, "imports", "start", "cids", str(names), *who, "--preview")
    assert preview.returncode == 0, preview.stderr
    assert "items         1" in preview.stdout
    assert pins_of(bob) == []
    taken = run(server, "imports", "start", "car", str(car), *who)
    assert taken.returncode == 0, taken.stderr
    assert [pin.name for pin in pins_of(bob)] == ["all"]
    damaged = tmp_path / "cut.car"
    damaged.write_bytes(car.read_bytes()[:-5])
    refused = run(server, "imports", "start", "car", str(damaged), *who)
    assert refused.returncode == 1
    assert "This CAR is not acceptable" in refused.stderr


def test_a_pinning_service(server: Server, alice: Account, bob: Account) -> None:
    """As docs/migrating.md has it: look, then start by the id; the token is on no command line."""
    cid = str(alice.upload(os.urandom(700))["cid"])
    assert alice.client.post("/v1/pins", json={"cid": cid, "name": "mine"}).status_code == 202
    where = ("pinning_api", f"{server.url}/v1", "--user", bob.username)
    preview = run(
        server, "imports", "start", *where, "--preview", "--json", ON_API_SOURCE_TOKEN=alice.key
    )
    assert preview.returncode == 0, preview.stderr
    shown = json.loads(preview.stdout)
    assert (shown["status"], shown["preview"]["items"]) == ("draft", 1)
    assert alice.key not in preview.stdout
    done = run(server, "imports", "start", shown["id"])
    assert done.returncode == 0, done.stderr
    assert [(pin.cid, pin.name) for pin in pins_of(bob)] == [(cid, "mine")]


def test_private_files_without_their_key(server: Server, alice: Account, bob: Account) -> None:
    """Not moved, whoever asks: the first run, the second one, the report alone."""
    alice.upload(b"secret", "closed", visibility="private")
    where = ("on_api", server.url, "--user", bob.username)
    done = run(server, "imports", "start", *where, "--json", ON_API_SOURCE_TOKEN=alice.key)
    assert done.returncode == 1, done.stderr
    shown = json.loads(done.stdout)
    assert shown["complete"] is False
    assert run(server, "imports", "start", shown["id"]).returncode == 1
    report = run(server, "imports", "report", shown["id"])
    assert report.returncode == 1
    assert report.stdout.startswith("NOT everything was imported")
    login = ("--login", alice.username)
    secrets = {"ON_API_SOURCE_TOKEN": alice.key, "ON_API_SOURCE_PASSWORD": PASSWORD}
    assert run(server, "imports", "start", *where, *login, **secrets).returncode == 0
    again = run(server, "imports", "start", shown["id"])
    assert again.returncode == 0, again.stdout
    assert run(server, "imports", "report", shown["id"]).returncode == 0


class Terminal(io.StringIO):
    """What people look at."""

    def isatty(self) -> bool:
        """Yes."""
        return True


def test_the_line_in_a_terminal_and_in_a_log() -> None:
    """Written over in the one; in the other a line for each change of what is done, and at the
    end."""
    terminal, log = Terminal(), io.StringIO()
    for output in (terminal, log):
        line = ProgressLine(output)
        for items in range(5):
            line.show(Progress("moving", items, 4, items * 10**6, 4 * 10**6), last=items == 4)
        line.end()
    assert terminal.getvalue().count("\n") == 1
    assert "[########################]  4 of 4 items (100%)  4.0 MB" in terminal.getvalue()
    assert [line.split("  ")[1] for line in log.getvalue().splitlines()] == [
        "0 of 4 items (0%)", "4 of 4 items (100%)",
    ]  # fmt: skip


def test_rate_and_time_left() -> None:
    """By bytes where they are known, else by items."""
    line = ProgressLine(io.StringIO())
    for at, items in ((0.0, 0), (10.0, 5)):
        line.note(at, Progress("moving", items, 20, items * 100, None))
    assert line.speed(Progress("moving", 5, 20, 500, None)) == (50.0, 30.0)
    assert line.speed(Progress("moving", 5, 20, 500, 1000)) == (50.0, 10.0)
    assert progress.duration(3725) == "1 h 2 min"
    assert progress.size(1_234_567) == "1.2 MB"
