"""The tree of exceptions: each error, its HTTP status, and the stable code that clients match on.

    OnApiError
    ├── BadRequest            400 BAD_REQUEST              the input is wrong; the details say where
    │   ├── PassphraseNeeded  400 PASSPHRASE_NEEDED        of a private file
    │   ├── BadCar            400 BAD_CAR                  a CAR that can't be taken
    │   └── AddressRefused    400 ADDRESS_REFUSED          a URL that on-api doesn't call
    ├── Unauthorized          401 UNAUTHORIZED             no key, or none that is valid
    ├── Forbidden             403 INSUFFICIENT_SCOPE       a valid key that may not do this
    │   ├── SharePasswordRequired 403 SHARE_PASSWORD_REQUIRED missing or wrong
    │   ├── QuotaExceeded     403 STORAGE_QUOTA_EXCEEDED
    │   ├── KeyLimitReached   403 KEY_LIMIT_REACHED        the key's own max_bytes
    │   └── WrongPassphrase   403 WRONG_PASSPHRASE         of a private file
    ├── NotFound              404 NOT_FOUND                not there, or someone else's
    ├── MethodNotAllowed      405 METHOD_NOT_ALLOWED
    ├── RequestTimeout        408 REQUEST_TIMEOUT          the client stopped sending
    ├── Conflict              409 CONFLICT                 against the present state
    ├── InsufficientFunds     409 INSUFFICIENT_FUNDS       the quota does not allow the pin
    ├── InProgress            409 IN_PROGRESS              its Idempotency-Key is being worked on
    ├── Gone                  410 GONE                     the operator serves it no more
    ├── PreconditionFailed    412 PRECONDITION_FAILED
    ├── PayloadTooLarge       413 PAYLOAD_TOO_LARGE
    ├── UnsupportedMediaType  415 UNSUPPORTED_MEDIA_TYPE
    ├── RangeNotSatisfiable   416 RANGE_NOT_SATISFIABLE
    ├── TooManyRequests       429 TOO_MANY_REQUESTS        Retry-After says when
    │   ├── RateLimited       429 RATE_LIMITED             over the operator's limit of requests
    │   └── EgressBudgetExceeded 429 EGRESS_BUDGET_EXCEEDED until the month's turn
    ├── LegallyUnavailable    451 UNAVAILABLE_FOR_LEGAL_REASONS
    ├── InternalError         500 INTERNAL_SERVER_ERROR    our fault; the log has the request's id
    ├── NodeError             502 NODE_ERROR               the IPFS node's answer is no answer
    │   ├── NodeRefused       502 NODE_REFUSED             it refused the call (credentials, paths)
    │   ├── BlocksMissing     502 BLOCKS_MISSING           it has not all blocks of a DAG
    │   ├── NodeTruncated     502 NODE_TRUNCATED           its answer ended too soon
    │   ├── ContentDamaged    502 CONTENT_DAMAGED          a private file isn't what was stored
    │   ├── NodeUnavailable   503 NODE_UNAVAILABLE         it can't be reached
    │   │   └── WrongNode     503 WRONG_NODE               another node answers in its place
    │   └── NodeTimeout       504 NODE_TIMEOUT             it didn't answer in time
    ├── SourceError           502 SOURCE_ERROR             another service failed (`net/errors.py`)
    │   ├── SourceUnauthorized 502 SOURCE_UNAUTHORIZED     its token is wrong, or is over
    │   ├── SourceMissing     502 SOURCE_MISSING           it has no such content
    │   ├── SourceMalformed   502 SOURCE_MALFORMED         its answer is not what it must be
    │   └── SourceUnavailable 503 SOURCE_UNAVAILABLE       it doesn't answer, or is too busy
    ├── ServiceUnavailable    503 SERVICE_UNAVAILABLE      try again soon
    │   ├── DatabaseUnavailable 503 DATABASE_UNAVAILABLE
    │   │   └── QueryTooSlow  503 QUERY_TOO_SLOW           ended by the database's time limit
    │   └── SecretUnavailable 503 MASTER_SECRET_UNAVAILABLE  what it protects can't be read
    ├── InsufficientStorage   507 INSUFFICIENT_STORAGE     the node's disk or its StorageMax is full
    └── StartupError          (the command line only)      it can't start; the message has the cure

Raised by services and ports; rendered in `error_handlers.py` and by the command line. Knows no web
framework.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class OnApiError(Exception):
    """Base of everything that on-api raises on purpose. `details` is shown to the client: no
    internals, no secrets."""

    status: ClassVar[int] = 500
    reason: ClassVar[str] = "INTERNAL_SERVER_ERROR"
    summary: ClassVar[str] = "An internal error occurred on the server."

    def __init__(
        self, details: str | None = None, *, headers: Mapping[str, str] | None = None
    ) -> None:
        self.details = details or self.summary
        self.headers: dict[str, str] = dict(headers or {})
        super().__init__(self.details)


class BadRequest(OnApiError):
    """The input is wrong."""

    status, reason, summary = 400, "BAD_REQUEST", "The request is invalid."


class PassphraseNeeded(BadRequest):
    """The file can only be opened with its passphrase."""

    reason, summary = (
        "PASSPHRASE_NEEDED",
        "This file is encrypted with a passphrase: send the passphrase in the header"
        " On-Api-Passphrase.",
    )


class BadCar(BadRequest):
    """A CAR is damaged, is cut, or holds blocks that on-api doesn't accept."""

    reason, summary = "BAD_CAR", "This CAR is not acceptable."


