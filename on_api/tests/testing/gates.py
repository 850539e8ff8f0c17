"""Work that is held until a test lets it go on, instead of relying on timing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from on_api.core.crypto import kdf


class Gate:
    """Barrier that holds every thread until it is opened."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._lock = threading.Lock()
        self.held = 0
        """Threads that have reached the gate."""

    def open(self) -> None:
        """Let all threads pass from now on."""
        self._open.set()

    def wait(self) -> None:
        """Wait until the gate is open; at most two minutes, so that a failed test ends."""
        with self._lock:
            self.held += 1
        self._open.wait(120)


@contextmanager
def scrypt_held() -> Iterator[Gate]:
    """Hold every call of scrypt in this process until the gate is opened or the block ends."""
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
