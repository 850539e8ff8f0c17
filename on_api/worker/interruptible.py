"""What the worker has begun and may have to end early: it is either told so in time, or done."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field


@dataclass(eq=False, kw_only=True)
class Interruptible:
    """`task` is whose it is, if it has one of its own."""

    task: asyncio.Task[None] | None = None
    ended_by_us: bool = field(default=False, init=False)
    """Not wanted any more, or making way: its cancellation is an answer, no accident."""
    is_over: bool = field(default=False, init=False)
    """All but the writing down is done, and that is not to be interrupted."""

    def interrupt(self) -> None:
        """End it; what it works on goes back to the queue."""
        if not self.is_over and self.task is not None:
            self.ended_by_us = self.is_over = True
            self.task.cancel()