class AddressRefused(BadRequest):
    """A URL that on-api doesn't call for users: not HTTPS, or at a private address."""

    reason, summary = (
        "ADDRESS_REFUSED",
        "Only https:// URLs with public internet addresses are allowed; the operator can set"
        " ON_API_IMPORTS__ALLOW_PRIVATE=true to allow others.",
    )


class Unauthorized(OnApiError):
    """No key was sent, or it is not valid (any more). The answer never says which."""

    status, reason, summary = (
        401,
        "UNAUTHORIZED",
        "A valid key is required: send the header `Authorization: Bearer KEY`.",
    )

    def __init__(self, details: str | None = None) -> None:
        super().__init__(details, headers={"WWW-Authenticate": "Bearer"})


class Forbidden(OnApiError):
    """The key is valid but may not do this."""

    status, reason, summary = 403, "INSUFFICIENT_SCOPE", "The key lacks permission for this."


class SharePasswordRequired(Forbidden):
    """A share's password is missing or wrong."""

    reason, summary = (
        "SHARE_PASSWORD_REQUIRED",
        "This link requires a password: send it in the header On-Api-Share-Password.",
    )


class QuotaExceeded(Forbidden):
    """The user's storage quota would be exceeded."""

    reason, summary = "STORAGE_QUOTA_EXCEEDED", "The storage quota is exceeded."


class KeyLimitReached(Forbidden):
    """The key's `max_bytes` would be exceeded."""

    reason, summary = "KEY_LIMIT_REACHED", "The key's upload limit is exceeded."


class WrongPassphrase(Forbidden):
    """The file is encrypted with another passphrase."""

    reason, summary = "WRONG_PASSPHRASE", "The passphrase is wrong."


class NotFound(OnApiError):
    """The object doesn't exist, or is another user's: the two are never distinguished."""

    status, reason, summary = 404, "NOT_FOUND", "The resource was not found."


class MethodNotAllowed(OnApiError):
    """The path exists, the method does not."""

    status, reason, summary = 405, "METHOD_NOT_ALLOWED", "This method is not allowed here."


class RequestTimeout(OnApiError):
    """The client stopped sending in the middle of a body."""

    status, reason, summary = (
        408,
        "REQUEST_TIMEOUT",
        "The server received no more data in time and cancelled the request.",
    )


class Conflict(OnApiError):
    """The request is fine but contradicts the present state."""

    status, reason, summary = 409, "CONFLICT", "The request conflicts with the current state."


class InsufficientFunds(OnApiError):
    """A pin would exceed the storage quota; the name is the Pinning Service API's."""

    status, reason, summary = (
        409,
        "INSUFFICIENT_FUNDS",
        "The storage quota does not allow another pin.",
    )


class Gone(OnApiError):
    """The content is on the gateway's deny list."""

    status, reason, summary = 410, "GONE", "This content is no longer available."


class PreconditionFailed(OnApiError):
    """An If-Match or If-Unmodified-Since did not hold."""

    status, reason, summary = (
        412,
        "PRECONDITION_FAILED",
        "A precondition of the request is not met.",
    )


class PayloadTooLarge(OnApiError):
    """The body, or one file of it, is over its limit."""

    status, reason, summary = 413, "PAYLOAD_TOO_LARGE", "The request body is too large."


class UnsupportedMediaType(OnApiError):
    """The body is not of a type this operation reads."""

    status, reason, summary = 415, "UNSUPPORTED_MEDIA_TYPE", "This media type is not supported."


class RangeNotSatisfiable(OnApiError):
    """The Range starts after the end. `size` is the file's size in bytes."""

    status, reason, summary = 416, "RANGE_NOT_SATISFIABLE", "The range is outside the file."

    def __init__(self, size: int) -> None:
        super().__init__(
            f"The range is outside the file, which has {size} bytes.",
            headers={"Content-Range": f"bytes */{size}"},
        )


class HeadersTooLarge(OnApiError):
    """A request's line, headers or trailers exceed the memory bound for them."""

    status, reason, summary = 431, "HEADERS_TOO_LARGE", "The request's headers are too large."


