"""Lingering close, for a connection whose client is still sending: nothing more is written, and
what arrives is read and dropped for a while.

The kernel resets a socket that is closed with unread bytes, or that receives more, and the client's
kernel then discards an answer that had already arrived: a client that sends its whole body before
it reads would never learn why it was refused.
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
"""Upper bound for lingering, from the answer on."""
IDLE_SECONDS = 5.0
"""Upper bound for a silence; a client that has nothing more to send closes by itself."""
ENDING_SECONDS = 2.0
"""Upper bound for lingering when the server ends."""
LINGER_BYTES = 256 * 1024 * 1024
"""Bytes read and dropped at most of a body whose length was announced."""
UNKNOWN_BYTES = 32 * 1024 * 1024
"""Bytes read and dropped at most if the rest has an unknown length, or is not a body."""
_AT_ONCE = struct.pack("ii", 1, 0)
"""Value for the socket option SO_LINGER (socket(7)): close with a reset, without waiting."""
HELD_BYTES = 2048
"""Largest piece that is held until the next write, so that an answer's head goes with its body."""
MOST_LINGERING_CONNECTIONS = 1000
"""Lingering connections of one process; beyond that, those that have lingered longest are
closed."""


class Owner(Protocol):
    """The connection's protocol, which learns of its end."""

    loop: asyncio.AbstractEventLoop

    def unheard(self) -> int:
        """Return how many bytes may still be read and dropped: 0 if no more were announced or have
        arrived. The protocol receives nothing from now on."""

    def is_cut(self) -> bool:
        """Return whether the last answer is incomplete and only a reset can tell the client."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Implement `asyncio.BaseProtocol`."""


class LingeringTransport(asyncio.Transport):
    """A connection's transport, whose `close` lingers if the client may still be sending. Data
    written after `close` is dropped.

    A short piece is held and sent with the next one written in the same step of the event loop: an
    answer's head with its body, instead of two system calls and two wake-ups of the client.
    """

    def __init__(self, transport: asyncio.Transport, owner: Owner) -> None:
        super().__init__()
        self._transport = transport
        self._owner = owner
        self._is_closed = False
        self._dropping: _Dropping | None = None
        self._ends_soon = False
        self._held = b""
        """Bytes written, but not passed to the transport yet."""
        self.written = 0
        """Bytes written since the connection began."""
        self.get_extra_info = transport.get_extra_info  # type: ignore[method-assign]
        self.get_write_buffer_size = transport.get_write_buffer_size  # type: ignore[method-assign]
        self.pause_reading = transport.pause_reading  # type: ignore[method-assign]
        self.resume_reading = transport.resume_reading  # type: ignore[method-assign]
        self.set_protocol = transport.set_protocol  # type: ignore[method-assign]

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Implement `asyncio.WriteTransport`."""
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
        """Implement `asyncio.WriteTransport`."""
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
        """Return how many written bytes the client's side hasn't received yet. Bytes in the kernel
        alone count only if an answer `is_busy` being written: otherwise nothing waits for them."""
        left = len(self._held) + self.get_write_buffer_size()
        return left + self._in_kernel() if left or is_busy else 0

    def _in_kernel(self) -> int:
        """Return how many bytes the kernel hasn't sent, or has no acknowledgement for; 0 where it
        doesn't tell. Then the bytes before it must do: it takes a slow client's in large pieces
        only."""
        connected = self.get_extra_info("socket")
        try:
            unsent = fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, bytes(4))
        except (AttributeError, OSError, ValueError):
            return 0
        return int(struct.unpack("i", unsent)[0])

    def is_closing(self) -> bool:
        """Return whether the connection is closed for reading and writing."""
        return self._is_closed or self._transport.is_closing()

    def close(self) -> None:
        """Send what was written, then end the connection; linger if the client is still sending."""
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
        """Reset the connection at once and drop all that was written, even what the kernel holds:
        it would keep that for a client that may never take it."""
        self._is_closed, self._held = True, b""
        with suppress(AttributeError, OSError, ValueError):
            connected = socket.socket(fileno=self.get_extra_info("socket").fileno())
            try:
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            finally:
                connected.detach()
        self._transport.abort()

    def end_soon(self) -> None:
        """Linger only shortly from now on, because the server ends."""
        self._ends_soon = True
        if self._dropping is not None:
            self._dropping.shorten(ENDING_SECONDS)


class _Dropping(asyncio.BufferedProtocol):
    """Receiver of unwanted bytes, into one buffer that all connections share."""

    _all: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, dict[_Dropping, None]]] = (
        WeakKeyDictionary()
    )
    """Lingering connections by event loop, those that linger longest first."""
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
        """Drop what comes for at most `seconds`."""
        present = self._all.setdefault(self._loop, {})
        present[self] = None
        if len(present) > MOST_LINGERING_CONNECTIONS:
            next(iter(present)).end()
        self._until = self._loop.time() + seconds
        self._transport.set_protocol(self)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._transport.resume_reading()
        self._look()

    def shorten(self, seconds: float) -> None:
        """Go on for at most `seconds` from now."""
        self._until = min(self._until, self._loop.time() + seconds)
        self._has_come = True
        self._look()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Implement `asyncio.BufferedProtocol`."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Implement `asyncio.BufferedProtocol`."""
        self._has_come = True
        self._most -= nbytes
        if self._most <= 0:
            self.end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Implement `asyncio.BaseProtocol`."""
        self._forget()
        self._owner.connection_lost(exc)

    def _look(self) -> None:
        """End if the time is over or nothing has come since the last look; else look again
        later."""
        if self._timer is not None:
            self._timer.cancel()
        left = self._until - self._loop.time()
        if left <= 0 or not self._has_come:
            self.end()
        else:
            self._has_come = False
            self._timer = self._loop.call_later(min(IDLE_SECONDS, left), self._look)

    def end(self) -> None:
        """Stop lingering, and close the connection."""
        self._forget()
        self._transport.close()

    def _forget(self) -> None:
        self._all.get(self._loop, {}).pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
