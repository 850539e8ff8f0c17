"""HTTP protocol of the server with fast lanes: large bodies are received without copies, and
pre-rendered answers are sent at once or when the application has them.

Knows nothing of what a request asks for.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, cast

from on_api.core.ipfs.gateway_client.connection import NodeAnswer
from on_api.core.web.extensions import BODY_BLOCKS, NODE_ANSWER, WRITE_WHOLE, offer
from on_api.fast.eligible import REMEMBERED_BYTES, EligibleRequest, read_eligible, remembered_heads
from on_api.fast.large_bodies import LARGE_BYTES, LargeBody
from on_api.fast.wire import write_whole
from on_api.public.gateway.request import NodeOutcome
from on_api.server.protocol import FramedHttp
from on_api.server.wire import common_lines

if TYPE_CHECKING:
    from starlette.types import Scope

    from on_api.fast.application import FastApplication

logger = logging.getLogger(__name__)

JOINED_BYTES = 64 * 1024
"""Largest body in bytes that is joined with its head into one write."""


class FastHttp(FramedHttp):
    """Protocol that bypasses uvicorn for some answers, and the parser for large bodies."""

    _body: LargeBody | None = None
    """Protocol that currently receives in place of this one."""
    _waits = False
    """True while the current request waits for an answer without a scope and a task."""
    _head = b""
    """Head of that request, which the parser hasn't had."""
    _is_last = False
    """True if that answer is the connection's last one."""

    def is_busy(self) -> bool:
        """Return whether a request is not answered yet."""
        return self._waits or super().is_busy()

    def has_begun_to_answer(self) -> bool:
        """Return whether the current answer has begun."""
        return not self._waits and super().has_begun_to_answer()

    def unheard(self) -> int:
        """Implement `Owner`: first take the connection back from a `LargeBody`."""
        if self._body is not None:
            self._body.give_back()
        return super().unheard()

    def data_received(self, data: bytes | memoryview) -> None:
        """Process what has come. A known head that comes alone is answered from memory if that is
        possible."""
        if len(data) > REMEMBERED_BYTES or self._held or self._gathered or self.is_under_way():
            super().data_received(data)
            return
        head = bytes(data)
        request = remembered_heads.get(head)
        if request is None or self.is_busy() or not self._answer_from_memory(request):
            super().data_received(head)
        else:
            self._requests += 1

    def begin_with(self, head: bytes) -> None:
        """Answer the request at once or ask the node for it, if it is eligible; else give its head
        to the parser."""
        if not self._answer_at_once(head):
            super().begin_with(head)

    def begin(self) -> None:
        """Begin a request, and offer the application this server's extensions in its scope."""
        super().begin()
        scope = cast("Scope", self.scope)
        offer(scope, WRITE_WHOLE, partial(write_whole, self.cycle))
        if self._left > LARGE_BYTES:
            offer(scope, BODY_BLOCKS, partial(LargeBody, self, self.cycle, self._unreceived))
            self.flow.pause_reading()  # until the application reads the body

    def body_begins(self, body: LargeBody) -> None:
        """Implement `TakesBack`."""
        self._body = body

    def body_ends(self, unread: int) -> None:
        """Implement `TakesBack`."""
        self._body = None
        self.pass_over(unread)
        if not unread:
            self.on_message_complete()
        self.transport.set_protocol(self._receiver)
        self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """Take the connection back and go on: an answer may end before its request's body."""
        if self._body is not None:
            self._body.give_back()
        super().on_response_complete()

    def _answer_at_once(self, head: bytes) -> bool:
        """Answer without parser and task: from memory, or later with the node's answer. Return
        False if the request must take the ordinary way."""
        if self.flow.write_paused or self.root_path:
            return False
        request = read_eligible(head)
        if request is None:
            return False
        if self._answer_from_memory(request):
            return True
        app: FastApplication = self.app
        self._head, self._has_body = head, False
        self._waits = app.ask_node(request, self)
        return self._waits

    def _answer_from_memory(self, request: EligibleRequest) -> bool:
        """Answer if memory has the answer and the client takes it; return whether it did."""
        if self.flow.write_paused or self.root_path or self.transport.is_closing():
            return False
        app: FastApplication = self.app
        answer = app.answer_at_once(request)
        if answer is None:
            return False
        self._write(*answer, b"\r\n")
        super().on_response_complete()
        return True

    # For answers that come later: see `Client`.

    @property
    def is_gone(self) -> bool:
        """True if the client has gone, or was disconnected."""
        return self.transport.is_closing()

    @property
    def is_ready(self) -> bool:
        """True if the client takes what it is sent."""
        return not self.flow.write_paused

    def give(self, head: bytes, body: bytes) -> None:
        """Answer the waiting request."""
        self._waits = False
        self._write(head, body, b"connection: close\r\n\r\n" if self._is_last else b"\r\n")
        if self._is_last:
            self.transport.close()
        self.on_response_complete()

    def fall_back(self, outcome: NodeOutcome | None) -> None:
        """Have the application serve the waiting request."""
        self._waits = False
        try:
            super().begin_with(self._head)
        except Exception:
            # No parser and no task stands around this call that would end the connection.
            logger.exception("a request failed")
            self.transport.close()
        if self.transport.is_closing():  # or it was refused
            if isinstance(outcome, NodeAnswer):
                outcome.close()
            return
        offer(cast("Scope", self.scope), NODE_ANSWER, outcome)
        if self._is_last:
            super().shutdown()

    def shutdown(self) -> None:
        """End the connection, after the request under way if there is one: the server ends."""
        if self._waits:
            self._is_last = True
            self._lingering.end_soon()
        else:
            super().shutdown()

    def _write(self, head: bytes, body: bytes, last: bytes) -> None:
        common = common_lines(self.server_state.default_headers)
        if len(body) <= JOINED_BYTES:
            self.transport.write(b"".join((head, common, last, body)))
        else:
            self.transport.writelines((head, common, last, body))

    def _unreceived(self) -> int:
        return self._left
