"""Schemas of errors: v1's `Failure` (that of the Pinning Service API) and v2's problem details (RFC
9457)."""

from __future__ import annotations

from pydantic import BaseModel, Field


class FailureError(BaseModel):
    """Error that a request was answered with."""

    reason: str = Field(description="A stable word to match on.", examples=["NOT_FOUND"])
    details: str = Field(description="A sentence for people.")


class Failure(BaseModel):
    """The body of every error of v1."""

    error: FailureError = Field(description="Error that a request was answered with.")


class Problem(BaseModel):
    """The body of every error of v2, sent as `application/problem+json`."""

    type: str = Field(description="Always about:blank: `code` says more.", examples=["about:blank"])
    title: str = Field(description="The status in words.", examples=["Not Found"])
    status: int = Field(description="The HTTP status.", examples=[404])
    detail: str = Field(description="A sentence for people.")
    code: str = Field(description="The same stable word as v1's `reason`.", examples=["NOT_FOUND"])
    instance: str = Field(description="The request's id, which is in the log.")
