"""Another on-api as a source: its files, which stay files, and its pins.

A private file's DAG is an age file, and is moved as it is; its owner's identity opens it. That
identity is exported with the owner's password, or was exported before.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import httpx

from on_api.core.errors import BadRequest
from on_api.core.net.errors import SourceMalformed
from on_api.core.net.outbound import Outbound, check_url
from on_api.core.providers import shapes
from on_api.core.providers.base import ON_API, Page, Source, SourceFile, SourceItem, SourceSpec
from on_api.core.providers.pinning_api import PinningApiSource

PAGE_ITEMS = 1000
FILES, PINS = "files", "pins"
MAX_IDENTITIES = 1000
NO_IDENTITY = (
    "The file is private at the source: provide your username and password there, or its"
    " exported identities."
)


class OnApiSource(Source):
    """One account at another on-api; `endpoint` is its origin. The key needs `files:read` and
    `pins:read`."""

    kind = ON_API

    def __init__(self, spec: SourceSpec, outbound: Outbound) -> None:
        self._outbound = outbound
        self._spec = spec
        self._url = check_url(spec.endpoint or "", allow_private=outbound.limits.allow_private)
        self._pins = PinningApiSource(replace(spec, endpoint=str(self._at("v1"))), outbound)
        self._opens_private = bool(spec.identities or (spec.username and spec.password))

    async def pages(self, after: str | None = None) -> AsyncIterator[Page]:
        """See `Source.pages`: files first, then pins."""
        part, _, cursor = (after or f"{FILES}:").partition(":")
        if part not in {FILES, PINS}:
            raise BadRequest("The saved position in the source's list is not valid.")
        if part == FILES:
            async for page in self._files(cursor):
                yield page
            cursor = ""
        async for page in self._pins.pages(cursor or None):
            yield Page(page.items, f"{PINS}:{page.resume}")

    async def delegates(self) -> Sequence[str]:
        """See `Source.delegates`: those that its pins name; empty without pins."""
        return await self._pins.delegates()

    async def identities(self) -> Sequence[str]:
        """See `Source.identities`: those specified, or exported after a login with username and
        password."""
        if self._spec.identities or not self._opens_private:
            return self._spec.identities
        login = {"username": self._spec.username or "", "password": self._spec.password or ""}
        granted = shapes.row(
            await self._outbound.ask(self._at("v1/auth/token"), method="POST", form=login)
        )
        exported = shapes.row(
            await self._outbound.ask(
                self._at("v1/users/me/identity/export"),
                method="POST",
                authorization=f"Bearer {shapes.text(granted.get('access_token'))}",
                body={"password": self._spec.password},
            )
        )
        found = [
            shapes.text(row.get("identity")) for row in shapes.rows(exported.get("identities"))
        ]
        if len(found) > MAX_IDENTITIES:
            raise SourceMalformed
        return found

    async def _files(self, cursor: str) -> AsyncIterator[Page]:
        known = set()
        while True:
            answer = shapes.row(
                await self._outbound.ask(
                    self._at("v2/files"),
                    query={"limit": str(PAGE_ITEMS), **({"cursor": cursor} if cursor else {})},
                    authorization=f"Bearer {self._spec.token}",
                )
            )
            items = [self._item(each) for each in shapes.rows(answer.get("items"))]
            cursor = shapes.text(answer.get("next_cursor") or "")
            if cursor in known or len(cursor) > 512:
                raise SourceMalformed("The source's pagination loops.")
            known.add(cursor)
            yield Page(items, f"{FILES}:{cursor}" if cursor else f"{PINS}:")
            if not cursor:
                return

    def _item(self, file: Mapping[str, Any]) -> SourceItem:
        described = _described(file)
        hides = described.visibility == "private" and not self._opens_private
        return shapes.item(
            file.get("cid"),
            named=described.name,
            about=described.meta,
            created_at=file.get("created_at"),
            size=described.size,
            problem=NO_IDENTITY if hides else None,
            file=described,
        )

    def _at(self, path: str) -> httpx.URL:
        return self._url.copy_with(path=f"{self._url.path.rstrip('/')}/{path}")


def _described(file: Mapping[str, Any]) -> SourceFile:
    try:
        sha256 = bytes.fromhex(shapes.text(file.get("sha256")))
    except ValueError as error:
        raise SourceMalformed from error
    visibility = shapes.text(file.get("visibility"))
    if len(sha256) != 32 or visibility not in {"public", "private"}:
        raise SourceMalformed
    return SourceFile(
        id=shapes.text(file.get("id"))[:64],
        name=shapes.name(file.get("name")) or "unnamed",
        media_type=shapes.storable(shapes.text(file.get("media_type")))[:255],
        size=shapes.whole(file.get("size")),
        sha256=sha256,
        visibility=visibility,
        meta=shapes.row(file.get("meta")),
    )
