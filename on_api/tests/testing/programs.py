"""External programs that some tests need. A test without its program is skipped, naming it; with
`CI=true` it fails instead."""

from __future__ import annotations

import os
import shutil

import pytest

# Debian installs nginx where only root's PATH has it.
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])


def is_there(name: str) -> bool:
    """Return whether this machine has a program."""
    return shutil.which(name, path=_PATH) is not None


def program(name: str) -> str:
    """Return the path of a program. Fails if there is none, which only happens with `CI=true` in a
    test that `needs` it."""
    found = shutil.which(name, path=_PATH)
    assert found is not None, f"CI=true, and there is no {name}"
    return found


def needs(*names: str, packages: str | None = None) -> pytest.MarkDecorator:
    """Skip a test on a machine that lacks one of these programs. `packages`: their Debian packages,
    if those have other names."""
    missing = [name for name in names if not is_there(name)]
    return pytest.mark.skipif(
        bool(missing) and os.environ.get("CI") != "true",
        reason=f"needs {' and '.join(missing)} (apt-get install {packages or ' '.join(names)})",
    )
