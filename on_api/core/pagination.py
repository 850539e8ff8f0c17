"""Pages of lists, newest first: v1 pages by time, v2 by an opaque, signed cursor.

Holds positions and the format of cursors; `shared/paging.py` applies them to statements.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from on_api.core.errors import BadRequest

DEFAULT_LIMIT = 50
MAX_LIMIT = 1000
MAX_CURSOR_LENGTH = 512
_MAC_BYTES = 16


@dataclass(frozen=True, slots=True)
class TimePage:
    """Page of a list: at most `limit` rows created before and after these moments (both
    exclusive)."""

    limit: int = DEFAULT_LIMIT
    before: datetime | None = None
    after: datetime | None = None

    @property
    def whole(self) -> bool:
        """True if no time restricts the list."""
        return self.before is None and self.after is None


@dataclass(frozen=True, slots=True)
class Position:
    """Position of a row in a list: the next page begins after it."""

    created_at: datetime
    id: uuid.UUID


@dataclass(frozen=True, slots=True)
class CursorPage:
    """Page of a list: at most `limit` rows after a position."""

    limit: int = DEFAULT_LIMIT
    behind: Position | None = None


class CursorSigner:
    """Writes and reads cursors. A cursor is valid for one list only: the same user, path and
    filters."""

    def __init__(self, subkeys: Callable[[], Sequence[bytes]]) -> None:
        """Create a signer. `subkeys` returns the key to sign with, then those whose signatures are
        still valid."""
        self._subkeys = subkeys

    def write(self, position: Position, scope: str) -> str:
        """Return the cursor of the page after a position."""
        payload = json.dumps([position.created_at.isoformat(), position.id.hex]).encode()
        signed = self._mac(payload, scope, self._subkeys()[0]) + payload
        return base64.urlsafe_b64encode(signed).decode().rstrip("=")

    def read(self, cursor: str, scope: str) -> Position:
        """Return the position of a cursor. Raises `BadRequest` for one that isn't ours, or is
        another list's."""
        try:
            raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        except (binascii.Error, ValueError):
            raise _no_cursor() from None
        mac, payload = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if not any(
            hmac.compare_digest(mac, self._mac(payload, scope, subkey))
            for subkey in self._subkeys()
        ):
            raise _no_cursor()
        created_at, row_id = json.loads(payload)
        return Position(datetime.fromisoformat(created_at), uuid.UUID(row_id))

    @staticmethod
    def _mac(payload: bytes, scope: str, subkey: bytes) -> bytes:
        bound = hashlib.sha256(scope.encode()).digest() + payload
        return hmac.digest(subkey, bound, "sha256")[:_MAC_BYTES]


def _no_cursor() -> BadRequest:
    return BadRequest("cursor: this cursor does not belong to this list; start again without it.")
