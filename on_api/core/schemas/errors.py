"""Schemas of errors: v1's `Failure` (that of the Pinning Service API) and v2's problem details (RFC
9457)."""

from __future__ import annotations

from pydantic import BaseModel, Field


class FailureError(BaseModel):
    """The error that caused the request to fail."""

    reason: str = Field(description="A stable error code for programs.", examples=["NOT_FOUND"])
    details: str = Field(description="A message for people.")


class Failure(BaseModel):
    """The response body of every error in v1."""

    error: FailureError = Field(description="The error that caused the request to fail.")


class Problem(BaseModel):
    """The response body of every error in v2, sent as `application/problem+json`."""

    type: str = Field(
        description="Always about:blank; see `code` for the kind of error.",
        examples=["about:blank"],
    )
    title: str = Field(description="The name of the HTTP status.", examples=["Not Found"])
    status: int = Field(description="The HTTP status code.", examples=[404])
    detail: str = Field(description="A message for people.")
    code: str = Field(
        description="The same stable error code as `reason` in v1.", examples=["NOT_FOUND"]
    )
    instance: str = Field(
        description="The ID of the request, which also appears in the server's log."
    )
