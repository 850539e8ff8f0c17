"""Work that is held where it is until a test lets it go on: in place of timing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from on_api.core.crypto import kdf


class Gate:
    """Holds every thread that passes it until it is opened."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._lock = threading.Lock()
        self.held = 0
        """Threads that have come to it."""

    def open(self) -> None:
        """Let everybody pass from now on."""
        self._open.set()

    def wait(self) -> None:
        """Wait until it is open; two minutes at most, so that a failed test ends."""
        with self._lock:
            self.held += 1
        self._open.wait(120)


@contextmanager
def scrypt_held() -> Iterator[Gate]:
    """Every call of scrypt in this process is held, and goes on when the block ends."""
    gate = Gate()
    real: Callable[..., bytes] = kdf.scrypt  # type: ignore[attr-defined]  # not its own

    def held(*args: object, **kwargs: object) -> bytes:
        gate.wait()
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kdf, "scrypt", held)
        try:
            yield gate
        finally:
            gate.open()
