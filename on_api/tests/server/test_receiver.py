"""Several event loops in one process, as a program has them that embeds on-api, and these tests."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from on_api.server.receiver import Receiver


class Heard:
    """What a receiver passes on."""

    def __init__(self, *, in_body: bool) -> None:
        self.in_body = in_body
        self.pieces: list[bytes] = []

    def is_under_way(self) -> bool:
        """See `Fed`."""
        return self.in_body

    def data_received(self, data: memoryview) -> None:
        """See `Fed`."""
        self.pieces.append(bytes(data))

    def eof_received(self) -> bool:
        """See `Fed`."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """See `Fed`."""

    def pause_writing(self) -> None:
        """See `Fed`."""

    def resume_writing(self) -> None:
        """See `Fed`."""


def test_two_loops_never_receive_each_others_bytes() -> None:
    """Both have been asked for a buffer before either is told what has come, as happens when the
    kernel fills them at the same time on two threads."""
    filled = threading.Barrier(2)

    def receive(text: bytes) -> list[list[bytes]]:
        heard = [Heard(in_body=False), Heard(in_body=True)]
        for each in heard:
            receiver = Receiver(each)
            receiver.get_buffer(-1)[: len(text)] = text
            filled.wait(10)
            receiver.buffer_updated(len(text))
        return [each.pieces for each in heard]

    with ThreadPoolExecutor(2) as threads:
        heard = list(threads.map(receive, [b"bytes=0-0", b"bytes=9-9"]))
    assert heard == [[[b"bytes=0-0"]] * 2, [[b"bytes=9-9"]] * 2]
