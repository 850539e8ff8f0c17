"""What `make release` wants before it builds."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from on_api.core.models.revisions import PROJECT

pytestmark = pytest.mark.packaging

VERSION = version("on-api")
CHANGELOG = f"# Changelog\n\n## [Unreleased]\n\n## [{VERSION}] - 2026-11-30\n\n- News.\n"


class Repository:
    """A repository with what the check reads, ready for a release."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("pyproject.toml", ".ci/release", "openapi/v1.json", "openapi/v2.json"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, folder / name)
        self.write(CHANGELOG)
        self.git("init", "--quiet")
        self.commit()
        self.git("tag", f"v{VERSION}")

    def git(self, *arguments: str) -> None:
        """Run git."""
        who = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
        subprocess.run(["git", *who, *arguments], cwd=self.folder, check=True)  # noqa: S607

    def commit(self) -> None:
        """Commit all there is."""
        self.git("add", ".")
        self.git("commit", "--quiet", "--allow-empty", "--message", "All")

    def write(self, changelog: str) -> None:
        """Replace the changelog."""
        (self.folder / "CHANGELOG.md").write_text(changelog)

    def replace(self, name: str, old: str, new: str) -> None:
        """Change a file, which must have the old words."""
        text = (self.folder / name).read_text()
        assert old in text
        (self.folder / name).write_text(text.replace(old, new, 1))

    def check(self) -> subprocess.CompletedProcess[str]:
        """Run the check."""
        return subprocess.run(
            [self.folder / ".ci" / "release"], capture_output=True, text=True, check=False
        )


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """See `Repository`."""
    return Repository(tmp_path)


def test_all_is_well(repository: Repository) -> None:
    """Nothing is said."""
    done = repository.check()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (Repository.commit, f"has no tag v{VERSION}"),
        (lambda r: r.write(CHANGELOG.replace("\n\n## [0", "\n- More.\n\n## [0")), "not empty"),
        (lambda r: r.write(CHANGELOG.replace(VERSION, "9.9.9")), f"must be `[{VERSION}] - YYYY"),
        (lambda r: r.write(CHANGELOG.replace("2026-11-30", "2026-13-30")), "must be `["),
        (lambda r: r.write(CHANGELOG.replace("- News.\n", "")), "says nothing"),
        (lambda r: r.write("# Changelog\n"), "not `no release`"),
        (lambda r: r.replace("openapi/v2.json", f'"{VERSION}"', '"0.0.1"'), "make openapi"),
        (lambda r: r.replace("pyproject.toml", f'"{VERSION}"', '"9.9.9"'), "no tag v9.9.9"),
        (lambda r: r.write(CHANGELOG + "- Later.\n"), "not committed"),
    ],
)
def test_what_is_refused(
    repository: Repository, change: Callable[[Repository], None], complaint: str
) -> None:
    """Each with its cure, and exit code 1."""
    change(repository)
    done = repository.check()
    assert done.returncode == 1
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_this_changelog_tells_of_this_version() -> None:
    """The version of pyproject.toml has its heading, and there is a place for what comes next."""
    text = (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]\n" in text
    assert f"## [{VERSION}] - " in text