class UnknownTransferCoding(OnApiError):
    """A body comes in a Transfer-Encoding other than `chunked`."""

    status, reason, summary = (
        501,
        "NOT_IMPLEMENTED",
        "The only supported Transfer-Encoding is chunked.",
    )


class RetryLater(OnApiError):
    """Base of temporary errors: they carry `Retry-After` in seconds."""

    def __init__(self, details: str | None = None, *, retry_after: int = 5) -> None:
        super().__init__(details, headers={"Retry-After": str(max(1, retry_after))})


class TooManyRequests(RetryLater):
    """Too many requests in too short a time."""

    status, reason, summary = 429, "TOO_MANY_REQUESTS", "Too many requests; try again later."


class RateLimited(TooManyRequests):
    """More requests than the operator allows an address or a key in a time."""

    reason, summary = "RATE_LIMITED", "More requests than the operator allows; try again later."


class EgressBudgetExceeded(TooManyRequests):
    """An account's egress budget of this month is used up, or leaves less than the request needs.

    `redirectable` means that public content may be redirected to the fallback gateway, as the
    operator has chosen.
    """

    reason, summary = (
        "EGRESS_BUDGET_EXCEEDED",
        "This month's egress budget does not allow this download.",
    )

    def __init__(self, *, retry_after: int, redirectable: bool = False) -> None:
        super().__init__(retry_after=retry_after)
        self.redirectable = redirectable


class LegallyUnavailable(OnApiError):
    """The content is on the gateway's deny list, because of a law."""

    status, reason, summary = (
        451,
        "UNAVAILABLE_FOR_LEGAL_REASONS",
        "This content is not available for legal reasons.",
    )


class InProgress(RetryLater):
    """A request with the same Idempotency-Key is still under way."""

    status, reason, summary = 409, "IN_PROGRESS", "The same request is still in progress."


class InternalError(OnApiError):
    """Our own fault. Carries no details of the failure: they are in the log, under the request's
    id."""


class NodeError(RetryLater):
    """The IPFS node failed to do what was asked."""

    status, reason, summary = 502, "NODE_ERROR", "The IPFS node could not do this."


class NodeRefused(NodeError):
    """The node refused the call: credentials, or a path that they don't cover."""

    reason, summary = (
        "NODE_REFUSED",
        "The IPFS node rejected the call; the operator should check the credentials for the node.",
    )


class BlocksMissing(NodeError):
    """The node lacks blocks of a DAG."""

    reason, summary = "BLOCKS_MISSING", "Blocks of this content are missing on the IPFS node."


class NodeTruncated(NodeError):
    """The node's answer ended before it was complete."""

    reason, summary = "NODE_TRUNCATED", "The IPFS node's response was incomplete."


class ContentDamaged(NodeError):
    """A private file is not authentic: some of its bytes are not those that were stored."""

    reason, summary = "CONTENT_DAMAGED", "This private file is damaged on the IPFS node."


class NodeUnavailable(NodeError):
    """The node can't be reached."""

    status, reason, summary = (
        503,
        "NODE_UNAVAILABLE",
        "The IPFS node can't be reached at the moment.",
    )


class WrongNode(NodeUnavailable):
    """Another node answers where this deployment's is expected. It gets no calls."""

    reason, summary = (
        "WRONG_NODE",
        "A different IPFS node responds instead of this deployment's; the operator should run"
        " `on-api doctor`.",
    )


class NodeTimeout(NodeError):
    """The node did not answer, or made no progress, in time."""

    status, reason, summary = 504, "NODE_TIMEOUT", "The IPFS node did not respond in time."


class ServiceUnavailable(RetryLater):
    """Temporarily not available."""

    status, reason, summary = (
        503,
        "SERVICE_UNAVAILABLE",
        "The service is not available at the moment; try again later.",
    )


class DatabaseUnavailable(ServiceUnavailable):
    """The database can't be reached, or is too busy."""

    reason, summary = "DATABASE_UNAVAILABLE", "The database can't be reached at the moment."


class QueryTooSlow(DatabaseUnavailable):
    """A statement was ended by the database's own time limit."""

    reason, summary = (
        "QUERY_TOO_SLOW",
        "The database query took too long and was cancelled. Request less data: for example, a"
        " shorter period, or an exact name instead of a part of it.",
    )


class SecretUnavailable(ServiceUnavailable):
    """The master secret that protects this is missing, or is another one."""

    reason, summary = (
        "MASTER_SECRET_UNAVAILABLE",
        "The server's master secret is missing or has changed, so private files can't be"
        " decrypted; the operator must restore it (run `on-api doctor` for details).",
    )


class InsufficientStorage(OnApiError):
    """The node has no space left."""

    status, reason, summary = 507, "INSUFFICIENT_STORAGE", "The IPFS node has no space left."


class StartupError(OnApiError):
    """on-api can't start or a command can't run. The message is one sentence with the remedy."""

    reason, summary = "STARTUP_FAILED", "on-api can't start."
