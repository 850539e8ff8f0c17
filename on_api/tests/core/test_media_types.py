"""Guessing media types: the quick look before puremagic never changes what it says."""

from __future__ import annotations

import puremagic
from hypothesis import given
from hypothesis.strategies import binary, builds, integers, sampled_from

from on_api.core import media_types
from on_api.core.media_types import BINARY, TEXT, sniff

MARKS = [*puremagic.magic_header_array, *puremagic.magic_footer_array]


def marked(data: bytes, mark: int, cut: int) -> bytes:
    """Bytes with one of puremagic's marks where it looks for it, or nearly."""
    sign, offset = bytes(MARKS[mark].byte_match), int(MARKS[mark].offset)
    if offset < 0:
        body = data + sign + bytes(max(0, -offset - len(sign)))
    else:
        body = data[:offset].ljust(offset, b"\x01") + sign + data
    return body[: len(body) - cut]


anything = builds(
    marked, binary(max_size=200), integers(0, len(MARKS) - 1), sampled_from([0, 0, 0, 1, 3])
)


@given(anything | binary(max_size=2000))
def test_the_quick_look_overlooks_nothing(data: bytes) -> None:
    """Where it says that nothing is known, puremagic knows nothing."""
    head = data[:4096]
    if not head or media_types.may_be_known(head):
        return
    try:
        found = puremagic.from_string(head, mime=True)
    except puremagic.PureError:
        return
    raise AssertionError(f"{found} was overlooked")


def test_what_is_found_out() -> None:
    """By name, by marks at the beginning and at the end, else text or not."""
    assert sniff("a.json", b"x") == "application/json"
    assert sniff("README.md", b"# Words\n") == "text/markdown"
    assert sniff("FILM.MKV", b"x") == "video/matroska"
    assert sniff("a", b"\x89PNG\r\n\x1a\n" + bytes(20)) == "image/png"
    assert sniff("a", b"plain words\n") == TEXT
    assert sniff("a", bytes([200, 1, 2, 3] * 20)) == BINARY
    assert sniff("a", b"") == BINARY
