"""Schemas of encryption identities."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Self

from pydantic import Field, SecretStr

from on_api.core.crypto.age import X25519Identity
from on_api.core.models import Identity as IdentityRow
from on_api.core.schemas.common import Answer, Moment, Request

_RECIPIENT = "What others encrypt to, for `age -r`: it may be known to everyone."
_SECRET = "What opens the files, for `age -d -i`: whoever has it can read them."  # noqa: S105
_AGE1 = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"


class Identity(Answer):
    """An identity of yours, without its secret."""

    id: uuid.UUID = Field(description="Never changes.")
    recipient: str = Field(description=_RECIPIENT, examples=[_AGE1])
    active: bool = Field(description="Whether new private files are encrypted to it.")
    created_at: Moment = Field(description="When it was made or imported.")


class IdentityItems(Answer):
    """All identities of yours."""

    items: list[Identity] = Field(description="Each, newest first.")


class IdentityImport(Request):
    """An identity from elsewhere."""

    identity: SecretStr = Field(
        max_length=200, description="`AGE-SECRET-KEY-1…`, as `age-keygen` writes it."
    )
    active: bool = Field(True, description="Encrypt new private files to it.")


class IdentityExport(Request):
    """Proof, once more, of who asks for the secrets."""

    password: str = Field(max_length=256, description="Your password.")


class ExportedIdentity(Identity):
    """An identity with its secret."""

    identity: str = Field(description=_SECRET, examples=["AGE-SECRET-KEY-1…"])


class ExportedIdentities(Answer):
    """All identities with their secrets. Put all `identity` lines into one file for `age -d -i`."""

    identity: str = Field(description=_SECRET, examples=["AGE-SECRET-KEY-1…"])
    recipient: str = Field(description=_RECIPIENT, examples=[_AGE1])
    identities: list[ExportedIdentity] = Field(
        description="All of them, the active one first: older files may need an older one."
    )

    @classmethod
    def of(cls, found: Sequence[tuple[IdentityRow, X25519Identity]]) -> Self:
        """Return identities, the active one first."""
        identities = [
            ExportedIdentity(
                id=row.id,
                recipient=row.recipient,
                active=row.active,
                created_at=row.created_at,
                identity=secret.export(),
            )
            for row, secret in found
        ]
        active = identities[0]
        return cls(identity=active.identity, recipient=active.recipient, identities=identities)
