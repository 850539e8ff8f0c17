"""Python's collector of cyclic garbage, which `main.run` has rest during the start."""

from __future__ import annotations

import gc

ALLOCATIONS = 10_000
"""Objects that come and stay before the youngest ones are looked through. A request makes some
hundreds, of which few are cyclic garbage; with Python's 700 the looks are a twentieth of its time.
"""


def begin() -> None:
    """Collect from here on, leaving alone what is there already: a command that works for long
    calls it when everything is built."""
    gc.freeze()
    gc.set_threshold(ALLOCATIONS)
    gc.enable()
