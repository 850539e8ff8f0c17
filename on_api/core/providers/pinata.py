"""Pinata as a source, by its own API as publicly documented: the v3 files list, and the older
pinList for keys that may only read that.

A file in Pinata's private network is not on IPFS: it is listed, but can't be moved.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from on_api.core.errors import BadRequest
from on_api.core.net.errors import SourceMalformed, SourceMissing, SourceUnauthorized
from on_api.core.net.outbound import Outbound, check_url
from on_api.core.providers import shapes
from on_api.core.providers.base import PINATA, Page, Source, SourceItem, SourceSpec

API = "https://api.pinata.cloud"
PAGE_ITEMS = 1000
PUBLIC, PRIVATE, PIN_LIST = "public", "private", "pinlist"
IS_PRIVATE = (
    "The file is in Pinata's private network, not on IPFS: download it from Pinata instead."
)
IS_PENDING = "Pinata has not assigned a CID to it yet."


class PinataSource(Source):
    """The files of one account: those of the public network, then those of the private one."""

    kind = PINATA

    def __init__(self, spec: SourceSpec, outbound: Outbound) -> None:
        self._outbound = outbound
        self._url = check_url(spec.endpoint or API, allow_private=outbound.limits.allow_private)
        self._authorization = f"Bearer {spec.token}"

    async def pages(self, after: str | None = None) -> AsyncIterator[Page]:
        """See `Source.pages`."""
        part, _, cursor = (after or f"{PUBLIC}:").partition(":")
        if part not in {PUBLIC, PRIVATE, PIN_LIST}:
            raise BadRequest("The saved position in the source's list is not valid.")
        if part == PUBLIC:
            listed = bool(cursor)
            try:
                async for page in self._files(PUBLIC, cursor):
                    yield page
                    listed = True
                part, cursor = PRIVATE, ""
            except (SourceUnauthorized, SourceMissing):
                if listed:
                    raise
                part, cursor = PIN_LIST, ""  # an older key, or an older API
        if part == PIN_LIST:
            async for page in self._pin_list(cursor):
                yield page
            return
        try:
            async for page in self._files(PRIVATE, cursor):
                yield page
        except (SourceUnauthorized, SourceMissing):
            if cursor:
                raise
            # The key is for the public network only.

    async def _files(self, network: str, token: str) -> AsyncIterator[Page]:
        url = self._url.copy_with(path=f"{self._url.path.rstrip('/')}/v3/files/{network}")
        known = set()
        while True:
            query = {"limit": str(PAGE_ITEMS), **({"pageToken": token} if token else {})}
            answer = await self._ask(url, query)
            data = shapes.row(answer.get("data"))
            # Written as null when there is none.
            files = shapes.rows(data.get("files") or [])
            token = shapes.text(data.get("next_page_token") or "")
            if token in known or len(token) > 4096:
                raise SourceMalformed("The source's pagination loops.")
            known.add(token)
            items = [_file(each, is_private=network == PRIVATE) for each in files]
            yield Page(items, f"{network}:{token}" if token else f"{PRIVATE}:")
            if not token:
                return

    async def _pin_list(self, cursor: str) -> AsyncIterator[Page]:
        url = self._url.copy_with(path=f"{self._url.path.rstrip('/')}/data/pinList")
        offset = int(cursor) if cursor.isdigit() else 0
        before: int | None = None
        while True:
            query = {"status": "pinned", "pageLimit": str(PAGE_ITEMS), "pageOffset": str(offset)}
            answer = await self._ask(url, query)
            pins = shapes.rows(answer.get("rows"))
            count = shapes.whole(answer.get("count"))
            if before is not None and count < before:
                # Some pins were removed meanwhile, and all pins after them have moved up.
                offset = max(0, offset - (before - count))
                before = count
                continue
            before = count
            if not pins and offset < count:
                raise SourceMalformed(f"The source reports {count} pins, but lists {offset}.")
            offset += len(pins)
            yield Page([_pin(each) for each in pins], f"{PIN_LIST}:{offset}")
            if offset >= count:
                return

    async def _ask(self, url: Any, query: Mapping[str, str]) -> Mapping[str, Any]:
        answer = await self._outbound.ask(url, query=query, authorization=self._authorization)
        return shapes.row(answer)


def _file(file: Mapping[str, Any], *, is_private: bool) -> SourceItem:
    cid = file.get("cid")
    problem = IS_PRIVATE if is_private else IS_PENDING if cid == "pending" else None
    return shapes.item(
        cid,
        named=file.get("name"),
        about=file.get("keyvalues"),
        created_at=file.get("created_at"),
        size=file.get("size"),
        problem=problem,
    )


def _pin(pin: Mapping[str, Any]) -> SourceItem:
    about = pin.get("metadata")
    about = about if isinstance(about, dict) else {}
    return shapes.item(
        pin.get("ipfs_pin_hash"),
        named=about.get("name"),
        about=about.get("keyvalues"),
        created_at=pin.get("date_pinned"),
        size=pin.get("size"),
    )
