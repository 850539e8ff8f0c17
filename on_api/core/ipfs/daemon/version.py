"""Kubo's version numbers: reading them, ordering them, and which ones on-api was tested with.

Holds plain comparisons only: it runs nothing and asks no node.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Version(NamedTuple):
    """A semantic version. `final` is False for a pre-release, which so comes before its release."""

    major: int
    minor: int
    patch: int
    final: bool = True


class VersionRange(NamedTuple):
    """The versions `v` with `minimum <= v < below`."""

    minimum: Version
    below: Version


KUBO_VERSION = "0.43.0"
"""The version that on-api builds or downloads when it finds none."""

# The end is a pre-release, the first there can be: 0.44.0-rc1 is already outside.
TESTED_VERSIONS = VersionRange(Version(0, 43, 0), Version(0, 44, 0, final=False))
TESTED_RANGE = ">=0.43.0,<0.44"
"""`TESTED_VERSIONS` as people write it."""

_FORM = re.compile(
    r"v?(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?"  # numbers
    r"(-[0-9A-Za-z.-]+)?"  # pre-release
    r"(?:\+[0-9A-Za-z.-]*)?"  # build: says nothing about order
)


def parse_version(text: str) -> Version | None:
    """Read `0.43.0`, `v0.43.1+git`, `0.44.0-rc1` or `0.43`; None when it is no version number."""
    form = _FORM.fullmatch(text.strip())
    if form is None:
        return None
    major, minor, patch, pre_release = form.groups()
    return Version(int(major), int(minor), int(patch or 0), final=pre_release is None)


def is_tested(version: str) -> bool:
    """Whether on-api was tested with this version of Kubo; False for what is no version number."""
    parsed = parse_version(version)
    return parsed is not None and TESTED_VERSIONS.minimum <= parsed < TESTED_VERSIONS.below


def is_too_old(version: str) -> bool:
    """Whether on-api is known not to work with this version; True for what is no version number."""
    parsed = parse_version(version)
    return parsed is None or parsed < TESTED_VERSIONS.minimum
