"""CIDs: one form for each, from every way to write it, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from on_api.core.errors import BadRequest
from on_api.core.ipfs.formats.cid import (
    DAG_PB,
    IDENTITY,
    MAX_LENGTH,
    RAW,
    SHA2_256,
    Cid,
    normalise,
    varint,
)
from on_api.tests.testing.pins import forms_of, version_0

DIGESTS = {0x11: 20, SHA2_256: 32, 0x13: 64, 0x17: 28, 0x1B: 32, 0x1E: 32, 0xB220: 32, 0xB240: 64}
CODECS = st.sampled_from([RAW, DAG_PB, 0x71, 0x0129, 0x72]) | st.integers(0, 2**62)


@st.composite
def cids(draw: st.DrawFn) -> Cid:
    """Any that is accepted."""
    code = draw(st.sampled_from([*DIGESTS, IDENTITY]))
    size = draw(st.integers(0, 128)) if code == IDENTITY else DIGESTS[code]
    return Cid(draw(CODECS), code, draw(st.binary(min_size=size, max_size=size)))


@given(cids())
def test_bytes_and_text_come_back(cid: Cid) -> None:
    """As themselves; a text of more than 128 characters is refused."""
    assert Cid.from_bytes(cid.raw) == cid
    assert Cid.at_start_of(cid.raw + b"rest") == (cid, len(cid.raw))
    text = str(cid)
    if len(text) > MAX_LENGTH:
        with pytest.raises(BadRequest):
            Cid.from_text(text)
    else:
        assert Cid.from_text(text) == cid
        assert normalise(text) == text


@given(cids())
def test_every_base_is_the_same(cid: Cid) -> None:
    """All that are short enough to be read."""
    for base, text in forms_of(str(cid)).items() if len(str(cid)) <= MAX_LENGTH else ():
        if len(text) <= MAX_LENGTH:
            assert Cid.from_text(text) == cid, base


@given(st.binary(min_size=32, max_size=32))
def test_both_versions_are_the_same(digest: bytes) -> None:
    """Version 0 is dag-pb by sha2-256, in text and in bytes."""
    new = Cid(DAG_PB, SHA2_256, digest)
    assert Cid.from_text(version_0(digest)) == new
    assert Cid.from_bytes(bytes((SHA2_256, 32)) + digest) == new
    assert str(new).startswith("bafybei")


@given(st.text(max_size=200) | st.text("bQmzfu-_+/=0123456789abcdef", max_size=140))
def test_any_text_is_one_or_is_refused(text: str) -> None:
    """Never another error."""
    try:
        cid = Cid.from_text(text)
    except BadRequest:
        return
    assert Cid.from_text(str(cid)) == cid


@given(
    st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: b"\x01\x55\x12\x20" + tail)
)
def test_any_bytes_are_one_or_are_refused(raw: bytes) -> None:
    """Never another error; and each is written in one way only."""
    try:
        cid = Cid.from_bytes(raw)
    except BadRequest:
        return
    assert raw in {cid.raw, cid.raw[2:]}


@given(cids(), st.integers(0, 3))
def test_numbers_have_one_form(cid: Cid, which: int) -> None:
    """A number written longer than it must be is refused."""
    numbers = [varint(n) for n in (1, cid.codec, cid.hash_code, len(cid.digest))]
    last = numbers[which]
    numbers[which] = last[:-1] + bytes((last[-1] | 0x80, 0))
    with pytest.raises(BadRequest):
        Cid.from_bytes(b"".join(numbers) + cid.digest)


@given(cids(), st.data())
def test_cut_or_continued_is_refused(cid: Cid, data: st.DataObject) -> None:
    """Wherever it is cut."""
    cut = data.draw(st.integers(0, len(cid.raw) - 1))
    for raw in (cid.raw[:cut], cid.raw + b"\x00"):
        with pytest.raises(BadRequest):
            Cid.from_bytes(raw)
