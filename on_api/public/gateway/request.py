"""What the gateway reads of a request: paths that are its own, and headers that select or condition
a representation.

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
from on_api.core.services.gateway.hot_answers import Key
from on_api.core.web.extensions import NODE_ANSWER, extension

Said = NodeAnswer | NodeError

PREFIXES = ("/ipfs", "/ipns")

PASSED_ON = frozenset({
    b"accept", b"cache-control", b"if-match", b"if-modified-since", b"if-none-match", b"if-range",
    b"if-unmodified-since", b"range",
})  # fmt: skip
"""Of the client's headers. Never Host or X-Forwarded-*: the node would build URLs of them."""
READ = PASSED_ON | {b"authorization", b"service-worker"}
ACCEL = b"x-on-api-accel"
"""What nginx says of itself, in place of whatever the client said."""

_SUFFIX = re.compile(rb"[=,]-")
_UNCONDITIONAL = {b"accept", b"authorization"}
_IN_QUERIES = "".join(map(chr, range(0x21, 0x7F)))


def is_gateway_path(path: str) -> bool:
    """Whether a path (decoded) is the gateway's to answer."""
    return path.startswith(PREFIXES) and path[5:6] in {"", "/"}


@dataclass(frozen=True, slots=True)
class GatewayRequest:
    """What is read of a request."""

    method: str
    raw_path: bytes
    query: bytes
    headers: dict[bytes, bytes]
    """Those of `READ`, by name in lower case; what came repeatedly is joined by commas."""
    is_joined: bool
    """Whether any of them came repeatedly."""
    accel: bytes
    """The header `ACCEL`; empty without one."""
    said: Said | None
    """What the node has said to it already."""

    @classmethod
    def of(cls, scope: Scope) -> GatewayRequest:
        """Read a request."""
        headers: dict[bytes, bytes] = {}
        is_joined, accel = False, b""
        for name, value in scope["headers"]:
            if name in READ:
                is_joined = is_joined or name in headers
                headers[name] = headers[name] + b", " + value if name in headers else value
            elif name == ACCEL:
                accel = value
        query = scope["query_string"]
        said: Said | None = extension(scope, NODE_ANSWER)
        wanted = headers.pop(b"range", None)
        # The node makes an error of one that is to be ignored.
        if wanted is not None and (spelled := well_formed(wanted.decode("latin-1"))) is not None:
            headers[b"range"] = spelled.encode()
        return cls(scope["method"], scope["raw_path"], query, headers, is_joined, accel, said)

    @property
    def key(self) -> Key:
        """What selects the representation."""
        return self.raw_path, self.query, self.headers.get(b"accept", b"")

    @property
    def is_unconditional(self) -> bool:
        """Whether it asks for all of it, whatever the client has."""
        return not self.headers.keys() - _UNCONDITIONAL

    @property
    def counts_from_the_end(self) -> bool:
        """Whether it asks for a number of last bytes, of which there may be fewer."""
        return _SUFFIX.search(self.headers.get(b"range", b"")) is not None

    def from_the_beginning(self) -> GatewayRequest:
        """The same for all of what has no more bytes than were asked for; of several ranges for
        none."""
        headers = {name: value for name, value in self.headers.items() if name != b"range"}
        if b"," not in self.headers[b"range"]:
            headers[b"range"] = b"bytes=0-"
        return replace(self, headers=headers)

    @property
    def query_text(self) -> str:
        """The query for a URL: bytes that can't be in one are encoded."""
        if self.query.isascii():
            return self.query.decode("ascii")
        return quote(self.query, safe=_IN_QUERIES)

    @property
    def sent_on(self) -> list[tuple[str, str]]:
        """The headers that the node gets."""
        return [
            (name.decode(), value.decode("utf-8", "replace"))
            for name, value in self.headers.items()
            if name in PASSED_ON
        ]


def address_of(scope: Scope) -> str | None:
    """The client's address."""
    client = scope.get("client")
    return None if client is None else str(client[0])
