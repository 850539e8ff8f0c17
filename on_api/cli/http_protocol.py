"""The server's HTTP protocol, with a bound on what comes before (and after) a request's body.

uvicorn and its parser gather request line, headers and trailers of any size in memory, before the
application is asked. Knows nothing of what is asked.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
"""Of a request line with its headers; of trailers."""

_REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
    b"The request's headers are too large."
)


class HeadTooLarge(Exception):
    """Ends the parsing of a request."""


class BoundedHttp(HttpToolsProtocol):
    """Answers 431 to a request whose head is over `MAX_HEAD_BYTES`."""

    _gathered = 0
    """Bytes received since the parser last finished a head, a piece of a body or a message."""
    _moved = False
    _too_large = False

    def data_received(self, data: bytes) -> None:
        """Feed the parser, unless all that it does is gather."""
        self._moved = False
        super().data_received(data)
        self._gathered = 0 if self._moved else self._gathered + len(data)
        if self._gathered > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse()

    def on_headers_complete(self) -> None:
        """A head is whole; one that came in a single piece was not counted yet."""
        self._moved = True
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > MAX_HEAD_BYTES:
            self._too_large = True
            raise HeadTooLarge
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of a body has come."""
        self._moved = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is whole."""
        self._moved = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is no HTTP, and to what ends the parsing."""
        if self._too_large:
            self._refuse()
        else:
            super().send_400_response(msg)

    def _refuse(self) -> None:
        self.logger.warning("refused a request whose headers are too large")
        self.transport.write(_REFUSAL)
        self.transport.close()
