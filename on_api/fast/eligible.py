"""The one decision whether a request is eligible, so that a fast lane may answer it.

An eligible request is a GET below `/ipfs` whose `Accept` alone selects the representation, with a
head that has only one reading. All others go to the parser and the application, which read every
header.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from on_api.core.services.gateway.hot_answers import AnswerKey
from on_api.public.gateway.request import ACCEL, READ
from on_api.server.framing import is_host

START = b"GET /ipfs/"

HEADERS_OF_THE_SERVER = frozenset({
    b"connection", b"content-length", b"expect", b"host", b"proxy-connection",
    b"transfer-encoding", b"upgrade",
})  # fmt: skip
"""Headers that the parser or `server/` reads. Any of them makes a request ineligible, except a
valid `Host` and `Connection: keep-alive`."""
HEADERS_WITH_MEANING = READ | {ACCEL} | HEADERS_OF_THE_SERVER
"""Headers of the server, and headers that the gateway reads. Beside the exceptions above, `Accept`
alone leaves a request eligible (and `ACCEL`, unless answers may be handed over to nginx). Other
headers change nothing at the gateway."""
HEADERS_OF_ENDPOINTS = frozenset({
    "idempotency-key", "on-api-passphrase",
})  # fmt: skip
"""Headers that endpoints declare. The gateway ignores them."""
MIDDLEWARE_AT_THE_GATEWAY = frozenset({"ProxyHeadersMiddleware"})
"""Middleware that may stand before the gateway: it sets the client's address, which no answer of a
fast lane depends on."""
MIDDLEWARE_OF_ENDPOINTS = frozenset({
    "CORSMiddleware", "ErrorAnswers", "InFlightLimit", "Metering", "ProxyHeadersMiddleware",
    "RequestContext", "RequestLimits",
})  # fmt: skip
"""Middleware that stands before endpoints only. What the gateway needs of it (ids, limits,
counting, CORS), the gateway and the lanes do themselves."""

REMEMBERED_BYTES = 2048
MOST_REMEMBERED_ENTRIES = 1000
"""Bounds of the two caches: bytes of an entry's key, and entries. A client sends the same headers
and heads again and again."""
HARMLESS = frozenset({
    b"accept", b"accept-encoding", b"accept-language", b"connection", b"dnt", b"host", b"origin",
    b"pragma", b"referer", b"sec-ch-ua", b"sec-ch-ua-mobile", b"sec-ch-ua-platform",
    b"sec-fetch-dest", b"sec-fetch-mode", b"sec-fetch-site", b"sec-fetch-user", b"te",
    b"upgrade-insecure-requests", b"user-agent", b"x-forwarded-for", b"x-forwarded-proto",
    b"x-real-ip", ACCEL,
})  # fmt: skip
"""Headers that may be cached. Others may hold a secret, which no cache is to keep."""

# Possessive throughout: a head has one reading, and the pattern never backtracks.
_LINE = re.compile(rb"GET (/ipfs/[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*+) HTTP/1\.1")
_FIELDS = re.compile(rb"\r\n(?:[!#$%&'*+.^_`|~0-9A-Za-z-]++:[\t -~\x80-\xff]*+\r\n)++\r\n")


class EligibleRequest(NamedTuple):
    """The parts of an eligible request that select its answer."""

    key: AnswerKey
    has_accel: bool
    """True if nginx offers to send the answer in our place."""


def read_eligible(head: bytes) -> EligibleRequest | None:
    """Read a head, from the request line to the empty line; return None if it is ineligible."""
    known = remembered_heads.get(head)
    if known is not None:
        return known
    if not head.startswith(START):
        return None
    end = head.find(b"\r\n")
    line = _LINE.fullmatch(head, 0, end)
    if line is None:
        return None
    fields = head[end:]
    understood = remembered.get(fields) or _understand(fields)
    if understood is None:
        return None
    accept, has_accel = understood
    path, _, query = line[1].partition(b"?")
    request = EligibleRequest((path, query, accept), has_accel)
    if fields in remembered and len(head) <= REMEMBERED_BYTES:
        if len(remembered_heads) >= MOST_REMEMBERED_ENTRIES:
            remembered_heads.clear()
        remembered_heads[head] = request
    return request


remembered: dict[bytes, tuple[bytes, bool]] = {}
"""Results of `_read_fields`, by its argument."""
remembered_heads: dict[bytes, EligibleRequest] = {}
"""Results of `read_eligible`, by head."""


def _understand(fields: bytes) -> tuple[bytes, bool] | None:
    """Return `_read_fields(fields)`, and cache it if all headers are `HARMLESS`."""
    understood = _read_fields(fields)
    if understood is None or len(fields) > REMEMBERED_BYTES:
        return understood
    names = {field.partition(b":")[0].lower() for field in fields[2:-4].split(b"\r\n")}
    if names <= HARMLESS:
        if len(remembered) >= MOST_REMEMBERED_ENTRIES:
            remembered.clear()
        remembered[fields] = understood
    return understood


def _read_fields(fields: bytes) -> tuple[bytes, bool] | None:
    """Return `Accept`, and whether nginx would send the answer; None if the request is ineligible.
    `fields`: the head from the end of the request line on."""
    if _FIELDS.fullmatch(fields) is None:
        return None
    host = accept = None
    has_accel = False
    for field in fields[2:-4].split(b"\r\n"):
        name, _, value = field.partition(b":")
        name = name.lower()
        if name not in HEADERS_WITH_MEANING:
            continue
        value = value.strip(b" \t")
        if name == b"host" and host is None and is_host(value):
            host = value
        elif name == b"accept" and accept is None:
            accept = value
        elif name == ACCEL:
            has_accel = True
        elif name != b"connection" or value.lower() != b"keep-alive":
            return None
    return None if host is None else (accept or b"", has_accel)
