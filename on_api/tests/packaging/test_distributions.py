"""What the sdist and the wheel carry, and where the wheel's files go."""

from __future__ import annotations

import json
import subprocess
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from on_api.core.models.revisions import PROJECT
from on_api.tests.packaging.conftest import Installed, build

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(1200)]

DIST_INFO = f"on_api-{version('on-api')}.dist-info/"


def committed(*folders: str) -> set[str]:
    """The files below some folders of the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", *folders],  # noqa: S607 (wherever git is)
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name for name in listed.stdout.split("\0") if name}


def test_the_wheel_has_all_that_is_needed_and_no_tests(wheel: Path) -> None:
    """Code, migrations, Swagger's files and the node's Go module, inside `on_api`; nothing else."""
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    inside = {name for name in names if not name.startswith(DIST_INFO)}
    code = {name for name in committed("on_api") if not name.startswith("on_api/tests/")}
    assert inside == code | {f"on_api/{name}" for name in committed("alembic")}
    assert {
        "on_api/alembic/env.py",
        "on_api/alembic/script.py.mako",
        "on_api/core/ipfs/daemon/kubo_module/go.mod",
        "on_api/core/ipfs/daemon/kubo_module/go.sum",
        "on_api/public/static/swagger-ui-bundle.js",
        f"{DIST_INFO}licenses/LICENSE",
    } <= names


def test_the_sdist_has_what_a_developer_needs(sdist: Path) -> None:
    """Tests, and migrations where Alembic looks for them in a checkout."""
    with tarfile.open(sdist) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert committed("on_api", "alembic") | {"alembic.ini", "pyproject.toml"} <= names


def test_two_builds_are_the_same_bytes(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    """Also a wheel from the checkout, where the other one was built from the sdist."""
    build(tmp_path, "--wheel", "--sdist")
    for path in (wheel, sdist):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_nothing_is_written_into_alembic_itself(installed: Installed) -> None:
    """Its package is the library's, as a migration shows; ours are `on_api`, the command and what
    pip keeps of them."""
    said = installed.python(
        "import alembic, json\n"
        "from importlib.metadata import files, packages_distributions as owners\n"
        "import on_api.core.models.migrations as ours\n"
        "print(json.dumps([alembic.__file__, ours.command.__name__, owners()['alembic'],"
        " [str(path) for path in files('on-api')]]))"
    )
    library, commands, owners, files = json.loads(said)
    assert library.endswith("/alembic/__init__.py")
    assert commands == "alembic.command"
    assert owners == ["alembic"]
    own = ("on_api/", DIST_INFO)
    assert {name for name in files if not name.startswith(own)} == {"../../../bin/on-api"}
    beside = Path(library).parent
    assert not (beside / "versions").exists()
    assert not (beside / "env.py").exists()


def test_migrations_without_a_checkout(installed: Installed) -> None:
    """`on-api db`, from an empty folder: up, down, up, compared with the models; and as SQL."""
    nothing = installed.run("db", "current")
    assert nothing.returncode == 1
    assert "Traceback" not in nothing.stderr

    def said(*command: str) -> str:
        done = installed.run("db", *command)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said("upgrade")
    newest = said("current")
    assert "(head)" in newest
    assert said("history").startswith(f"{int(newest[:4]) - 1:04} -> {newest[:4]} (head), ")
    assert "No new upgrade operations" in said("check")
    said("downgrade", "-1")
    assert "(head)" not in said("current")
    behind = installed.run("db", "check")
    assert behind.returncode == 1
    assert "not up to date" in behind.stderr
    said("downgrade", "base")
    assert said("current") == ""
    said("upgrade")
    assert said("current") == newest
    assert "CREATE TABLE files" in said("upgrade", "--sql")
    assert "DROP TABLE files" in said("downgrade", "head:base", "--sql")
    unknown = installed.run("db", "upgrade", "nowhere")
    assert unknown.returncode == 1
    assert unknown.stderr.splitlines()[-1] == (
        "on-api: Can't locate revision identified by 'nowhere'"
    )
    assert list(installed.folder.iterdir()) == []
