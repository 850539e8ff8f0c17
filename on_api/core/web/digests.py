"""Digests that a client sends along with a body: `Content-Digest` and `Repr-Digest` (RFC 9530), and
the older `Digest` (RFC 3230) and `Content-MD5` (RFC 1864). They mean the same here, since a body
has no content coding and is never partial.

Unknown algorithms are ignored, as the RFC demands. Knows no web framework.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from hmac import compare_digest
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from on_api.core.errors import BadRequest
from on_api.core.streams.blocks import Bytes

if TYPE_CHECKING:
    from hashlib import _Hash

BytesT = TypeVar("BytesT", bound=Bytes)

DIGEST_HEADERS = frozenset({b"content-digest", b"repr-digest", b"digest", b"content-md5"})

_ALGORITHMS: Mapping[str, Callable[[], _Hash]] = MappingProxyType(
    {
        "sha-256": hashlib.sha256,
        "sha-512": hashlib.sha512,
        "md5": lambda: hashlib.md5(usedforsecurity=False),
    }
)
_VALUE = re.compile(r":([A-Za-z0-9+/=]+):|([A-Za-z0-9+/=]+)")
MOST_DIGESTS = 8
"""Number of digests that one request may declare per algorithm; they share one hash of the body."""


class SentDigests:
    """The digests that a request's headers declare; falsy if there are none of a known algorithm.

    Construction raises `BadRequest` for one that can't be read.
    """

    def __init__(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self._expected: dict[str, tuple[_Hash, set[bytes]]] = {}
        for name, value in headers:
            if name in DIGEST_HEADERS:
                for algorithm, digest in _read(name, value.decode("latin-1")):
                    self._expect(name, algorithm, digest)

    def _expect(self, name: bytes, algorithm: str, digest: bytes) -> None:
        if algorithm not in self._expected:
            self._expected[algorithm] = _ALGORITHMS[algorithm](), set()
        computed, digests = self._expected[algorithm]
        digests.add(digest)
        if len(digest) != computed.digest_size or len(digests) > MOST_DIGESTS:
            raise _unreadable(name)

    def __bool__(self) -> bool:
        """Return whether there is any digest to compare."""
        return bool(self._expected)

    def update(self, data: Bytes) -> None:
        """Hash the body's next bytes."""
        for computed, _ in self._expected.values():
            computed.update(data)

    def check(self) -> None:
        """Compare the digests, at the body's end. Raises `BadRequest` if one differs."""
        for computed, digests in self._expected.values():
            if not all(compare_digest(computed.digest(), digest) for digest in digests):
                raise BadRequest(
                    f"The received bytes do not match the {computed.name} digest that was sent"
                    " with them; nothing was stored. Send the request again."
                )

    async def checked(self, body: AsyncIterator[BytesT]) -> AsyncIterator[BytesT]:
        """Yield the body's blocks as they come. Raises `BadRequest` after the last one if a digest
        differs."""
        async for block in body:
            self.update(block)
            yield block
            del block  # hold none while waiting for the next one
        self.check()


def _read(name: bytes, value: str) -> Iterable[tuple[str, bytes]]:
    members = [f"md5={value}"] if name == b"content-md5" else value.split(",")
    for member in members:
        algorithm, _, text = (part.strip() for part in member.partition("="))
        algorithm = algorithm.lower()
        if algorithm not in _ALGORITHMS:
            continue
        found = _VALUE.fullmatch(text)
        if found is None:
            raise _unreadable(name)
        try:
            digest = base64.b64decode(found[1] or found[2], validate=True)
        except binascii.Error:
            raise _unreadable(name) from None
        yield algorithm, digest


def _unreadable(name: bytes) -> BadRequest:
    return BadRequest(f"{name.decode().title()}: the digest can't be parsed.")
