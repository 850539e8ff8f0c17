"""How the parser is fed with a chunked body."""

from __future__ import annotations

from itertools import pairwise

import pytest

from on_api.server.chunked import ChunkedBody


def pieces(body: bytes, cuts: list[int]) -> list[bytes]:
    """What the parser is given one after the other, if the body comes in pieces cut there."""
    given, chunks = [], ChunkedBody()
    for start, stop in pairwise(sorted({0, *cuts, len(body)})):
        data, at = body[start:stop], 0
        while at < len(data):
            end = chunks.next_end(data, at)
            chunks.passed(data, at, end, has_data=True)
            given.append(data[at:end])
            at = end
    return given


@pytest.mark.parametrize("data", [b"\r\n" * 100_000, b"\n" * 200_000, b"\r\n\r\n1" * 40_000])
def test_empty_lines_in_data_end_nothing(data: bytes) -> None:
    """A body full of them is given as a whole: each piece costs a call."""
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)
    assert len(pieces(body, [])) == 1
    assert len(pieces(body + b"GET / HTTP/1.1\r\n\r\n", [])) == 2


@pytest.mark.parametrize("trailers", [b"", b"A: b\r\nC: 0\r\n"])
@pytest.mark.parametrize(
    "data", [b"x", b"\r\n0\r\n\r\n", b"\n0\r", b"0\r\n\r\n0", b"\r\n\r\n", b"\n0\n0\r\n"]
)
def test_nothing_of_the_next_request_is_given_with_the_end(data: bytes, trailers: bytes) -> None:
    """Wherever the body is cut, and whatever its data look like."""
    body = b"%x\r\n%s\r\n0\r\n%s\r\n" % (len(data), data, trailers)
    stream = body + b"GET /next HTTP/1.1\r\n\r\n"
    for cut in range(1, len(stream)):
        for other in (cut + 1, cut + 3, len(stream)):
            ends, at = set(), 0
            for piece in pieces(stream, [cut, min(other, len(stream))]):
                at += len(piece)
                ends.add(at)
            assert len(body) in ends, (cut, other)
