"""A service with the IPFS Pinning Service API 1.0.0 as a source: its pins with status `pinned`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, Self

from on_api.core.errors import BadRequest
from on_api.core.ipfs.formats.multiaddr import MAX_ADDRESSES
from on_api.core.net.errors import SourceMalformed
from on_api.core.net.outbound import Outbound, check_url
from on_api.core.providers import shapes
from on_api.core.providers.base import PINNING_API, Page, Source, SourceItem, SourceSpec

PAGE_ITEMS = 1000
MAX_ID_LENGTH = 255
MAX_RECENT_IDS = 2 * PAGE_ITEMS
MARGINS = (timedelta(milliseconds=1), timedelta(seconds=1))
"""Overlaps of a page with the one before it: pins of one moment may be split by the page border,
and services keep moments to the millisecond, a few to the second."""


@dataclass(slots=True)
class _Position:
    """Position up to which the list was read."""

    oldest: str | None = None
    """Moment of the oldest pin seen."""
    recent: list[str] = field(default_factory=list)
    """Ids of pins seen so close to that moment that the next page may show them again."""
    remaining: int = 0
    """Number of older pins, as the last page said."""
    seen: int = 0
    total: int | None = None
    """Number of all pins, as the first page said."""

    @classmethod
    def read(cls, text: str | None) -> Self:
        try:
            return cls() if text is None else cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise BadRequest("The saved position in the source's list is not valid.") from error

    def write(self) -> str:
        return json.dumps(asdict(self))


class PinningApiSource(Source):
    """The pins of one account, newest first. `endpoint` is the part of the URL before `/pins`."""

    kind = PINNING_API

    def __init__(self, spec: SourceSpec, outbound: Outbound) -> None:
        self._outbound = outbound
        endpoint = (spec.endpoint or "").rstrip("/").removesuffix("/pins")
        url = check_url(endpoint, allow_private=outbound.limits.allow_private)
        self._url = url.copy_with(path=f"{url.path.rstrip('/')}/pins")
        self._authorization = f"Bearer {spec.token}"
        self._delegates: dict[str, None] = {}

    async def pages(self, after: str | None = None) -> AsyncIterator[Page]:
        """See `Source.pages`. Pages are requested by `before`, the moment of the oldest pin
        seen."""
        position = _Position.read(after)
        while position.total is None or position.remaining > 0:
            fresh = await self._next(position)
            if not fresh and position.remaining > 0:
                # A service may count all pins each time; then the list ends when all were seen.
                if position.seen >= (position.total or 0):
                    return
                raise SourceMalformed(
                    f"The source reports {position.total} pins, but lists {position.seen}."
                )
            if position.seen > 2 * (position.total or 0) + PAGE_ITEMS:
                raise SourceMalformed("The source lists more pins than it reports.")
            items = [self._item(each) for each in fresh]
            yield Page(items, position.write())

    async def delegates(self) -> Sequence[str]:
        """See `Source.delegates`: those that its pins name."""
        if not self._delegates:
            _, results = await self._ask({"limit": "1"})
            for each in results:
                self._item(each)
        return tuple(self._delegates)[:MAX_ADDRESSES]

    async def _next(self, position: _Position) -> Sequence[Mapping[str, Any]]:
        """Return the pins of the next page that were not seen yet; advances the place."""
        known = set(position.recent)
        count, results, fresh = 0, (), ()  # type: tuple[int, Sequence[Any], Sequence[Any]]
        for margin in MARGINS:
            query = {"limit": str(PAGE_ITEMS)}
            if position.oldest is not None:
                before = shapes.moment(position.oldest) + margin
                query["before"] = before.isoformat(timespec="milliseconds").replace("+00:00", "Z")
            count, results = await self._ask(query)
            fresh = [each for each in results if _id(each) not in known]
            repeated = len(results) - len(fresh)
            if position.oldest is None or (repeated and count - repeated >= position.remaining):
                break
            # The oldest pin seen has to come again, followed by as many as were announced; else
            # some are hidden at the border, or are gone.
        if fresh:
            self._move(position, results)
        position.remaining = count - len(results)
        position.seen += len(fresh)
        if position.total is None:
            position.total = count
        return fresh

    def _move(self, position: _Position, results: Sequence[Mapping[str, Any]]) -> None:
        moments = {_id(each): shapes.moment(each.get("created")) for each in results}
        oldest = min(moments.values())
        if list(moments.values()) != sorted(moments.values(), reverse=True):
            raise SourceMalformed("The source does not list its pins in order.")
        near = oldest + MARGINS[-1] + MARGINS[0]
        still_near = position.recent if _is_near(position, near) else []
        recent = [key for key, created in moments.items() if created <= near]
        position.oldest, position.recent = (
            oldest.isoformat(),
            list(dict.fromkeys(still_near + recent)),
        )
        del position.recent[:-MAX_RECENT_IDS]

    async def _ask(self, query: Mapping[str, str]) -> tuple[int, Sequence[Mapping[str, Any]]]:
        answer = shapes.row(
            await self._outbound.ask(
                self._url,
                query={"status": "pinned", **query},
                authorization=self._authorization,
            )
        )
        results = shapes.rows(answer.get("results"))
        count = shapes.whole(answer.get("count"))
        if count < len(results):
            raise SourceMalformed("The source lists more pins than it reports.")
        return count, results

    def _item(self, status: Mapping[str, Any]) -> SourceItem:
        pin = shapes.row(status.get("pin"))
        delegates = shapes.multiaddrs(status.get("delegates"))
        if len(self._delegates) < MAX_ADDRESSES:
            self._delegates.update(dict.fromkeys(delegates))
        info = status.get("info")
        return shapes.item(
            pin.get("cid"),
            named=pin.get("name"),
            about=pin.get("meta"),
            created_at=status.get("created"),
            # Not part of the specification; on-api sends it.
            size=info.get("dag_size") if isinstance(info, dict) else None,
            origins=shapes.multiaddrs(list(delegates), pin.get("origins")),
        )


def _id(status: Mapping[str, Any]) -> str:
    requestid = shapes.text(status.get("requestid"))
    if len(requestid) > MAX_ID_LENGTH:
        raise SourceMalformed
    return requestid


def _is_near(position: _Position, near: datetime) -> bool:
    return position.oldest is not None and shapes.moment(position.oldest) <= near
