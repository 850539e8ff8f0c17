"""A streaming reader of `multipart/form-data` (RFC 7578): parts in their order, nothing on disk,
every size bounded.

Works on an iterator of bytes; knows no web framework and no meaning of any part.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

from on_api.core.blocks import Bytes
from on_api.core.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType

MAX_HEADERS = 16
MAX_HEADER_BYTES = 8 * 1024
"""Of one header of a part."""
MAX_FIELD_BYTES = 64 * 1024
"""Of one form field's value."""

# RFC 7578 forbids it here, but older clients send a name that is not ASCII in no other way.
_EXTENDED_FILENAME = re.compile(rb"filename\*\s*=\s*utf-8'[\w-]*'([^\s;]+)", re.IGNORECASE)


class _End:
    """Marks a part's end in the queue."""


@dataclass
class Part:
    """One part. Its body must be read (or the reader moved on) before the next part can come."""

    name: str
    filename: str | None
    """None: an ordinary field. Empty: a browser's file input without a file."""
    media_type: str | None
    _reader: MultipartReader = field(repr=False)

    async def chunks(self) -> AsyncIterator[Bytes]:
        """The part's body as it comes."""
        while isinstance(item := await self._reader._next(), Bytes):
            yield item

    async def text(self) -> str:
        """The whole body of a form field. Raises `BadRequest` when it is too long or no UTF-8."""
        body = bytearray()
        async for chunk in self.chunks():
            body += chunk
            if len(body) > MAX_FIELD_BYTES:
                raise BadRequest(f"A form field is over {MAX_FIELD_BYTES} bytes.")
        try:
            return body.decode()
        except UnicodeDecodeError:
            raise BadRequest("A form field is not UTF-8.") from None


class MultipartReader:
    """Reads the parts of a body. `source` is the body; at most `max_parts` parts are taken."""

    def __init__(self, content_type: str, source: AsyncIterator[Bytes], *, max_parts: int) -> None:
        self._source = source
        self._left = max_parts
        self._queue: deque[Part | Bytes | type[_End]] = deque()
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._headers: dict[str, bytes] = {}
        self._finished = False
        self._parser = MultipartParser(
            _boundary(content_type),
            self._callbacks(),
            max_header_count=MAX_HEADERS,
            max_header_size=MAX_HEADER_BYTES,
        )

    async def parts(self) -> AsyncIterator[Part]:
        """Every part in turn; what was not read of one is skipped. Raises `BadRequest` for a
        malformed body."""
        while (item := await self._next()) is not None:
            if isinstance(item, Part):
                yield item

    async def _next(self) -> Part | Bytes | type[_End] | None:
        while not self._queue:
            chunk = await anext(self._source, None)
            if chunk is None:
                if not self._finished:
                    raise BadRequest("The multipart body ends before its last boundary.")
                return None
            try:
                self._parser.write(cast(bytes, chunk))  # a `bytearray` does as well
            except MultipartParseError:
                raise BadRequest(
                    "The multipart body is malformed, or a part has too many or too long headers."
                ) from None
        return self._queue.popleft()

    def _callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": self._header_field,
            "on_header_value": self._header_data,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._take_data,
            "on_part_end": lambda: self._queue.append(_End),
            "on_end": self._finish,
        }

    def _begin_part(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise PayloadTooLarge("The multipart body has too many parts.")
        self._headers = {}

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name.extend(data[start:end])

    def _header_data(self, data: bytes, start: int, end: int) -> None:
        self._header_value.extend(data[start:end])

    def _end_header(self) -> None:
        self._headers[self._header_name.decode("latin-1").lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _end_headers(self) -> None:
        disposition, options = parse_options_header(self._headers.get("content-disposition"))
        name = options.get(b"name")
        if disposition != b"form-data" or name is None:
            raise BadRequest("A part has no Content-Disposition: form-data with a name.")
        filename = options.get(b"filename")
        extended = _EXTENDED_FILENAME.search(self._headers.get("content-disposition", b""))
        if filename is None and extended is not None:
            filename = unquote_to_bytes(extended[1])
        media_type = self._headers.get("content-type")
        self._queue.append(
            Part(
                name=_text(name),
                filename=None if filename is None else _text(filename),
                media_type=None if media_type is None else media_type.decode("latin-1").strip(),
                _reader=self,
            )
        )

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        self._queue.append(memoryview(data)[start:end])

    def _finish(self) -> None:
        self._finished = True


def _boundary(content_type: str) -> bytes:
    media_type, options = parse_options_header(content_type)
    if media_type != b"multipart/form-data":
        raise UnsupportedMediaType("Send multipart/form-data, or the bytes alone by PUT.")
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 256:
        raise BadRequest("The Content-Type names no usable multipart boundary.")
    return boundary


def _text(raw: bytes) -> str:
    """Names as browsers and curl write them: UTF-8, a quote as %22 (WHATWG HTML) or escaped."""
    try:
        return raw.decode().replace("%22", '"')
    except UnicodeDecodeError:
        raise BadRequest("A part's name is not UTF-8.") from None
