"""Large answers that are handed over to nginx, which fetches them from the node itself
(`deploy/nginx.conf`). `traffic/accelerated.py` counts them.
"""

from __future__ import annotations

import asyncio
import re
from hmac import compare_digest

from on_api.core.ipfs.formats.endings import ending_of
from on_api.core.ipfs.gateway_client.connection import NodeAnswer
from on_api.core.services.container import Services
from on_api.core.services.traffic.metering import Charge
from on_api.public.gateway.answers import OURS, Delivery
from on_api.public.gateway.request import GatewayRequest

LOCATION = b"@on_api_node"
"""nginx's location for the node: a name that no URL has."""

_NAME = re.compile(rb"[0-9a-f]{32}")
_WAY_BACK = re.compile(r"[!-~]+")


class Accelerator:
    """Hands answers over to nginx. nginx proves itself by a secret, not by its address, which may
    be another proxy's or another program's on the same machine. A client that could pass for nginx
    would get no bytes and have them charged."""

    def __init__(self, services: Services) -> None:
        settings = services.settings.gateway
        secret = settings.accel_secret
        self._secret = None if secret is None else secret.get_secret_value().encode()
        self._least = settings.accel_min_bytes
        self._threads = services.strangers
        self._answers = services.accelerated

    def name_of(self, request: GatewayRequest, answer: NodeAnswer) -> str | None:
        """Return nginx's name for a request if nginx may fetch the answer; None if on-api must.

        Only answers with a length: clients see if such a one is cut. And only requests without
        repeated headers: nginx passes on the first one alone, which might select something else.
        """
        if self._secret is None or request.method != "GET" or request.is_joined:
            return None
        secret, _, name = request.accel.rpartition(b":")
        if not compare_digest(secret, self._secret) or not _NAME.fullmatch(name):
            return None
        media_type = dict(answer.headers).get(b"content-type", b"")
        is_large = answer.length is not None and answer.length >= max(self._least, 1)
        if answer.status not in {200, 206} or not is_large or ending_of(media_type) is not None:
            return None
        return name.decode()

    async def hand_over(
        self, name: str, path: str, charge: Charge, length: int, delivery: Delivery
    ) -> bool:
        """Charge the whole answer, then tell nginx to fetch it. `path`: with its query, for the
        node.

        Return False, with nothing done, if a budget may not allow it. Raises `DatabaseUnavailable`.
        """
        if not _WAY_BACK.fullmatch(path):
            return False
        gone = delivery.watch()
        try:
            if not await self._threads.in_thread(self._answers.charge, name, charge, length):
                return False
            await asyncio.sleep(0)  # so that a disconnect can be noticed
            if gone.done():
                # nginx may have logged its line before there was a charge to refund.
                await self._threads.in_thread(self._answers.refund, {name: 0})
                delivery.outcome = "client gone"
                return True
        finally:
            gone.cancel()
        redirect = (b"x-accel-redirect", LOCATION)
        await delivery.hand_over([redirect, (b"x-on-api-path", path.encode()), *OURS])
        return True
