"""Responses as they go over the wire, where the server writes them itself."""

from __future__ import annotations

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE


class _Lines:
    """Headers as they go over the wire: the same list for a second, and thousands of answers."""

    headers: list[tuple[bytes, bytes]] | None = None
    text = b""


def common_lines(headers: list[tuple[bytes, bytes]]) -> bytes:
    """uvicorn's own headers of every answer, as they go over the wire."""
    if _Lines.headers is not headers:
        text = b"".join(b"%s: %s\r\n" % header for header in headers)
        _Lines.headers, _Lines.text = headers, text
    return _Lines.text


def refusal(response: Response, common: list[tuple[bytes, bytes]], is_head: bool) -> bytes:
    """An answer as it goes over the wire, which is its connection's last; without its body if
    `is_head`."""
    lines = b"".join(b"%s: %s\r\n" % header for header in response.raw_headers)
    body = b"" if is_head else bytes(response.body)
    head = STATUS_LINE[response.status_code] + common_lines(common) + lines
    return head + b"connection: close\r\n\r\n" + body
