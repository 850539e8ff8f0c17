"""The server's HTTP protocol with its short ways: one to take a large body without copies, and two
to give an answer that was put together before: at once, or when the application says so.

Knows nothing of what is asked.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, cast

from on_api.core.ipfs.gateway_client.connection import NodeAnswer
from on_api.core.web.extensions import BODY_BLOCKS, NODE_ANSWER, WRITE_WHOLE, offer
from on_api.fast.large_bodies import LARGE_BYTES, LargeBody
from on_api.fast.usual import REMEMBERED_BYTES, UsualRequest, read_usual, remembered_heads
from on_api.fast.wire import write_whole
from on_api.public.gateway.request import Said
from on_api.server.protocol import FramedHttp
from on_api.server.wire import common_lines

if TYPE_CHECKING:
    from starlette.types import Scope

    from on_api.fast.application import FastApplication

logger = logging.getLogger(__name__)

JOINED_BYTES = 64 * 1024
"""A body that is not over this goes out in one piece with its head."""


class FastHttp(FramedHttp):
    """Answers what it can past uvicorn, and takes large bodies past the parser."""

    _body: LargeBody | None = None
    """Receives in our place now."""
    _waits = False
    """The present request waits for an answer of which there is neither scope nor task."""
    _head = b""
    """The head of that request, which the parser hasn't had."""
    _is_last = False
    """That answer is the connection's last one."""

    def is_busy(self) -> bool:
        """Whether a request is not answered yet."""
        return self._waits or super().is_busy()

    def has_begun_to_answer(self) -> bool:
        """Whether the present answer is under way."""
        return not self._waits and super().has_begun_to_answer()

    def unheard(self) -> int:
        """See `Owner`. Whoever receives in our place gives the connection back."""
        if self._body is not None:
            self._body.give_back()
        return super().unheard()

    def data_received(self, data: bytes | memoryview) -> None:
        """Take what has come: a head that was read before, alone, is answered at once."""
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
        """Answer the request with this head at once, if it is usual, or hand the head to the
        parser."""
        if not self._answer_at_once(head):
            super().begin_with(head)

    def begin(self) -> None:
        """Offer the application what this server can do for it."""
        super().begin()
        scope = cast("Scope", self.scope)
        offer(scope, WRITE_WHOLE, partial(write_whole, self.cycle))
        if self._left > LARGE_BYTES:
            offer(scope, BODY_BLOCKS, partial(LargeBody, self, self.cycle, self._unreceived))
            self.flow.pause_reading()  # until somebody wants it

    def body_begins(self, body: LargeBody) -> None:
        """See `TakesBack`."""
        self._body = body

    def body_ends(self, unread: int) -> None:
        """See `TakesBack`."""
        self._body = None
        self.pass_over(unread)
        if not unread:
            self.on_message_complete()
        self.transport.set_protocol(self._receiver)
        self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """An answer is over, maybe before the body that it answers."""
        if self._body is not None:
            self._body.give_back()
        super().on_response_complete()

    def _answer_at_once(self, head: bytes) -> bool:
        """Answer without parser and task, if the request is usual and the application knows the
        answer already, or has the node asked for it."""
        if self.flow.write_paused or self.root_path:
            return False
        request = read_usual(head)
        if request is None:
            return False
        if self._answer_from_memory(request):
            return True
        app: FastApplication = self.app
        self._head, self._has_body = head, False
        self._waits = app.ask_node(request, self)
        return self._waits

    def _answer_from_memory(self, request: UsualRequest) -> bool:
        """Answer if the application knows the answer already, and the client takes it in."""
        if self.flow.write_paused or self.root_path or self.transport.is_closing():
            return False
        app: FastApplication = self.app
        answer = app.answer_at_once(request)
        if answer is None:
            return False
        self._write(*answer, b"\r\n")
        super().on_response_complete()
        return True

    # For an answer that comes later, see `Client`.

    @property
    def is_gone(self) -> bool:
        """Whether the client has gone, or was sent away."""
        return self.transport.is_closing()

    @property
    def is_ready(self) -> bool:
        """Whether the client takes in what it is sent."""
        return not self.flow.write_paused

    def give(self, head: bytes, body: bytes) -> None:
        """Answer the request that waits."""
        self._waits = False
        self._write(head, body, b"connection: close\r\n\r\n" if self._is_last else b"\r\n")
        if self._is_last:
            self.transport.close()
        self.on_response_complete()

    def go_the_usual_way(self, said: Said | None) -> None:
        """Have the application serve the request that waits."""
        self._waits = False
        try:
            super().begin_with(self._head)
        except Exception:
            # Nobody else would end it: it stands outside of the parser and of every task.
            logger.exception("a request failed")
            self.transport.close()
        if self.transport.is_closing():  # or it was refused
            if isinstance(said, NodeAnswer):
                said.close()
            return
        offer(cast("Scope", self.scope), NODE_ANSWER, said)
        if self._is_last:
            super().shutdown()

    def shutdown(self) -> None:
        """The server ends: with the request under way, if there is one."""
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
