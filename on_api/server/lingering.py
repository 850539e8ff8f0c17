"""The end of a connection whose client is still sending: nothing more is said, and what comes is
read and dropped for a while.

A socket that is closed with bytes unread, or to which more come, is reset by the kernel, and the
client's kernel then throws away the answer that was there already: whoever sends a whole body
before they read would never learn why it was refused.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import Iterable
from contextlib import suppress
from typing import ClassVar, Protocol
from weakref import WeakKeyDictionary

LINGER_SECONDS = 30.0
"""At most, from the answer on."""
IDLE_SECONDS = 5.0
"""At most, without anything coming; a client that has nothing more to say closes by itself."""
ENDING_SECONDS = 2.0
"""At most, when the server ends."""
LINGER_BYTES = 256 * 1024 * 1024
"""Of a body whose length was told, read and dropped at most."""
UNKNOWN_BYTES = 32 * 1024 * 1024
"""The same where nobody knows how much is to come, or what it is."""
_AT_ONCE = struct.pack("ii", 1, 0)
"""The kernel's word for it (socket(7), SO_LINGER)."""
HELD_BYTES = 2048
"""The largest piece that waits for what is written next: the head of an answer."""
MOST_LINGERING = 1000
"""Connections of one process; with more, those that have lingered longest are closed."""


class Owner(Protocol):
    """The connection's protocol, which is told of its end."""

    loop: asyncio.AbstractEventLoop

    def unheard(self) -> int:
        """How many bytes may still be read and dropped: 0 if nothing more was announced or is there
        already. Nothing that comes is given to anybody from now on."""

    def is_cut(self) -> bool:
        """Whether the last answer has ended too soon, and nothing but the way the connection ends
        can tell that."""

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.BaseProtocol`."""


class LingeringTransport(asyncio.Transport):
    """A connection's transport, whose `close` lingers if the client may still be sending. What is
    written after that is dropped.

    A short piece is sent with what is written in the same step of the event loop: an answer's head
    with its body, which would else be two calls of the kernel and two wake-ups of the client.
    """

    def __init__(self, transport: asyncio.Transport, owner: Owner) -> None:
        super().__init__()
        self._transport = transport
        self._owner = owner
        self._is_closed = False
        self._dropping: _Dropping | None = None
        self._ends_soon = False
        self._held = b""
        """Written, and not handed on yet."""
        self.written = 0
        """Bytes since the connection began."""
        self.get_extra_info = transport.get_extra_info  # type: ignore[method-assign]
        self.get_write_buffer_size = transport.get_write_buffer_size  # type: ignore[method-assign]
        self.pause_reading = transport.pause_reading  # type: ignore[method-assign]
        self.resume_reading = transport.resume_reading  # type: ignore[method-assign]
        self.set_protocol = transport.set_protocol  # type: ignore[method-assign]

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See `asyncio.WriteTransport`."""
        if self._is_closed:
            return
        self.written += len(data)
        if self._held:
            held, self._held = self._held, b""
            self._transport.writelines((held, data))
        elif len(data) <= HELD_BYTES and isinstance(data, bytes):
            self._held = data
            self._owner.loop.call_soon(self._send_held)
        else:
            self._transport.write(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """See `asyncio.WriteTransport`."""
        if not self._is_closed:
            self._send_held()
            pieces = list(list_of_data)
            self.written += sum(map(len, pieces))
            self._transport.writelines(pieces)

    def _send_held(self) -> None:
        held, self._held = self._held, b""
        if held:
            self._transport.write(held)

    def undelivered(self, *, is_busy: bool) -> int:
        """How many of them the client's side hasn't taken yet. Unless an answer `is_busy` being
        written, those that the kernel has don't count: nothing else waits for them."""
        left = len(self._held) + self.get_write_buffer_size()
        return left + self._in_kernel() if left or is_busy else 0

    def _in_kernel(self) -> int:
        """Bytes that the kernel hasn't sent, or whose receipt it wasn't told. Where it doesn't say
        that, those before them have to do: a slow client's are taken in large pieces only."""
        connected = self.get_extra_info("socket")
        try:
            told = fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, bytes(4))
        except (AttributeError, OSError, ValueError):
            return 0
        return int(struct.unpack("i", told)[0])

    def is_closing(self) -> bool:
        """Whether nobody is heard or told anything any more."""
        return self._is_closed or self._transport.is_closing()

    def close(self) -> None:
        """Send what was written, and end the connection; later, if the client is still sending."""
        if self._is_closed:
            return
        if self._owner.is_cut():
            self.abort()
            return
        unheard = self._owner.unheard()
        self._send_held()
        self._is_closed = True
        if not unheard or self._transport.is_closing():
            self._transport.close()
        else:
            self._dropping = _Dropping(self._transport, self._owner, unheard)
            self._dropping.begin(ENDING_SECONDS if self._ends_soon else LINGER_SECONDS)

    def abort(self) -> None:
        """End the connection at once, whatever was written: also what the kernel has of it, which
        it would else keep for a client that may never take it."""
        self._is_closed, self._held = True, b""
        with suppress(AttributeError, OSError, ValueError):
            connected = socket.socket(fileno=self.get_extra_info("socket").fileno())
            try:
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            finally:
                connected.detach()
        self._transport.abort()

    def end_soon(self) -> None:
        """The server ends: linger shortly, from now on and if it is lingering."""
        self._ends_soon = True
        if self._dropping is not None:
            self._dropping.shorten(ENDING_SECONDS)


class _Dropping(asyncio.BufferedProtocol):
    """Receives what nobody wants, into one buffer that all share."""

    _all: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, dict[_Dropping, None]]] = (
        WeakKeyDictionary()
    )
    """By the loop that they are on, the longest first."""
    _buffer = memoryview(bytearray(256 * 1024))

    def __init__(self, transport: asyncio.Transport, owner: Owner, most: int) -> None:
        self._transport = transport
        self._loop = owner.loop
        self._owner = owner
        self._most = most
        self._has_come = True
        self._until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, seconds: float) -> None:
        """Go on for so long at most."""
        present = self._all.setdefault(self._loop, {})
        present[self] = None
        if len(present) > MOST_LINGERING:
            next(iter(present)).end()
        self._until = self._loop.time() + seconds
        self._transport.set_protocol(self)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._transport.resume_reading()
        self._look()

    def shorten(self, seconds: float) -> None:
        """Go on for so long at most, from now on."""
        self._until = min(self._until, self._loop.time() + seconds)
        self._has_come = True
        self._look()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """They are there."""
        self._has_come = True
        self._most -= nbytes
        if self._most <= 0:
            self.end()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.BaseProtocol`."""
        self._forget()
        self._owner.connection_lost(exc)

    def _look(self) -> None:
        """Whether it is time to end; look again later if it isn't."""
        if self._timer is not None:
            self._timer.cancel()
        left = self._until - self._loop.time()
        if left <= 0 or not self._has_come:
            self.end()
        else:
            self._has_come = False
            self._timer = self._loop.call_later(min(IDLE_SECONDS, left), self._look)

    def end(self) -> None:
        """Linger no more."""
        self._forget()
        self._transport.close()

    def _forget(self) -> None:
        self._all.get(self._loop, {}).pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
