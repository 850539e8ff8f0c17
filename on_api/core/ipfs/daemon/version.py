"""Kubo's version numbers: parsing, order, and the versions that on-api was tested with.

Holds plain comparisons only: it runs nothing and calls no node.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Version(NamedTuple):
    """A semantic version. `final` is False for a pre-release, which thus precedes its release."""

    major: int
    minor: int
    patch: int
    final: bool = True


class VersionRange(NamedTuple):
    """The versions `v` with `minimum <= v < below`."""

    minimum: Version
    below: Version


KUBO_VERSION = "0.43.0"
"""Version that on-api builds or downloads when it finds none."""

# The end is the first possible pre-release: 0.44.0-rc1 is already outside.
TESTED_VERSIONS = VersionRange(Version(0, 43, 0), Version(0, 44, 0, final=False))
TESTED_RANGE = ">=0.43.0,<0.44"
"""Text form of `TESTED_VERSIONS`."""

_FORM = re.compile(
    r"v?(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?"  # numbers
    r"(-[0-9A-Za-z.-]+)?"  # pre-release
    r"(?:\+[0-9A-Za-z.-]*)?"  # build: says nothing about order
)


def parse_version(text: str) -> Version | None:
    """Parse `0.43.0`, `v0.43.1+git`, `0.44.0-rc1` or `0.43`; None if it is not a version number."""
    form = _FORM.fullmatch(text.strip())
    if form is None:
        return None
    major, minor, patch, pre_release = form.groups()
    return Version(int(major), int(minor), int(patch or 0), final=pre_release is None)


def is_tested(version: str) -> bool:
    """Return whether on-api was tested with this version of Kubo; False if it is not a version
    number."""
    parsed = parse_version(version)
    return parsed is not None and TESTED_VERSIONS.minimum <= parsed < TESTED_VERSIONS.below


def is_too_old(version: str) -> bool:
    """Return whether on-api is known not to work with this version; True if it is not a version
    number."""
    parsed = parse_version(version)
    return parsed is None or parsed < TESTED_VERSIONS.minimum
