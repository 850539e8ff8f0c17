"""Ranges and conditions against a second, plainer reading of RFC 9110."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from on_api.core.conditional import Plan, plan
from on_api.core.errors import PreconditionFailed, RangeNotSatisfiable

ETAG = '"bafy"'
SIZES = st.integers(0, 40)
NUMBERS = st.integers(0, 50).map(str) | st.just("99999999999999999999") | st.just("")
RANGES = st.one_of(
    st.builds("bytes={}-{}".format, NUMBERS, NUMBERS),
    st.builds("bytes={}-{},{}-{}".format, NUMBERS, NUMBERS, NUMBERS, NUMBERS),
    st.builds("{}={}-{}".format, st.sampled_from(["Bytes", "items", ""]), NUMBERS, NUMBERS),
    st.text(max_size=12),
)
TAGS = st.sampled_from(
    [ETAG, 'W/"bafy"', '"other"', "*", '"other", "bafy"', 'W/"x",W/"bafy"', "bafy"]
)


def reference(headers: dict[str, str], size: int) -> tuple[int, range]:
    """Status and the bytes' positions, one rule of the RFC after the other."""

    def listed(name: str) -> list[str]:
        return [tag.strip() for tag in headers[name].split(",")]

    if "if-match" in headers:  # 13.1.1: strong comparison
        tags = listed("if-match")
        if tags != ["*"] and ETAG not in tags:
            return 412, range(0)
    if "if-none-match" in headers:  # 13.1.2: weak comparison
        tags = listed("if-none-match")
        if tags == ["*"] or ETAG in [tag.removeprefix("W/") for tag in tags]:
            return 304, range(0)
    whole = 200, range(size)
    if "range" not in headers or size == 0:
        return whole
    if headers.get("if-range", ETAG) != ETAG:  # 13.1.5
        return whole
    unit, _, spec = headers["range"].partition("=")
    if unit.strip().lower() != "bytes" or spec.count("-") != 1:  # 14.2: others are ignored
        return whole
    first, last = (part.strip() for part in spec.split("-"))
    for part in (first, last):
        if part and not (part.isascii() and part.isdigit() and len(part) <= 19):
            return whole
    if not first:
        if not last:
            return whole
        length = min(int(last), size)
        return (206, range(size - length, size)) if length else (416, range(0))
    if last and int(last) < int(first):
        return whole
    if int(first) >= size:
        return 416, range(0)
    return 206, range(int(first), min(int(last) + 1 if last else size, size))


@settings(deadline=None, max_examples=500, suppress_health_check=[HealthCheck.too_slow])
@given(
    size=SIZES,
    headers=st.fixed_dictionaries(
        {},
        optional={"range": RANGES, "if-range": TAGS, "if-match": TAGS, "if-none-match": TAGS},
    ),
)
def test_as_the_rfc_says(size: int, headers: dict[str, str]) -> None:
    """On any combination of headers."""
    status, positions = reference(headers, size)
    if status == 412:
        with pytest.raises(PreconditionFailed):
            plan(headers, etag=ETAG, size=size)
    elif status == 416:
        with pytest.raises(RangeNotSatisfiable) as raised:
            plan(headers, etag=ETAG, size=size)
        assert raised.value.headers["Content-Range"] == f"bytes */{size}"
    else:
        made = plan(headers, etag=ETAG, size=size)
        assert (made.status, range(made.offset, made.offset + made.length)) == (status, positions)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [  # RFC 9110, section 14.1.2: a representation of 10,000 bytes
        ("bytes=0-499", Plan(206, 0, 500)),
        ("bytes=500-999", Plan(206, 500, 500)),
        ("bytes=-500", Plan(206, 9500, 500)),
        ("bytes=9500-", Plan(206, 9500, 500)),
        ("bytes=0-0", Plan(206, 0, 1)),
        ("bytes=0-0,-1", Plan(200, 0, 10_000)),
        ("bytes=-99999", Plan(206, 0, 10_000)),
        ("bytes=5-4", Plan(200, 0, 10_000)),
    ],
)
def test_the_rfcs_own_examples(wanted: str, expected: Plan) -> None:
    """Several ranges are answered with the whole, as is allowed."""
    assert plan({"range": wanted}, etag=ETAG, size=10_000) == expected
