"""A streaming reader of `multipart/form-data` (RFC 7578): parts in order, nothing on disk, every
size bounded.

Works on an iterator of bytes; knows no web framework and no meaning of any part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

from on_api.core.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType
from on_api.core.streams.blocks import Bytes
from on_api.core.web.header_values import TEXT_CODINGS, read_filename, read_parameters, read_text

MAX_HEADERS = 16
MAX_HEADER_BYTES = 8 * 1024
"""Bytes of one header of a part."""
MAX_FIELD_BYTES = 64 * 1024
"""Bytes of one form field's value."""
MAX_PREAMBLE_BYTES = 64 * 1024
"""Bytes before the first boundary (RFC 2046, section 5.1.1)."""

_PLAIN_CODINGS = {"", "7bit", "8bit", "binary"}
"""Values of a part's Content-Transfer-Encoding that leave the bytes unchanged (RFC 2045)."""


class _End:
    """Mark of a part's end in the queue."""


@dataclass
class Part:
    """One part. Its body must be read (or the reader moved on) before the next part can be read."""

    name: str
    filename: str | None
    """Name of the part's file. None: an ordinary field. Empty: a browser's file input without a
    file."""
    media_type: str | None
    _reader: MultipartReader = field(repr=False)

    async def chunks(self) -> AsyncIterator[Bytes]:
        """Yield the part's body as it comes."""
        while isinstance(item := await self._reader._next(), Bytes):
            yield item
            del item  # hold none while waiting for the next one

    async def text(self) -> str:
        """Return the whole body of a form field, in the charset that its Content-Type names, else
        UTF-8. Raises `BadRequest` when it is too long or not in that charset,
        `UnsupportedMediaType` for an unknown charset."""
        charset = "utf-8"
        if self.media_type is not None:
            charset = read_parameters(self.media_type)[1].get("charset", charset)
        coding = TEXT_CODINGS.get(charset.lower())
        if coding is None:
            raise UnsupportedMediaType("Send form fields as UTF-8.")
        body = bytearray()
        async for chunk in self.chunks():
            body += chunk
            if len(body) > MAX_FIELD_BYTES:
                raise BadRequest(f"A form field exceeds {MAX_FIELD_BYTES} bytes.")
        try:
            return body.decode(coding)
        except UnicodeDecodeError:
            raise BadRequest("A form field is not UTF-8.") from None


class MultipartReader:
    """Reads the parts of a body. `source` is the body; more than `max_parts` parts are an error."""

    def __init__(self, content_type: str, source: AsyncIterator[Bytes], *, max_parts: int) -> None:
        self._source = source
        self._left = max_parts
        self._queue: deque[Part | Bytes | type[_End]] = deque()
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._headers: dict[str, str] = {}
        self._finished = False
        self._preamble: int | None = 0
        boundary = _boundary(content_type)
        self._parser = MultipartParser(
            boundary,
            self._callbacks(),
            max_header_count=MAX_HEADERS,
            max_header_size=MAX_HEADER_BYTES,
        )
        # The parser knows no preamble: it reads it as a part's data, which is dropped.
        self._parser.write(b"--%b\r\n\r\n\r\n" % boundary)

    @property
    def queued(self) -> int:
        """Bytes that were parsed but not read yet."""
        return sum(len(item) for item in self._queue if isinstance(item, Bytes))

    async def parts(self) -> AsyncIterator[Part]:
        """Yield every part in turn; unread bytes of a part are skipped. Raises `BadRequest` for a
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
                self._parser.write(cast(bytes, chunk))  # it accepts any buffer
                del chunk  # hold none while waiting for the next one
            except MultipartParseError:
                raise BadRequest(
                    "The multipart body is malformed, or the headers of a part are too many or"
                    " too long."
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
            "on_part_end": self._end_part,
            "on_end": self._finish,
        }

    def _begin_part(self) -> None:
        if self._preamble is not None:
            return
        self._left -= 1
        if self._left < 0:
            raise PayloadTooLarge("The multipart body has too many parts.")
        self._headers = {}

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name.extend(data[start:end])

    def _header_data(self, data: bytes, start: int, end: int) -> None:
        self._header_value.extend(data[start:end])

    def _end_header(self) -> None:
        name = self._header_name.decode("latin-1").lower()
        if name in self._headers and name.startswith("content-"):
            raise BadRequest(f"A form part has the header {name[:32]} twice.")
        self._headers[name] = self._header_value.decode("latin-1").strip(" \t")
        self._header_name.clear()
        self._header_value.clear()

    def _end_headers(self) -> None:
        if self._preamble is None:
            name, filename = _names(self._headers.get("content-disposition", ""))
            _refuse_coded(self._headers)
            media_type = self._headers.get("content-type")
            self._queue.append(Part(name, filename, media_type, self))

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        if self._preamble is None:
            self._queue.append(memoryview(data)[start:end])
            return
        self._preamble += end - start
        if self._preamble > MAX_PREAMBLE_BYTES:
            raise BadRequest("The multipart body does not begin with its boundary.")

    def _end_part(self) -> None:
        if self._preamble is None:
            self._queue.append(_End)
        self._preamble = None

    def _finish(self) -> None:
        self._finished = True


def _boundary(content_type: str) -> bytes:
    media_type, parameters = read_parameters(content_type)
    if media_type != "multipart/form-data":
        raise UnsupportedMediaType(
            "Send multipart/form-data, or use PUT to send only the bytes of the file."
        )
    boundary = parameters.get("boundary", "").encode("latin-1")
    if not 1 <= len(boundary) <= 256:
        raise BadRequest("The Content-Type does not contain a valid multipart boundary.")
    return boundary


def _names(disposition: str) -> tuple[str, str | None]:
    """Return the names of the part and of its file."""
    kind, parameters = read_parameters(disposition)
    if kind != "form-data" or "name" not in parameters:
        raise BadRequest("A form part has no Content-Disposition: form-data with a name.")
    return read_text(parameters["name"]), read_filename(parameters)


def _refuse_coded(headers: Mapping[str, str]) -> None:
    """Refuse a part with a coding: bytes are stored as they come, and would not be the file's."""
    transfer = headers.get("content-transfer-encoding", "").lower()
    if transfer not in _PLAIN_CODINGS:
        raise UnsupportedMediaType(
            "A form part has a Content-Transfer-Encoding: send its bytes unencoded."
        )
    if headers.get("content-encoding", "").lower() not in {"", "identity"}:
        raise UnsupportedMediaType("A form part has a Content-Encoding: send its bytes unencoded.")
    if "content-range" in headers:
        raise BadRequest("A form part has a Content-Range: partial uploads are not supported.")
    if headers.get("content-type", "").lower().startswith("multipart/"):
        raise UnsupportedMediaType(
            "A form part is itself a multipart form: send each file in a part of its own."
        )
