"""Work of the worker that may have to end early: it is interrupted in time, or completed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field


@dataclass(eq=False, kw_only=True)
class Interruptible:
    """Work that can be interrupted. `task`: the task that runs it, if it has one of its own."""

    task: asyncio.Task[None] | None = None
    ended_by_us: bool = field(default=False, init=False)
    """True if the work was interrupted, so that its cancellation is expected."""
    is_over: bool = field(default=False, init=False)
    """True if only the recording is left, which must not be interrupted."""

    def interrupt(self) -> None:
        """Cancel the work; its claims go back to the queue."""
        if not self.is_over and self.task is not None:
            self.ended_by_us = self.is_over = True
            self.task.cancel()
