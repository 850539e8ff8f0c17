"""Sizes as people write them: exact, or refused."""

from __future__ import annotations

import pytest

from on_api.cli.sizes import limit_of
from on_api.core.errors import BadRequest


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("0", 0),
        ("1234", 1234),
        ("17B", 17),
        ("1kB", 1000),
        ("1KB", 1000),
        ("500MB", 500_000_000),
        ("10GiB", 10_737_418_240),
        ("10 GiB", 10_737_418_240),
        ("1TiB", 1_099_511_627_776),
        ("1.5GiB", 1_610_612_736),
        ("0.1GB", 100_000_000),
        ("0.000000000000001PB", 1),
        ("4096PiB", 2**62),
        ("4611686018427387904", 2**62),
        ("none", None),
    ],
)
def test_what_is_meant(written: str, meant: int | None) -> None:
    """To the byte: 0.1 GB is a hundred million."""
    assert limit_of(written) == meant


@pytest.mark.parametrize(
    "nonsense",
    [
        *("", " ", "GiB", "-1", "+1", "1e9", "0x10", "1_000", "1,5GB", "1.GB", ".5GB", "10gib"),
        *("10Gb", "10G", "10EB", "1kiB", "10GiB ", " 10GiB", "10  GiB", "10GiBs", "None", "null"),
        *("nan", "inf", "\u0661GB", "1.5", "0.3kiB", "0.0001KiB", "4097PiB", "4611686018427387905"),
        *("9" * 21, "9" * 100_000),
    ],
)
def test_nonsense_is_refused(nonsense: str) -> None:
    """With words that say what is right."""
    with pytest.raises(BadRequest, match=r"none|whole number"):
        limit_of(nonsense)
