"""Answers whose head and body were put together before, written past uvicorn's own way: it looks at
every header of every answer anew. Keeps what it has to know: that a request is answered."""

from __future__ import annotations

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle


def write_whole(cycle: RequestResponseCycle, head: bytes, body: bytes) -> bool:
    """Answer with a status line and headers as they go over the wire, and with the body whose
    length they tell. False when it has to go the usual way: the client is slow, or gone."""
    if cycle.disconnected or cycle.response_started or cycle.flow.write_paused:
        return False
    cycle.response_started = cycle.response_complete = True
    cycle.message_event.set()
    last = b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n"
    cycle.transport.write(b"".join([head, common_lines(cycle.default_headers), last, body]))
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()
    return True


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
