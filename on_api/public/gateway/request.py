"""Requests as the gateway reads them: the paths that are its own, and the headers that select or
condition a representation.

Knows nothing of what may be served, nor of answers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from urllib.parse import quote

from starlette.types import Scope

from on_api.core.conditional import well_formed
from on_api.core.errors import NodeError
from on_api.core.ipfs.gateway_client.connection import NodeAnswer
from on_api.core.services.gateway.hot_answers import AnswerKey
from on_api.core.web.extensions import NODE_ANSWER, extension

NodeOutcome = NodeAnswer | NodeError

PREFIXES = ("/ipfs", "/ipns")

PASSED_ON = frozenset({
    b"accept", b"cache-control", b"if-match", b"if-modified-since", b"if-none-match", b"if-range",
    b"if-unmodified-since", b"range",
})  # fmt: skip
"""Headers of the client that the node gets. Never Host or X-Forwarded-*: the node would build URLs
of them."""
READ = PASSED_ON | {b"authorization", b"service-worker"}
ACCEL = b"x-on-api-accel"
"""Header by which nginx identifies itself; nginx overwrites what the client sent."""

_SUFFIX = re.compile(rb"[=,]-")
_UNCONDITIONAL = {b"accept", b"authorization"}
_IN_QUERIES = "".join(map(chr, range(0x21, 0x7F)))


def is_gateway_path(path: str) -> bool:
    """Return whether the gateway answers a (decoded) path."""
    return path.startswith(PREFIXES) and path[5:6] in {"", "/"}


@dataclass(frozen=True, slots=True)
class GatewayRequest:
    """The parts of a request that the gateway reads."""

    method: str
    raw_path: bytes
    query: bytes
    headers: dict[bytes, bytes]
    """Headers of `READ`, by name in lower case; repeated ones are joined by commas."""
    is_joined: bool
    """True if any of them was repeated."""
    accel: bytes
    """Value of the header `ACCEL`; empty without one."""
    node_outcome: NodeOutcome | None
    """Answer or error that a fast lane already has from the node."""

    @classmethod
    def of(cls, scope: Scope) -> GatewayRequest:
        """Read a request from its ASGI scope."""
        headers: dict[bytes, bytes] = {}
        is_joined, accel = False, b""
        for name, value in scope["headers"]:
            if name in READ:
                is_joined = is_joined or name in headers
                headers[name] = headers[name] + b", " + value if name in headers else value
            elif name == ACCEL:
                accel = value
        query = scope["query_string"]
        node_outcome: NodeOutcome | None = extension(scope, NODE_ANSWER)
        wanted = headers.pop(b"range", None)
        # The node answers an error to a malformed range, which should be ignored.
        if wanted is not None and (spelled := well_formed(wanted.decode("latin-1"))) is not None:
            headers[b"range"] = spelled.encode()
        return cls(
            scope["method"], scope["raw_path"], query, headers, is_joined, accel, node_outcome
        )

    @property
    def key(self) -> AnswerKey:
        """Key of the representation: path, query, and `Accept`."""
        return self.raw_path, self.query, self.headers.get(b"accept", b"")

    @property
    def is_unconditional(self) -> bool:
        """True if the request asks for the whole, whatever the client has."""
        return not self.headers.keys() - _UNCONDITIONAL

    @property
    def counts_from_the_end(self) -> bool:
        """True if `Range` asks for a number of last bytes, of which there may be fewer."""
        return _SUFFIX.search(self.headers.get(b"range", b"")) is not None

    def from_the_beginning(self) -> GatewayRequest:
        """Return the same request for the whole, for content that has no more bytes than were asked
        for; if it named several ranges, without any."""
        headers = {name: value for name, value in self.headers.items() if name != b"range"}
        if b"," not in self.headers[b"range"]:
            headers[b"range"] = b"bytes=0-"
        return replace(self, headers=headers)

    @property
    def query_text(self) -> str:
        """The query for a URL, with invalid bytes percent-encoded."""
        if self.query.isascii():
            return self.query.decode("ascii")
        return quote(self.query, safe=_IN_QUERIES)

    @property
    def sent_on(self) -> list[tuple[str, str]]:
        """Headers that the node gets."""
        return [
            (name.decode(), value.decode("utf-8", "replace"))
            for name, value in self.headers.items()
            if name in PASSED_ON
        ]


def address_of(scope: Scope) -> str | None:
    """Return the client's address, if the server knows it."""
    client = scope.get("client")
    return None if client is None else str(client[0])
