"""Serialised responses, for answers that the server writes itself."""

from __future__ import annotations

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE


class _Lines:
    """Cache of one serialised list of headers: the list is the same object for a second, and so for
    thousands of answers."""

    headers: list[tuple[bytes, bytes]] | None = None
    text = b""


def common_lines(headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return the headers that uvicorn adds to every answer, serialised."""
    if _Lines.headers is not headers:
        text = b"".join(b"%s: %s\r\n" % header for header in headers)
        _Lines.headers, _Lines.text = headers, text
    return _Lines.text


def refusal(response: Response, common: list[tuple[bytes, bytes]], is_head: bool) -> bytes:
    """Return a serialised response that is its connection's last one; without a body if
    `is_head`."""
    lines = b"".join(b"%s: %s\r\n" % header for header in response.raw_headers)
    body = b"" if is_head else bytes(response.body)
    head = STATUS_LINE[response.status_code] + common_lines(common) + lines
    return head + b"connection: close\r\n\r\n" + body
