"""What is written on a connection, and in how many pieces."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from on_api.server.lingering import HELD_BYTES, LingeringTransport

HEAD, BODY = b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 100_000


class Wire(asyncio.Transport):
    """Remembers what it is given, a list for each call."""

    def __init__(self) -> None:
        super().__init__({"socket": None})
        self.calls: list[list[bytes]] = []

    def write(self, data: Any) -> None:
        """One piece."""
        self.calls.append([bytes(data)])

    def writelines(self, list_of_data: Any) -> None:
        """Several pieces at once."""
        self.calls.append([bytes(data) for data in list_of_data])

    def get_write_buffer_size(self) -> int:
        """Nothing waits here."""
        return 0

    def pause_reading(self) -> None:
        """As asyncio says."""

    def resume_reading(self) -> None:
        """As asyncio says."""

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """As asyncio says."""

    def is_closing(self) -> bool:
        """It isn't."""
        return False

    def close(self) -> None:
        """As asyncio says."""
        self.calls.append([])

    def abort(self) -> None:
        """As asyncio says."""


class Owner:
    """A protocol whose client has nothing more to say."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    def unheard(self) -> int:
        """Nothing."""
        return 0

    def is_cut(self) -> bool:
        """It isn't."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio says."""


@pytest.mark.anyio
async def test_a_head_is_sent_with_its_body() -> None:
    """In one call of the kernel."""
    transport = LingeringTransport(wire := Wire(), Owner())
    transport.write(HEAD)
    transport.write(BODY)
    await asyncio.sleep(0)
    assert wire.calls == [[HEAD, BODY]]
    assert transport.written == len(HEAD + BODY)


@pytest.mark.anyio
async def test_a_head_without_a_body_is_sent_all_the_same() -> None:
    """In the next step of the event loop; until then it counts as undelivered."""
    transport = LingeringTransport(wire := Wire(), Owner())
    transport.write(HEAD)
    assert transport.undelivered(is_busy=True) == len(HEAD)
    await asyncio.sleep(0)
    assert wire.calls == [[HEAD]]
    assert transport.undelivered(is_busy=True) == 0


@pytest.mark.anyio
async def test_what_is_held_comes_before_what_follows() -> None:
    """However that is written; and before the end."""
    transport = LingeringTransport(wire := Wire(), Owner())
    transport.write(HEAD)
    transport.writelines([HEAD, BODY])
    transport.write(b"y" * (HELD_BYTES + 1))
    transport.write(HEAD)
    transport.close()
    transport.write(HEAD)
    await asyncio.sleep(0)
    assert wire.calls == [[HEAD], [HEAD, BODY], [b"y" * (HELD_BYTES + 1)], [HEAD], []]
