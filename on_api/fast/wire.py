"""Writes pre-rendered responses directly to the transport, bypassing uvicorn's encoding, which
looks at every header of every response anew. Sets what uvicorn must know: the request is
answered."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from on_api.core.web.middleware import new_request_number
from on_api.server.wire import common_lines


def with_id(head: bytes) -> bytes:
    """Return a pre-rendered head with a new request id; the line that ends it is still missing."""
    return b"%sx-request-id: %016x\r\n" % (head, new_request_number())


def write_whole(cycle: RequestResponseCycle, head: bytes, body: bytes) -> bool:
    """Write a serialised status line with headers, and the body whose length they tell. Return
    False if the response must take the ordinary way: the client is slow or gone, or an answer has
    begun."""
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
