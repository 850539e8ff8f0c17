"""Schemas of encryption identities."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Self

from pydantic import Field, SecretStr

from on_api.core.crypto.age import X25519Identity
from on_api.core.models import Identity as IdentityRow
from on_api.core.schemas.common import Answer, Moment, Request

_RECIPIENT = "The public key that others encrypt to, with `age -r`. It may be published."
_SECRET = (
    "The secret key that decrypts the files, with `age -d -i`. Anyone who has it can read them."  # noqa: S105
)
_AGE1 = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"


class Identity(Answer):
    """One of your encryption identities, without its secret key."""

    id: uuid.UUID = Field(description="The ID of the identity. It never changes.")
    recipient: str = Field(description=_RECIPIENT, examples=[_AGE1])
    active: bool = Field(description="Whether new private files are encrypted to this identity.")
    created_at: Moment = Field(description="When the identity was created or imported.")


class IdentityItems(Answer):
    """All your identities."""

    items: list[Identity] = Field(description="The identities, newest first.")


class IdentityImport(Request):
    """An identity that was created elsewhere."""

    identity: SecretStr = Field(
        max_length=200,
        description="The secret key, `AGE-SECRET-KEY-1…`, in the format of `age-keygen`.",
    )
    active: bool = Field(True, description="Whether to encrypt new private files to this identity.")


class IdentityExport(Request):
    """Your password, which confirms that you may read the secret keys."""

    password: str = Field(max_length=256, description="Your password.")


class ExportedIdentity(Identity):
    """An identity with its secret key."""

    identity: str = Field(description=_SECRET, examples=["AGE-SECRET-KEY-1…"])


class ExportedIdentities(Answer):
    """All your identities with their secret keys. To use them, put all `identity` lines into one
    file and pass it to `age -d -i`."""

    identity: str = Field(description=_SECRET, examples=["AGE-SECRET-KEY-1…"])
    recipient: str = Field(description=_RECIPIENT, examples=[_AGE1])
    identities: list[ExportedIdentity] = Field(
        description="The identities, the active one first; older files may require an older"
        " identity."
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
