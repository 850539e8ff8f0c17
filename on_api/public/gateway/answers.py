"""The gateway's answers on their way to the client: the headers that on-api sets, and bodies that
are counted, and complete or visibly cut.

Knows nothing of what may be served.
"""

from __future__ import annotations

import asyncio
import html
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus

from starlette.types import Receive, Scope, Send

from on_api.core.errors import ContentDamaged, NodeTruncated, OnApiError
from on_api.core.ipfs.formats.cid import Cid
from on_api.core.ipfs.formats.endings import CarEnding, TarEnding, ending_of
from on_api.core.ipfs.gateway_client.connection import NodeAnswer
from on_api.core.ipfs.gateway_client.heads import Headers
from on_api.core.services.gateway.hot_answers import (
    AnswerKey,
    HotAnswer,
    HotAnswers,
    is_authentic,
    is_constant,
)
from on_api.core.services.traffic.metering import Ticket
from on_api.core.web.extensions import WRITE_WHOLE, extension
from on_api.core.web.responses import until_disconnect

GATEWAY_SANDBOX = b"sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts"
"""Content security policy: users' pages run, but in an opaque origin of their own, so that they
can't read cookies, storage or APIs of on-api."""

CORS: Headers = [
    (b"access-control-allow-headers", b"Content-Type, Range, User-Agent, X-Requested-With"),
    (b"access-control-allow-methods", b"GET, HEAD, OPTIONS"),
    (b"access-control-allow-origin", b"*"),
    (
        b"access-control-expose-headers",
        b"Content-Length, Content-Range, X-Chunked-Output, X-Ipfs-Path, X-Ipfs-Roots,"
        b" X-Stream-Output",
    ),
]
"""CORS headers, the same as the node's."""

Writer = Callable[[bytes, bytes], bool]
_PHRASES = defaultdict(bytes, {status.value: status.phrase.encode() for status in HTTPStatus})

OURS: Headers = [
    (b"content-security-policy", GATEWAY_SANDBOX),
    (b"x-content-type-options", b"nosniff"),
]
"""Headers of every answer that carries users' bytes."""
_REPLACED = {name for name, _ in OURS} | {b"service-worker-allowed"}
_PRIVATE: Headers = [(b"cache-control", b"private, no-store"), (b"vary", b"Authorization")]


def with_ours(headers: Headers) -> Headers:
    """Return the node's headers with those that on-api sets itself."""
    return [header for header in headers if header[0] not in _REPLACED] + OURS


def kept_private(headers: Sequence[tuple[bytes, bytes]]) -> Headers:
    """Return the headers changed so that only the client itself may keep the answer."""
    names = {name for name, _ in _PRIVATE}
    return [header for header in headers if header[0] not in names] + _PRIVATE


def as_headers(named: Mapping[str, str]) -> Headers:
    """Return headers in ASGI's form: pairs of bytes, names in lower case."""
    return [(name.lower().encode(), value.encode()) for name, value in named.items()]


