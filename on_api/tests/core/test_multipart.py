"""The multipart reader: any chunking is the same form, any cut is an error, nothing grows without
bound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from on_api.core.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType
from on_api.core.multipart import MAX_FIELD_BYTES, MultipartReader

FORM = "multipart/form-data; boundary=b0undary"
Seen = list[tuple[str, str | None, str | None, bytes]]


def encode(*parts: tuple[str, bytes]) -> bytes:
    """A form of parts given by their Content-Disposition's parameters and their bodies."""
    body = b""
    for parameters, data in parts:
        head = f"--b0undary\r\nContent-Disposition: form-data; {parameters}\r\n\r\n"
        body += head.encode() + data + b"\r\n"
    return body + b"--b0undary--\r\n"


def read(chunks: list[bytes], content_type: str = FORM, max_parts: int = 100) -> Seen:
    """What the reader makes of a body that comes in these chunks."""

    async def source() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    async def run() -> Seen:
        reader = MultipartReader(content_type, source(), max_parts=max_parts)
        return [
            (part.name, part.filename, part.media_type, b"".join([c async for c in part.chunks()]))
            async for part in reader.parts()
        ]

    return asyncio.run(run())


DATA = st.binary(max_size=60) | st.sampled_from([b"--b0undary", b"\r\n--b0undar", b"\r\n", b"--"])


@settings(deadline=None)
@given(bodies=st.lists(DATA, max_size=4), cuts=st.lists(st.integers(0, 500), max_size=8))
def test_any_chunking_is_the_same_form(bodies: list[bytes], cuts: list[int]) -> None:
    """Wherever the network cuts it, and whatever looks like a boundary."""
    # A real boundary in the data is the sender's mistake, not a form.
    bodies = [data for data in bodies if b"\r\n--b0undary" not in b"\r\n" + data]
    body = encode(*((f'name="file"; filename="{n}"', data) for n, data in enumerate(bodies)))
    edges = sorted({0, len(body), *(cut % len(body) for cut in cuts)})
    chunks = [body[a:b] for a, b in pairwise(edges)]
    assert [(name, data) for _, name, _, data in read(chunks)] == [
        (str(n), data) for n, data in enumerate(bodies)
    ]


def test_cut_anywhere_it_is_no_form() -> None:
    """Before the last boundary's end every cut is an error: a short file never passes for a whole
    one."""
    body = encode(('name="a"', b"1"), ('name="file"; filename="x"', b"some bytes"))
    whole = body.rstrip(b"\r\n")
    for cut in range(len(whole)):
        with pytest.raises(BadRequest):
            read([body[:cut]])
    assert len(read([whole])) == len(read([body])) == 2


@settings(deadline=None, max_examples=300)
@given(body=st.binary(max_size=300), prefix=st.booleans())
def test_noise_is_an_error_of_ours(body: bytes, prefix: bool) -> None:
    """Whatever comes: a form, or an error of ours, never anything else."""
    head = b'--b0undary\r\nContent-Disposition: form-data; name="x"\r\n' if prefix else b""
    with suppress(BadRequest, PayloadTooLarge):
        read([head + body])


@pytest.mark.parametrize(
    ("parameters", "filename"),
    [
        ('name="file"; filename="a\\"b.txt"', 'a"b.txt'),
        ('name="file"; filename="a%22b.txt"', 'a"b.txt'),
        ('name="file"; filename="日本.txt"', "日本.txt"),
        ("name=\"file\"; filename*=UTF-8''%e6%97%a5.txt", "日.txt"),
        ("name=\"file\"; filename*=utf-8'en'a%20b", "a b"),
        ('name="file"; filename="plain"; filename*=UTF-8\'\'%e6%97%a5', "plain"),
        ('name="file"; filename=""', ""),
        ('name="file"', None),
        ("name=file; filename=unquoted.txt", "unquoted.txt"),
    ],
)
def test_filenames_as_clients_spell_them(parameters: str, filename: str | None) -> None:
    """Browsers, curl old and new, requests old and new."""
    [(name, seen, _, _)] = read([encode((parameters, b""))])
    assert (name, seen) == ("file", filename)


@pytest.mark.parametrize(
    "part",
    [
        b"",
        b"Content-Disposition: attachment; name=x\r\n\r\n",
        b"Content-Disposition: form-data\r\n\r\n",
        b'Content-Disposition: form-data; name="\xff"\r\n\r\n',
        b"No-Colon\r\n\r\n",
        b"X: " + b"y" * 10_000 + b"\r\n\r\n",
        b"".join(b"X%d: y\r\n" % n for n in range(50)) + b"\r\n",
    ],
)
def test_parts_that_are_none(part: bytes) -> None:
    """400, before anything of them is used."""
    with pytest.raises(BadRequest):
        read([b"--b0undary\r\n" + part + b"data\r\n--b0undary--\r\n"])


def test_bounds() -> None:
    """Parts and fields are counted; files may be of any size."""
    with pytest.raises(PayloadTooLarge):
        read([encode(*[('name="x"', b"")] * 4)], max_parts=3)

    async def read_field(size: int) -> str:
        async def source() -> AsyncIterator[bytes]:
            yield encode(('name="x"', b"a" * size))

        reader = MultipartReader(FORM, source(), max_parts=1)
        async for part in reader.parts():
            return await part.text()
        return ""

    assert len(asyncio.run(read_field(MAX_FIELD_BYTES))) == MAX_FIELD_BYTES
    with pytest.raises(BadRequest):
        asyncio.run(read_field(MAX_FIELD_BYTES + 1))


@pytest.mark.parametrize(
    ("content_type", "error"),
    [
        ("", UnsupportedMediaType),
        ("application/json", UnsupportedMediaType),
        ("multipart/mixed; boundary=x", UnsupportedMediaType),
        ("multipart/form-data", BadRequest),
        ("multipart/form-data; boundary=", BadRequest),
        (f"multipart/form-data; boundary={'x' * 300}", BadRequest),
    ],
)
def test_content_types(content_type: str, error: type[Exception]) -> None:
    """Only forms, and only with a boundary."""
    with pytest.raises(error):
        read([b""], content_type)


def test_a_large_part_is_never_gathered() -> None:
    """The queue holds what one chunk brought, however much comes."""
    most = 0

    async def run() -> None:
        nonlocal most
        head = encode(('name="file"; filename="x"', b"")).split(b"\r\n--b0undary--")[0]

        async def source() -> AsyncIterator[bytes]:
            yield head
            for _ in range(200):
                yield bytes(65536)
            yield b"\r\n--b0undary--\r\n"

        reader = MultipartReader(FORM, source(), max_parts=1)
        async for part in reader.parts():
            async for _ in part.chunks():
                most = max(most, sum(len(i) for i in reader._queue if isinstance(i, bytes)))

    asyncio.run(run())
    assert most <= 2 * 65536
