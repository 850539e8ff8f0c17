"""Python's collector of cyclic garbage, which `main.run` has rest during the start."""

from __future__ import annotations

import gc


def begin() -> None:
    """Collect from here on, leaving alone what is there already: a command that works for long
    calls it when everything is built."""
    gc.freeze()
    gc.enable()
