"""Another Kubo as a source, over its RPC: its recursive pins with their names.

An RPC gives control over the whole node; the service's rule is that only administrators may name
one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from on_api.core.ipfs.kubo.control import authorization
from on_api.core.net.outbound import Outbound, check_url
from on_api.core.providers import shapes
from on_api.core.providers.base import KUBO, Page, Source, SourceSpec

PAGE_ITEMS = 1000


class KuboSource(Source):
    """The pin set of one Kubo, ordered by CID.

    Requested as one answer, not as a stream: nothing shows that a stream that Kubo broke off is
    short (the reason comes in a trailer that no Python client shows). So the pin set must fit into
    `ON_API_IMPORTS__MAX_ANSWER`: about 250,000 pins by default.
    """

    kind = KUBO

    def __init__(self, spec: SourceSpec, outbound: Outbound) -> None:
        self._outbound = outbound
        url = check_url(spec.endpoint or "", allow_private=outbound.limits.allow_private)
        self._url = url
        self._authorization = authorization(spec.token)

    async def pages(self, after: str | None = None) -> AsyncIterator[Page]:
        """See `Source.pages`. The set is listed anew each time and read from `after` on."""
        answer = await self._call("pin/ls", {"type": "recursive", "names": "true"})
        # Absent when there is nothing pinned.
        pins = shapes.row(answer.get("Keys") or {})
        cids = sorted(cid for cid in pins if after is None or cid > after)
        for start in range(0, len(cids), PAGE_ITEMS):
            page = cids[start : start + PAGE_ITEMS]
            items = [shapes.item(cid, named=shapes.row(pins[cid]).get("Name")) for cid in page]
            yield Page(items, page[-1])

    async def delegates(self) -> Sequence[str]:
        """See `Source.delegates`: the addresses at which it listens."""
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
