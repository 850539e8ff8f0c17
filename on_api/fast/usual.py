"""Whether a request is usual: what a fast lane may answer. The one place that decides it.

A GET below `/ipfs` whose `Accept` alone selects the representation. Everything else the application
answers, which reads every header.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from on_api.public.gateway.request import ACCEL, READ

START = b"/ipfs/"

HEADERS_WITH_MEANING = READ | {ACCEL}
"""Headers that the gateway reads. All but `Accept` make a request unusual (`ACCEL`: where answers
may be handed over to nginx); any other header changes nothing at the gateway."""
HEADERS_OF_ENDPOINTS = frozenset({
    "idempotency-key", "on-api-passphrase",
})  # fmt: skip
"""Headers that endpoints declare. They mean nothing at the gateway."""
MIDDLEWARE_AT_THE_GATEWAY = frozenset({"ProxyHeadersMiddleware"})
"""What may stand before the gateway: it tells who asks, which no usual answer depends on."""
MIDDLEWARE_OF_ENDPOINTS = frozenset({
    "CORSMiddleware", "InFlightLimit", "LastResort", "Metering", "ProxyHeadersMiddleware",
    "RequestContext",
})  # fmt: skip
"""What stands before endpoints only. What the gateway needs of it (ids, limits, counting, CORS), it
and the lanes do by themselves."""


class UsualRequest(NamedTuple):
    """What selects the answer to a usual request."""

    path: bytes
    query: bytes
    accept: bytes


def read_usual(
    url: bytes, headers: Sequence[tuple[bytes, bytes]], *, is_handed_over: bool
) -> UsualRequest | None:
    """What a GET without a body asks for; None if it is unusual. `is_handed_over`: nginx may be
    asked to send the answer in our place, where it says that it would."""
    if not url.startswith(START) or b"#" in url:
        return None
    accept = b""
    for name, value in headers:
        if name in HEADERS_WITH_MEANING:
            if name == b"accept" and not accept:
                accept = value
            elif name != ACCEL or is_handed_over:
                return None
    path, _, query = url.partition(b"?")
    return UsualRequest(path, query, accept)
