"""Containers and units in `deploy/`, against the settings, commands and times of the code.

Nothing here is started: neither a container daemon nor systemd runs where the tests do.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from on_api.cli.commands import app
from on_api.core.ipfs.daemon.version import KUBO_VERSION
from on_api.core.models.revisions import PROJECT
from on_api.core.setting_groups import NodeSettings
from on_api.server.crew import PATIENCE_SECONDS
from on_api.server.process import load_settings
from on_api.server.serving import GRACE_SECONDS
from on_api.tests.core.test_settings import every_setting
from on_api.tests.testing.programs import needs, program

DEPLOY = PROJECT / "deploy"
UNITS = [DEPLOY / "systemd" / name for name in ("on-api.service", "on-api-worker@.service")]
TEXTS = sorted(path for path in DEPLOY.rglob("*") if path.is_file() and "secrets" not in path.parts)
SECRETS = ("SECRET_KEY", "SECRET_KEYS", "DATABASE_URL", "PASSWORD", "RPC_AUTH", "ACCEL_SECRET")
"""Endings of variables whose values are secrets."""
STOP_SECONDS = GRACE_SECONDS + PATIENCE_SECONDS + NodeSettings().shutdown_timeout
"""Seconds that an ordered end may take: requests, processes, node."""

Unit = dict[str, list[str]]


def unit(path: Path) -> Unit:
    """All values of each key; no key of ours occurs in two sections."""
    values: Unit = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            values[key].append(value)
    return values


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, continued lines joined."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(line.split(None, 1)[0], " ".join(line.split()[1:])) for line in joined]


def last_stage() -> dict[str, list[str]]:
    """The arguments of each instruction of what becomes the image."""
    stage: dict[str, list[str]] = {}
    for name, arguments in instructions():
        stage = {} if name == "FROM" else stage
        stage.setdefault(name, []).append(arguments)
    return stage


def compose() -> dict[str, Any]:
    """The parsed file."""
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8")))


def seconds(duration: str) -> int:
    """A duration of Compose or Docker as we write it: in seconds."""
    match = re.fullmatch(r"(\d+)s", duration)
    assert match, duration
    return int(match[1])


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_variable_is_a_setting(path: Path) -> None:
    """Also those that are commented out, and those in comments."""
    known = {name for name, _, _ in every_setting()}
    named = set(re.findall(r"\bON_API_[A-Z0-9_]+", path.read_text(encoding="utf-8")))
    assert named <= known


def test_the_image_runs_as_nobody_special() -> None:
    """A numeric user, so that Kubernetes' runAsNonRoot can see that it is not root."""
    stage = last_stage()
    assert stage["USER"] == ["10001"]
    assert stage["VOLUME"] == ["/var/lib/on-api"]
    assert any("ON_API_HOME=/var/lib/on-api" in each for each in stage["ENV"])
    assert any("-o on-api" in each and "-m 0700 /var/lib/on-api" in each for each in stage["RUN"])


def test_the_image_starts_one_process_that_can_end() -> None:
    """No shell between the daemon's signal and on-api."""
    stage = last_stage()
    assert stage["STOPSIGNAL"] == ["SIGTERM"]
    [entry], [command] = stage["ENTRYPOINT"], stage["CMD"]
    assert_is_command(json.loads(entry) + json.loads(command))


def test_the_image_knows_whether_it_is_well() -> None:
    """The check is Python that compiles, and asks where on-api listens by default."""
    [check] = last_stage()["HEALTHCHECK"]
    python, flag, code = json.loads(check.partition(" CMD ")[2])
    assert (python, flag) == ("python", "-c")
    compile(code, "HEALTHCHECK", "exec")
    assert "/readyz" in code
    assert f"'ON_API_PORT', '{load_settings(_env_file=None).port}'" in code


def test_the_image_is_built_from_what_is_locked() -> None:
    """The Makefile's Poetry, the lock, the module that pins Kubo; each copied file is there and is
    let through."""
    everything = "\n".join(" ".join(each) for each in instructions())
    [version] = re.findall(r"^POETRY_VERSION := (\S+)", (PROJECT / "Makefile").read_text(), re.M)
    assert f"poetry=={version}" in everything
    assert "--extras fast" in everything
    module = PROJECT / "on_api/core/ipfs/daemon/kubo_module/go.mod"
    assert f"github.com/ipfs/kubo v{KUBO_VERSION}" in module.read_text()
    [go] = re.findall(r"^go (\d+\.\d+)", module.read_text(), re.M)
    assert f"FROM golang:{go}-" in everything
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in ignore
    for name, arguments in instructions():
        if name == "COPY" and not arguments.startswith("--from"):
            for source in arguments.split()[:-1]:
                assert (PROJECT / source).exists(), source
                assert f"!{source.split('/')[0]}" in ignore