def head_of(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a serialised status line with headers, each ended by CRLF."""
    lines = [b"%s: %s\r\n" % header for header in headers]
    return b"".join([b"HTTP/1.1 %d %s\r\n" % (status, _PHRASES[status]), *lines])


class Delivery:
    """One answer to one request. Exactly one of the answering methods is called."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, extra_headers: Headers) -> None:
        """`extra_headers`: headers of this answer alone."""
        self._method: str = scope["method"]
        self._receive = receive
        self._send = send
        self._write: Writer | None = extension(scope, WRITE_WHOLE)
        self._extra_headers = extra_headers
        self.status = 0
        """Status sent; 0: the answer has not begun."""
        self.sent = 0
        """Bytes of the body that were sent."""
        self.outcome = "done"

    async def words(
        self, status: int, text: str, headers: Headers, media_type: bytes = b"text/plain"
    ) -> None:
        """Answer with a text of on-api's."""
        body = text.encode()
        all_headers = [*CORS, *headers, (b"content-type", media_type + b"; charset=utf-8")]
        if self._method == "HEAD":
            body = b""
        else:
            all_headers.append((b"content-length", b"%d" % len(body)))
        await self._begin(status, with_ours(all_headers))
        await self._end(body)

    async def refusal(self, error: OnApiError) -> None:
        """Answer an error as plain text, like the node."""
        headers = as_headers(error.headers)
        await self.words(error.status, f"{error.details}\n", [*headers, _NOT_KEPT])

    async def redirect(self, status: int, location: str, headers: Headers) -> None:
        """Redirect the client, with the same page as the node's."""
        phrase = HTTPStatus(status).phrase
        text = f'<a href="{html.escape(location)}">{phrase}</a>.\n\n'
        all_headers = [*headers, (b"location", location.encode())]
        await self.words(status, text, all_headers, b"text/html")

    async def whole(
        self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes, ticket: Ticket
    ) -> None:
        """Answer with a complete body. Raises `EgressBudgetExceeded` before the answer begins."""
        await self._count(ticket, len(body))
        if self._write is not None and body:  # without a body the headers may lack its length
            head = head_of(status, [*headers, *self._extra_headers])
            if self._write(head, body):
                self.status, self.sent = status, len(body)
                return
        await self._begin(status, headers)
        await self._end(body)

    def watch(self) -> asyncio.Future[None]:
        """Return a future that is done when the client has gone; the caller cancels it."""
        return asyncio.ensure_future(until_disconnect(self._receive))

    async def hand_over(self, headers: Headers) -> None:
        """Have the proxy answer in our place."""
        self.outcome = "handed over"
        await self._begin(200, [*headers, (b"content-length", b"0")])
        await self._end(b"")

    async def relay(
        self, answer: NodeAnswer, headers: Headers, ticket: Ticket, gathering: Gathering | None
    ) -> None:
        """Stream the node's answer.

        Raises a `NodeError` if that is incomplete, and `EgressBudgetExceeded` if a budget is used
        up. If the answer has begun by then, the server cuts the connection because it has no end.
        """
        is_whole_get = self._method == "GET" and answer.status == 200
        ending = ending_of(dict(answer.headers).get(b"content-type", b"")) if is_whole_get else None
        body = answer.whole
        if body is not None and answer.length is not None:
            _require_whole(ending, body)
            if gathering is not None:
                gathering.take(body)
                gathering.keep()
            await self.whole(answer.status, headers, body, ticket)
            return
        gone = self.watch()
        gone.add_done_callback(lambda _: answer.close())
        try:
            await self._stream(answer, headers, ticket, gathering, ending, gone)
        except NodeTruncated:
            if not gone.done():
                raise
            self.outcome = "client gone"
        finally:
            gone.cancel()

    async def _stream(
        self,
        answer: NodeAnswer,
        headers: Headers,
        ticket: Ticket,
        gathering: Gathering | None,
        ending: CarEnding | TarEnding | None,
        gone: asyncio.Future[None],
    ) -> None:
        # One chunk behind: the last one is only sent when the whole is known to be complete.
        before = b""
        async for chunk in answer.chunks():
            if ending is not None:
                ending.feed(chunk)
            if gathering is not None:
                gathering.take(chunk)
            if before:
                await self._pass_on(answer, headers, before, ticket)
                if gone.done():
                    self.outcome = "client gone"
                    return
            before = chunk
        if ending is not None and not ending.is_whole:
            raise NodeTruncated
        if gathering is not None:
            gathering.keep()
        await self._pass_on(answer, headers, before, ticket)
        await self._end(b"")

    async def _pass_on(
        self, answer: NodeAnswer, headers: Headers, chunk: bytes, ticket: Ticket
    ) -> None:
        await self._count(ticket, len(chunk))
        if not self.status:
            await self._begin(answer.status, headers)
        self.sent += len(chunk)
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def _count(self, ticket: Ticket, size: int) -> None:
        if size and not ticket.take(size):
            await ticket.more(size)

    async def _begin(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.status = status
        all_headers = [*headers, *self._extra_headers]
        await self._send({"type": "http.response.start", "status": status, "headers": all_headers})

    async def _end(self, body: bytes) -> None:
        self.sent += len(body)
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


class Gathering:
    """An answer that is cached once all of it has come."""

    def __init__(
        self, answers: HotAnswers, key: AnswerKey, root: Cid, headers: Headers, length: int
    ) -> None:
        self._answers = answers
        self._key = key
        self._root = root
        self._headers = headers
        self._length = length
        self._body = bytearray()

    @classmethod
    def of(
        cls, answers: HotAnswers, key: AnswerKey, root: Cid, method: str, answer: NodeAnswer
    ) -> Gathering | None:
        """Return a gathering for an answer to a request without conditions, to be ended by `end`;
        None if the answer is not worth caching."""
        if answer.length is None or not is_constant(method, answer.status, dict(answer.headers)):
            return None
        headers = with_ours(answer.headers)
        if not answers.reserve(key, headers, answer.length):
            return None
        return cls(answers, key, root, headers, answer.length)

    def take(self, chunk: bytes) -> None:
        """Add the next bytes."""
        self._body += chunk

    def keep(self) -> None:
        """Cache the answer, which is complete. Raises `ContentDamaged` if it has another hash."""
        body = bytes(self._body)
        etag = dict(self._headers)[b"etag"]
        if not is_authentic(self._root, etag, body):
            raise ContentDamaged("The IPFS node returned bytes that do not match the CID.")
        self._answers.keep(self._key, HotAnswer(str(self._root), self._headers, body, etag))

    def end(self) -> None:
        """Release the memory reserved, whatever has become of the answer."""
        self._answers.settle(self._key, self._headers, self._length)


_NOT_KEPT = (b"cache-control", b"no-store")


def _require_whole(ending: CarEnding | TarEnding | None, body: bytes) -> None:
    if ending is not None:
        ending.feed(body)
        if not ending.is_whole:
            raise NodeTruncated
