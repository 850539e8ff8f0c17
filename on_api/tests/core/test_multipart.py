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
from on_api.core.web.multipart import MAX_FIELD_BYTES, MAX_PREAMBLE_BYTES, MultipartReader

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
        ('name="file"; filename="plain"; filename*=UTF-8\'\'%e6%97%a5', "日"),
        ("name=file; filename=\"=?utf-8?B?w6kudHh0?=\"; filename*=utf-8''%C3%A9.txt", "é.txt"),
        ('name=file; filename="=?utf-8?B?w6kudHh0?="', "é.txt"),
        ('name=file; filename="=?iso-8859-1?q?=E9_a.txt?="', "é a.txt"),
        ('name=file; filename="=?utf-8?B?w6k=?= =?UTF-8?B?LnR4dA==?="', "é.txt"),
        ("name=file; filename*=ISO-8859-1''%e9.txt", "é.txt"),
        ("name=file; filename*=koi8-r''%c1; filename=\"a\"", "a"),
        ("name=file; filename*=utf-8''%ff; filename=\"a\"", "a"),
        ('name="file"; filename=""', ""),
        ('name="file"; filename="a\\\\b"', "a\\b"),
        ('name="file"; filename="a\\"', "a\\"),
        ('name="file"; filename="a\\b;c.txt";', "a\\b;c.txt"),
        ('name="file";; Filename = "a" ; size=1', "a"),
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
        b'Content-Disposition: form-data; name="x"; name="y"\r\n\r\n',
        b'Content-Disposition: form-data; name="x"; filename="a"; filename="b"\r\n\r\n',
        b'Content-Disposition: form-data; name="x"; filename="\xe9.txt"\r\n\r\n',
        b"Content-Disposition: form-data; name=x; filename*=koi8-r''%c1\r\n\r\n",
        b'Content-Disposition: form-data; name="x"; filename="=?utf-8?B?!?="\r\n\r\n',
        b'Content-Disposition: form-data; name="x"; filename="a\r\n\r\n',
        b"Content-Disposition: form-data; name=x\r\ncontent-disposition: form-data; name=y\r\n\r\n",
        b"Content-Disposition: form-data; name=x\r\nContent-Range: bytes 0-1/2\r\n\r\n",
        b"Content-Disposition: form-data; name=x\r\n" + 2 * b"Content-Type: a/b\r\n" + b"\r\n",
    ],
)
def test_parts_that_are_none(part: bytes) -> None:
    """400, before anything of them is used."""
    with pytest.raises(BadRequest):
        read([b"--b0undary\r\n" + part + b"data\r\n--b0undary--\r\n"])


@pytest.mark.parametrize(
    "header",
    [
        "Content-Transfer-Encoding: base64",
        "Content-Transfer-Encoding: Quoted-Printable",
        "Content-Encoding: gzip",
        "Content-Type: multipart/mixed; boundary=inner",
    ],
)
def test_parts_whose_bytes_are_other_ones(header: str) -> None:
    """415: they would be stored as they were coded."""
    head = f'--b0undary\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n{header}'
    with pytest.raises(UnsupportedMediaType):
        read([f"{head}\r\n\r\neA==\r\n--b0undary--\r\n".encode()])


@pytest.mark.parametrize("coding", ["7bit", "8bit", "Binary", ""])
def test_parts_that_say_they_are_not_coded(coding: str) -> None:
    """As Java's and PHP's clients do."""
    head = f"Content-Disposition: form-data; name=x\r\nContent-Transfer-Encoding: {coding}\r\n"
    body = f"--b0undary\r\n{head}Content-Encoding: identity\r\n\r\ndata\r\n--b0undary--"
    assert [data for _, _, _, data in read([body.encode()])] == [b"data"]


@pytest.mark.parametrize("before", [b"", b"\r\n", b"A preamble - with --b0und\r\n--b\r\n\r\n"])
@pytest.mark.parametrize("padding", [b"", b" ", b"\t  "])
@pytest.mark.parametrize("after", [b"", b"\r\n", b" \r\nAn epilogue\r\n--b0undary\r\n"])
@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_around_the_parts(before: bytes, padding: bytes, after: bytes, piece: int) -> None:
    """A preamble and an epilogue are dropped, and blanks behind a boundary belong to it (RFC 2046,
    5.1.1), however the body is cut."""
    part = b"--b0undary%b\r\nContent-Disposition: form-data; name=%b\r\n\r\n%b\r\n"
    body = before + part % (padding, b"a", b"1") + part % (padding, b"b", b"\r\n--b0und")
    body += b"--b0undary--" + after
    chunks = [body[at : at + piece] for at in range(0, len(body), piece)]
    seen = [(name, data) for name, _, _, data in read(chunks)]
    assert seen == [("a", b"1"), ("b", b"\r\n--b0und")]


def test_a_body_without_its_boundary_is_not_read_to_its_end() -> None:
    """Else a whole film would be read before it is refused."""
    taken = 0

    async def source() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield bytes(MAX_PREAMBLE_BYTES)

    async def run() -> None:
        async for _ in MultipartReader(FORM, source(), max_parts=1).parts():
            pass

    with pytest.raises(BadRequest):
        asyncio.run(run())
    assert taken < 5


@pytest.mark.parametrize(
    ("media_type", "raw", "text"),
    [
        ("text/plain; charset=UTF-8", "é".encode(), "é"),
        ("text/plain; charset=ISO-8859-1", b"\xc3\xa9", "Ã©"),
        ("text/plain; charset=us-ascii;", b"e", "e"),
        ("application/json", "é".encode(), "é"),
    ],
)
def test_fields_in_the_charset_that_they_name(media_type: str, raw: bytes, text: str) -> None:
    """RFC 7578, section 4.5; Apache's Java client says ISO-8859-1 by itself."""
    assert read_text_of(media_type, raw) == text


def test_fields_in_a_charset_that_is_not_read() -> None:
    """415: the wrong letters would be stored."""
    with pytest.raises(UnsupportedMediaType):
        read_text_of("text/plain; charset=utf-16", b"a\0")


def read_text_of(media_type: str, raw: bytes) -> str:
    """The text of a field of this Content-Type."""
    head = f"--b0undary\r\nContent-Disposition: form-data; name=x\r\nContent-Type: {media_type}"
    body = head.encode() + b"\r\n\r\n" + raw + b"\r\n--b0undary--"

    async def source() -> AsyncIterator[bytes]:
        yield body

    async def run() -> str:
        parts = MultipartReader(FORM, source(), max_parts=1).parts()
        return await (await anext(parts)).text()

    return asyncio.run(run())


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
        ("multipart/form-data; boundary=x; boundary=y", BadRequest),
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
                most = max(most, reader.queued)

    asyncio.run(run())
    assert most <= 2 * 65536
