"""The home that is used when none is named: in a checkout, and for an installed package."""

from __future__ import annotations

from pathlib import Path

import pytest

from on_api.core import installation
from on_api.core.installation import LOCAL_HOME, default_home
from on_api.core.settings import Settings


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder of a person whose home folder is beside it."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    for name in ("XDG_DATA_HOME", "ON_API_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "empty"


def test_a_checkout_uses_the_current_folder(folder: Path) -> None:
    """Whether it is there or not: this is what `make` and `alembic` have always used."""
    assert not installation.IS_INSTALLED
    assert default_home() == LOCAL_HOME
    assert Settings(_env_file=None).home_message == (
        f"the home is {folder / '.on-api'} (the folder .on-api here)"
    )


def test_an_installed_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder here if there is one, else the person's data; the setting wins over both."""
    monkeypatch.setattr(installation, "IS_INSTALLED", True)
    in_data = folder.parent / "user" / ".local" / "share" / "on-api"
    assert default_home() == in_data
    monkeypatch.setenv("XDG_DATA_HOME", "relative")  # the specification: ignored
    assert default_home() == in_data
    monkeypatch.setenv("XDG_DATA_HOME", str(folder.parent / "data"))
    assert default_home() == folder.parent / "data" / "on-api"
    assert "your data folder" in Settings(_env_file=None).home_message
    (folder / ".on-api").write_text("a file is no home")
    assert default_home() == folder.parent / "data" / "on-api"
    (folder / ".on-api").unlink()
    (folder / ".on-api").mkdir()
    assert default_home() == LOCAL_HOME
    (folder / ".env").write_text("ON_API_HOME=/srv/on-api\n")
    assert Settings().home_message == "the home is /srv/on-api (ON_API_HOME)"


def test_an_account_without_a_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in containers with a user id of their own: the current folder."""

    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(installation, "IS_INSTALLED", True)
    monkeypatch.setattr(Path, "home", nowhere)
    assert default_home() == LOCAL_HOME
