"""The sdist and the wheel, and the wheel installed into an environment of its own: without the
checkout, its `.venv`, git and Go."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from on_api.core.ipfs.daemon.binary import inherited_environment, kubo_binary
from on_api.core.models.revisions import PROJECT
from on_api.core.setting_groups import NodeSettings
from on_api.tests.testing.installed import once
from on_api.tests.testing.processes import Home

PROBE = "typer"
"""A package that is asked for, to see whether there is an index."""


@dataclass
class Installed(Home):
    """The installed command as a person calls it: from an empty folder, with nothing set but the
    ports, and with a PATH that has `ipfs` and nothing else."""

    user: Path = field(default=Path(), kw_only=True)
    """Their home folder."""

    @property
    def environment(self) -> dict[str, str]:
        """All that the processes inherit."""
        wanted = ("ON_API_PORT", "ON_API_NODE__RPC_PORT", "ON_API_NODE__GATEWAY_PORT")
        given = super().environment
        path = str(self.user / "bin")
        return {"HOME": str(self.user), "PATH": path, **{n: given[n] for n in wanted}, **self.extra}

    @property
    def log_file(self) -> Path:
        """Outside of the folders that are on-api's own."""
        return self.user / "serve.log"

    def python(self, code: str) -> str:
        """Return what the environment's Python prints when it runs some code."""
        done = self.call(str(self.program.with_name("python")), "-c", code)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run another program as this person."""
        return subprocess.run(
            command,
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


def build(folder: Path, *options: str) -> None:
    """Build into a folder, with the build backend that poetry.lock names."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), *options]
    _run([*command, str(PROJECT)])


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of a test run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def distributions(pytestconfig: pytest.Config, run_folder: Path) -> Path:
    """The folder with one sdist and one wheel, as `python -m build` leaves it: the wheel is built
    from the sdist."""
    given: Path | None = pytestconfig.getoption("--dist-folder")
    return given or once(run_folder / "dist", build)


@pytest.fixture(scope="session")
def wheel(distributions: Path) -> Path:
    """The wheel."""
    [path] = distributions.glob("*.whl")
    return path.absolute()


@pytest.fixture(scope="session")
def sdist(distributions: Path) -> Path:
    """The sdist."""
    [path] = distributions.glob("*.tar.gz")
    return path.absolute()


@pytest.fixture(scope="session")
def environment(wheel: Path, run_folder: Path) -> Path:
    """A virtual environment with the wheel, and what pip's own index has for its dependencies."""

    def install(folder: Path) -> None:
        _run([sys.executable, "-m", "venv", str(folder)])
        pip = [str(folder / "bin/python"), "-m", "pip"]
        asked = subprocess.run(
            [*pip, "download", "--quiet", "--no-deps", "--dest", str(folder / "probe"), PROBE],
            env=inherited_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.returncode != 0 and os.environ.get("CI") != "true":
            said = asked.stderr.strip().splitlines()[-1:]
            pytest.skip(f"pip reaches no package index, for the dependencies ({said})")
        _run([*pip, "install", "--quiet", "--disable-pip-version-check", str(wheel)])

    return once(run_folder / "installed", install)


@pytest.fixture
def installed(environment: Path, tmp_path: Path) -> Installed:
    """See `Installed`; nothing has been called yet."""
    user, folder = tmp_path / "user", tmp_path / "empty"
    (user / "bin").mkdir(parents=True)
    folder.mkdir()
    (user / "bin" / "ipfs").symlink_to(kubo_binary(NodeSettings(), print))
    home = user / ".local" / "share" / "on-api"
    return Installed(home, program=environment / "bin" / "on-api", folder=folder, user=user)


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, env=inherited_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
