"""Numbers of bytes as people write them: `10GiB`, `500MB`, `none`."""

from __future__ import annotations

import re
from decimal import Decimal

from on_api.core.errors import BadRequest

MOST_BYTES = 2**62
_FACTORS = {"": 1, "B": 1}
_FACTORS |= {f"{letter}B": 1000**power for power, letter in enumerate("kMGTP", 1)}
_FACTORS |= {f"{letter}iB": 1024**power for power, letter in enumerate("KMGTP", 1)}
# Bounded: a number of twenty digits is too much already.
_SIZE = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?) ?([kKMGTP]?i?B|)")


def limit_of(text: str) -> int | None:
    """Return the bytes that a limit means, exactly; None for `none`, which is no limit.

    Units are B, kB to PB (powers of 1000) and KiB to PiB (powers of 1024). Raises `BadRequest` for
    anything else, for a part of a byte, and for more than 2^62 bytes.
    """
    if text == "none":
        return None
    match = _SIZE.fullmatch(text)
    factor = match and _FACTORS.get("kB" if match[2] == "KB" else match[2])
    if match is None or factor is None:
        raise BadRequest(
            f"{text!r} is no size: write bytes, or a number with kB, MB, GB, TB, PB, KiB, MiB, "
            "GiB, TiB or PiB (10GiB, 1.5TB), or none."
        )
    size = Decimal(match[1]) * factor
    if size != int(size):
        raise BadRequest(f"{text!r} is no whole number of bytes.")
    if size > MOST_BYTES:
        raise BadRequest(f"{text!r} is more than 2^62 bytes; `none` is no limit.")
    return int(size)
