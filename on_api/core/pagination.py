"""Pages of lists. v1's: newest first, bounded by `limit`, walked by `before`/`after` times."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

DEFAULT_LIMIT = 50
MAX_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class TimePage:
    """Which part of a list: at most `limit` rows made before and after these moments (both
    exclusive)."""

    limit: int = DEFAULT_LIMIT
    before: datetime | None = None
    after: datetime | None = None
