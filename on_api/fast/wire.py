"""Writes pre-rendered responses directly to the transport, bypassing uvicorn's encoding of headers:
it looks at every header of every response anew. Keeps what uvicorn has to know: that a request is
answered."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from on_api.core.web.middleware import new_request_number
from on_api.server.wire import common_lines


def with_id(head: bytes) -> bytes:
    """A pre-rendered head with a request id of its own; the line that ends it is still to come."""
    return b"%sx-request-id: %016x\r\n" % (head, new_request_number())


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
