"""Whether two settings mean the same database, and what of its URL is told to anybody."""

from __future__ import annotations

from pathlib import Path

import pytest

from on_api.cli.context import open_database
from on_api.core.errors import StartupError
from on_api.core.services.upkeep.instance import Instance, published
from on_api.tests.conftest import make_settings

SECRETS = "postgresql://ada:s3cret-1@127.0.0.1:1/x?password=s3cret-2&sslpassword=s3cret-3"


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("postgresql:///x?host=/run/a", "postgresql:///x?host=/run/a", True),
        ("postgresql:///x?host=/run/a", "postgresql:///x?host=/run/b", False),
        ("postgresql:///x?host=/run/a", "postgresql:///x", False),
        ("postgresql:///?dbname=x&host=a", "postgresql:///?host=a&dbname=x", True),
        ("postgresql:///?service=x", "postgresql:///?service=y", False),
        ("postgresql://h/x?options=-csearch_path%3Da", "postgresql://h/x", False),
        ("postgresql://u:old@h/x", "postgresql://u:new@h/x", True),
        ("postgresql://u@h/x?password=old", "postgresql://u@h/x?password=new", True),
        ("postgresql://u@h/x?connect_timeout=5", "postgresql://u@h/x", True),
        ("postgresql://u@h/x", "postgresql://u@h/y", False),
        ("sqlite:////tmp/x.db", "sqlite:////tmp/../tmp/x.db", True),
        ("sqlite:////tmp/x.db", "sqlite:////tmp/y.db", False),
    ],
)
def test_whether_it_is_the_same_database(
    tmp_path: Path, one: str, other: str, is_same: bool
) -> None:
    """Told by what names it, wherever that stands in the URL, not by its secrets."""
    running = Instance.of(make_settings(tmp_path, one), serves=True)
    assert running.uses_database_of(make_settings(tmp_path, other)) is is_same


def test_no_secret_of_the_url_is_told(tmp_path: Path) -> None:
    """Neither in the home's file, nor where another database or an unreachable one is named."""
    settings = make_settings(tmp_path, SECRETS)
    with published(settings, serves=True):
        told = (tmp_path / "instance.json").read_text()
    told += Instance.of(settings, serves=True).other_database_message()
    with pytest.raises(StartupError, match=r"127\.0\.0\.1:1/x") as caught:
        open_database(settings)
    assert "s3cret" not in told + caught.value.details
