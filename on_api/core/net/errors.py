"""Errors of calls to other services; a branch of the tree in `core/errors.py`."""

from __future__ import annotations

from on_api.core.errors import RetryLater


class SourceError(RetryLater):
    """Another service, from which content is to come, failed to do what was asked."""

    status, reason, summary = 502, "SOURCE_ERROR", "The source could not do this."


class SourceUnauthorized(SourceError):
    """The service refuses the credentials: wrong, or expired."""

    reason, summary = (
        "SOURCE_UNAUTHORIZED",
        "The source rejected the credentials: they are wrong, have expired, or lack permission.",
    )


class SourceMissing(SourceError):
    """The service has no such content."""

    reason, summary = "SOURCE_MISSING", "The source does not have this content."


class SourceMalformed(SourceError):
    """The service's answer is malformed."""

    reason, summary = "SOURCE_MALFORMED", "The source's response could not be parsed."


class SourceUnavailable(SourceError):
    """The service can't be reached, is too slow, or asks for a pause."""

    status, reason, summary = (
        503,
        "SOURCE_UNAVAILABLE",
        "The source can't be reached at the moment.",
    )
