"""Another Kubo as the source of an import: its recursive pins and their names, listed by its RPC.

Whoever can reach an RPC controls the whole node behind it. So only administrators may import from
one; the service that accepts imports sees to that, nothing here does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from on_api.core.ipfs.kubo.control import authorization
from on_api.core.net.outbound import Outbound, check_url
from on_api.core.providers import shapes
from on_api.core.providers.base import KUBO, Page, Source, SourceSpec

PAGE_ITEMS = 1000
"""Items of one page, which the import records in one transaction."""


class KuboSource(Source):
    """All pins of one Kubo, ordered by CID.

    They are requested as one JSON text and not as a stream. Where Kubo breaks a stream off, the
    list looks complete: the error comes in a trailer, which Python's HTTP clients don't show. The
    price is that all pins must fit into `ON_API_IMPORTS__MAX_ANSWER`: about 250,000 by default.
    """

    kind = KUBO

    def __init__(self, spec: SourceSpec, outbound: Outbound) -> None:
        """Create the source. `spec.endpoint` is the URL of the RPC. Raises
        `AddressRefused` for one that may not be called."""
        self._outbound = outbound
        self._url = check_url(spec.endpoint or "", allow_private=outbound.limits.allow_private)
        self._authorization = authorization(spec.token)

    async def pages(self, after: str | None = None) -> AsyncIterator[Page]:
        """Yield the pins in pages, as `Source.pages` demands. `after` is the last CID of an earlier
        page: Kubo can't continue there, so all pins are requested again and those up to it are left
        out."""
        answer = await self._call("pin/ls", {"type": "recursive", "names": "true"})
        # Kubo leaves `Keys` out when nothing is pinned.
        pins = shapes.row(answer.get("Keys") or {})
        cids = sorted(cid for cid in pins if after is None or cid > after)
        for start in range(0, len(cids), PAGE_ITEMS):
            page = cids[start : start + PAGE_ITEMS]
            items = [shapes.item(cid, named=shapes.row(pins[cid]).get("Name")) for cid in page]
            yield Page(items, page[-1])

    async def delegates(self) -> Sequence[str]:
        """Return the multiaddrs at which this Kubo serves its content, each with its peer id, as
        `Source.delegates` demands."""
        answer = await self._call("id", {})
        peer = f"/p2p/{shapes.text(answer.get('ID'))}"
        listed = answer.get("Addresses") or []
        addresses = (
            [each for each in listed if isinstance(each, str)] if isinstance(listed, list) else []
        )
        return shapes.multiaddrs(
            [address if address.endswith(peer) else address + peer for address in addresses]
        )

    async def _call(self, command: str, query: Mapping[str, str]) -> Mapping[str, Any]:
        """Return the JSON object that a command of the RPC (such as `pin/ls`) answers. Raises a
        `SourceError`."""
        url = self._url.copy_with(path=f"{self._url.path.rstrip('/')}/api/v0/{command}")
        return shapes.row(
            await self._outbound.ask(
                url, method="POST", query=query, authorization=self._authorization
            )
        )
