"""Callers and their permissions: scopes, the principal behind a request, and the filter that limits
a query to one user's rows."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TypeVarTuple

from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute

from on_api.core.errors import Forbidden

Row = TypeVarTuple("Row")


class Scope(StrEnum):
    """Scope of a key: a permission that the key has."""

    FILES_READ = "files:read"
    FILES_WRITE = "files:write"
    PINS_READ = "pins:read"
    PINS_WRITE = "pins:write"
    SHARES_WRITE = "shares:write"
    TRAFFIC_READ = "traffic:read"
    IMPORTS_WRITE = "imports:write"
    KEYS_WRITE = "keys:write"
    ADMIN = "admin"


SCOPE_DESCRIPTIONS: dict[str, str] = {
    Scope.FILES_READ: "List and download your files",
    Scope.FILES_WRITE: "Upload, change and delete your files",
    Scope.PINS_READ: "List your pins",
    Scope.PINS_WRITE: "Add, replace and remove your pins",
    Scope.SHARES_WRITE: "Create and revoke share links to your files",
    Scope.TRAFFIC_READ: "Read your traffic reports",
    Scope.IMPORTS_WRITE: "Import content from other services",
    Scope.KEYS_WRITE: "Create, list and revoke your keys",
    Scope.ADMIN: "Manage users, read the audit log and the node's state (administrators only)",
}


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller behind a valid key, detached from the database.

    `limited`: the key has `max_uses`, `max_bytes` or `egress_budget`. `from_login`: it is a
    password login's token.
    """

    user_id: uuid.UUID
    username: str
    is_admin: bool
    key_id: uuid.UUID
    scopes: frozenset[Scope]
    expires_at: datetime | None
    limited: bool
    max_bytes: int | None
    from_login: bool

    @property
    def metered_key(self) -> uuid.UUID | None:
        """Key that traffic is counted for; None for a login's token, which is short-lived."""
        return None if self.from_login else self.key_id

    def allows(self, scope: Scope) -> bool:
        """Return whether the key has the scope; `admin` counts only while its user is an
        administrator."""
        if scope is Scope.ADMIN and not self.is_admin:
            return False
        return scope in self.scopes

    def require(self, *scopes: Scope) -> None:
        """Raise `Forbidden` unless all `scopes` are allowed."""
        missing = [scope.value for scope in scopes if not self.allows(scope)]
        if missing:
            raise Forbidden(f"The key lacks the scope {', '.join(missing)}.")


def owned(
    statement: Select[*Row], owner: InstrumentedAttribute[uuid.UUID], user_id: uuid.UUID
) -> Select[*Row]:
    """Narrow a statement to one user's rows; `owner` is the table's column. Every query for a
    user's own rows goes through here, so that rows of other users do not seem to exist."""
    return statement.where(owner == user_id)
