"""Another Kubo, by its RPC: its recursive pins with their names.

An RPC is the whole node; that only administrators name one is the service's rule.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from on_api.core.ipfs.kubo.control import authorization
from on_api.core.net.outbound import Outbound, check_url
from on_api.core.providers import shapes
from on_api.core.providers.base import KUBO, Page, Source, SourceSpec

PAGE = 1000


class KuboSource(Source):
    """The pin set of one Kubo, by CID.

    Asked for in one answer, not as a stream: of a stream that Kubo breaks off nothing tells that it
    is short (the reason comes in a trailer that no Python client shows). So a pin set may be as
    long as `ON_API_IMPORTS__MAX_ANSWER` has room for: about 250,000 pins by default.
    """

    kind = KUBO

    def __init__(self, spec: SourceSpec, outbound: Outbound) -> None:
        self._outbound = outbound
        url = check_url(spec.endpoint or "", allow_private=outbound.limits.allow_private)
        self._url = url
        self._authorization = authorization(spec.token)

    async def pages(self, after: str | None = None) -> AsyncIterator[Page]:
        """See `Source.pages`. The set is listed anew and gone over from `after` on."""
        answer = await self._call("pin/ls", {"type": "recursive", "names": "true"})
        # Absent when there is nothing pinned.
        pins = shapes.row(answer.get("Keys") or {})
        cids = sorted(cid for cid in pins if after is None or cid > after)
        for start in range(0, len(cids), PAGE):
            page = cids[start : start + PAGE]
            items = [shapes.item(cid, named=shapes.row(pins[cid]).get("Name")) for cid in page]
            yield Page(items, page[-1])

    async def delegates(self) -> Sequence[str]:
        """See `Source.delegates`: where it listens."""
        answer = await self._call("id", {})
        suffix = f"/p2p/{shapes.text(answer.get('ID'))}"
        listed = answer.get("Addresses") or []
        texts = (
            [each for each in listed if isinstance(each, str)] if isinstance(listed, list) else []
        )
        return shapes.multiaddrs(
            [each if each.endswith(suffix) else each + suffix for each in texts]
        )

    async def _call(self, command: str, query: Mapping[str, str]) -> Mapping[str, Any]:
        url = self._url.copy_with(path=f"{self._url.path.rstrip('/')}/api/v0/{command}")
        return shapes.row(
            await self._outbound.ask(
                url, method="POST", query=query, authorization=self._authorization
            )
        )