def test_compose_has_no_secret_in_a_variable() -> None:
    """Secrets are files; what on-api reads of them is named as its setting."""
    parsed = compose()
    for service in parsed["services"].values():
        for name, value in service.get("environment", {}).items():
            assert not name.endswith(SECRETS), name
            assert "://" not in value.removeprefix("https://")
            assert not re.search(r"\w:\w+@", value)
        assert set(service.get("secrets", [])) <= set(parsed["secrets"])
    on_api = parsed["services"]["on-api"]
    assert on_api["environment"]["CREDENTIALS_DIRECTORY"] == "/run/secrets"
    assert set(on_api["secrets"]) == {"ON_API_SECRET_KEY", "ON_API_DATABASE_URL"}
    assert "/deploy/secrets/" in (PROJECT / ".gitignore").read_text().splitlines()
    assert all(each["file"].startswith("./secrets/") for each in parsed["secrets"].values())


def test_compose_keeps_what_must_be_kept() -> None:
    """Home, database and certificates are in named volumes; the rest of on-api's root is
    read-only."""
    parsed = compose()
    services = parsed["services"]
    assert "home:/var/lib/on-api" in services["on-api"]["volumes"]
    assert "database:/var/lib/postgresql/data" in services["postgres"]["volumes"]
    assert "certificates:/data" in services["caddy"]["volumes"]
    assert {"home", "database", "certificates"} <= set(parsed["volumes"])
    assert services["on-api"]["read_only"] is True
    assert services["on-api"]["tmpfs"] == ["/tmp"]  # noqa: S108 (inside the container)
    assert services["on-api"]["cap_drop"] == ["ALL"]


def test_compose_lets_only_the_proxy_out() -> None:
    """Published ports are Caddy's, whose address alone is believed; its file hides `/metrics`."""
    parsed = compose()
    services = parsed["services"]
    assert [name for name, each in services.items() if "ports" in each] == ["caddy"]
    address = services["caddy"]["networks"]["front"]["ipv4_address"]
    assert services["on-api"]["environment"]["ON_API_TRUSTED_PROXIES"] == address
    assert parsed["networks"]["back"]["internal"] is True
    assert services["postgres"]["networks"] == ["back"]
    caddyfile = (DEPLOY / "Caddyfile").read_text()
    assert "@inside path /metrics /metrics/*" in caddyfile
    assert "respond @inside 404" in caddyfile
    assert f"reverse_proxy on-api:{load_settings(_env_file=None).port} " in caddyfile


def test_compose_waits_for_what_is_needed_and_for_the_end() -> None:
    """The database is up before on-api, and on-api is not killed while it ends."""
    services = compose()["services"]
    assert services["on-api"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert "healthcheck" in services["postgres"]
    assert seconds(services["on-api"]["stop_grace_period"]) > STOP_SECONDS
    assert (DEPLOY / services["on-api"]["build"]["context"]).resolve() == PROJECT


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_end_in_order(path: Path) -> None:
    """SIGTERM goes to on-api alone, and there is time enough."""
    values = unit(path)
    assert values["KillMode"] == ["mixed"]
    [stop] = values["TimeoutStopSec"]
    assert int(stop) > STOP_SECONDS
    [command] = values["ExecStart"]
    words = shlex.split(command)
    assert words[0] == "/opt/on-api/bin/on-api"
    assert_is_command(["on-api", *words[1:]])


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_have_one_user_one_home_and_no_secret(path: Path) -> None:
    """Both share the dynamic user and the home, and load secrets from files."""
    values = unit(path)
    assert (values["DynamicUser"], values["User"]) == (["yes"], ["on-api"])
    assert (values["StateDirectory"], values["StateDirectoryMode"]) == (["on-api"], ["0700"])
    assert "ON_API_HOME=%S/on-api" in values["Environment"]
    assert values["EnvironmentFile"] == ["/etc/on-api/on-api.env"]
    assert "ON_API_SECRET_KEY:/etc/on-api/secret.key" in values["LoadCredential"]
    given = [*values["Environment"], *(DEPLOY / "systemd/on-api.env").read_text().splitlines()]
    for line in given:
        assert not line.lstrip("#").partition("=")[0].endswith(SECRETS), line


@needs("systemd-analyze", packages="systemd")
def test_systemd_reads_the_units(tmp_path: Path) -> None:
    """It knows every key and value: a wrong one is a warning and exit code 0."""
    for path in UNITS:
        text = path.read_text(encoding="utf-8").replace("/opt/on-api/bin/on-api", sys.executable)
        (tmp_path / path.name).write_text(text, encoding="utf-8")
    done = subprocess.run(
        [program("systemd-analyze"), "verify", "--man=no", *(path.name for path in UNITS)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


@needs("systemd-analyze", packages="systemd")
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_are_hardened(path: Path) -> None:
    """At most 2.0 of 10 ("OK") in systemd's own count of what is exposed."""
    analyze = program("systemd-analyze")
    command = [analyze, "security", "--offline=true", "--threshold=20", "--no-pager", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout


def assert_is_command(words: list[str]) -> None:
    """Assert that a command line is `on-api` with one of its commands."""
    name, command, *options = words
    assert name == "on-api"
    group = typer.main.get_command(app)
    assert command in getattr(group, "commands", {}), command
    assert not options
