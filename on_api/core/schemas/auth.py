"""Schemas of login and registration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from on_api.core.models.user import USERNAME_PATTERN
from on_api.core.schemas.common import Answer, Request

Username = Annotated[
    str,
    StringConstraints(pattern=USERNAME_PATTERN),
    Field(description="1 to 64 letters, digits or ._@+-; not case-sensitive."),
]
Password = Annotated[
    str,
    Field(
        min_length=8, max_length=256, description="8 to 256 characters.", examples=["correct horse"]
    ),
]


Bearer = Literal["bearer"]
BEARER: Bearer = "bearer"


class Token(Answer):
    """A short-lived access token, issued in exchange for a password."""

    access_token: str = Field(
        description="The access token. Send it as `Authorization: Bearer <access_token>`."
    )
    token_type: Bearer = Field(description="The type of the token: always `bearer`.")
    expires_in: int = Field(description="Seconds until the token expires.", examples=[3600])


class Registration(Request):
    """Registration of an account by its future user."""

    username: Username
    password: Password
