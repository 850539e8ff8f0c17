"""Python's collector of cyclic garbage, which `cli/main.py` and `cli/member.py` disable during the
start."""

from __future__ import annotations

import gc

ALLOCATIONS = 10_000
"""New objects that trigger a collection of the youngest generation. A request makes some hundreds,
few of them cyclic garbage; with Python's default of 700 collections take a twentieth of its time.
"""


def begin() -> None:
    """Enable collection, and exempt all objects that exist now. Long-running commands call it when
    everything is built."""
    gc.freeze()
    gc.set_threshold(ALLOCATIONS)
    gc.enable()
