"""Digests that a client sends along with a body: `Content-Digest` and `Repr-Digest` (RFC 9530),
`Digest` (RFC 3230) and `Content-MD5` (RFC 1864) before them. They mean the same here, since a body
is taken as it comes, in no coding and no part.

An algorithm that isn't known is passed over, as the RFC says. Knows no web framework.
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

Block = TypeVar("Block", bound=Bytes)

DIGEST_HEADERS = frozenset({b"content-digest", b"repr-digest", b"digest", b"content-md5"})

_ALGORITHMS: Mapping[str, Callable[[], _Hash]] = MappingProxyType(
    {
        "sha-256": hashlib.sha256,
        "sha-512": hashlib.sha512,
        "md5": lambda: hashlib.md5(usedforsecurity=False),
    }
)
_MEMBER = re.compile(r"\s*([^=\s]+)\s*=\s*(?::([A-Za-z0-9+/=]*):|([A-Za-z0-9+/=]*))\s*")


class SentDigests:
    """The digests that a request's headers declare; falsy where there are none that are known.

    Making it raises `BadRequest` for one that can't be read.
    """

    def __init__(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self._expected = [
            (_ALGORITHMS[algorithm](), digest)
            for name, value in headers
            if name in DIGEST_HEADERS
            for algorithm, digest in _read(name, value.decode("latin-1"))
        ]

    def __bool__(self) -> bool:
        """Whether there is anything to compare."""
        return bool(self._expected)

    def update(self, data: Bytes) -> None:
        """Take the body's next bytes."""
        for computed, _ in self._expected:
            computed.update(data)

    def check(self) -> None:
        """Compare, at the body's end. Raises `BadRequest` for a body that is another one."""
        for computed, digest in self._expected:
            if not compare_digest(computed.digest(), digest):
                raise BadRequest(
                    f"The bytes that came are not those of the {computed.name} digest that was "
                    "sent with them; nothing was stored. Send them again."
                )

    async def checked(self, body: AsyncIterator[Block]) -> AsyncIterator[Block]:
        """The body's blocks as they come. Raises `BadRequest` at its end, in place of it."""
        async for block in body:
            self.update(block)
            yield block
            del block  # who waits for the next one holds none
        self.check()


def _read(name: bytes, value: str) -> Iterable[tuple[str, bytes]]:
    members = [f"md5={value}"] if name == b"content-md5" else value.split(",")
    for member in members:
        found = _MEMBER.fullmatch(member)
        algorithm = member.partition("=")[0].strip().lower()
        if algorithm not in _ALGORITHMS:
            continue
        try:
            if found is None:
                raise ValueError
            digest = base64.b64decode(found[2] or found[3] or "", validate=True)
        except (ValueError, binascii.Error):
            raise BadRequest(f"{name.decode().title()}: the digest can't be read.") from None
        yield algorithm, digest
