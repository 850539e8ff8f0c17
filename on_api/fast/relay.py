"""Small answers of the node, relayed without a scope and a task: for content that is not in memory,
but known to be servable.

Anything unusual in the request or in the node's answer is left to the gateway.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from on_api.core.errors import NodeError, OnApiError
from on_api.core.ipfs.formats.endings import ending_of
from on_api.core.ipfs.formats.gateway_path import GatewayPath, read_path, tidied
from on_api.core.ipfs.gateway_client.connection import NodeAnswer, Stale
from on_api.core.services.container import Services
from on_api.core.services.gateway.hot_answers import AnswerKey
from on_api.core.services.traffic.metering import Charge
from on_api.fast.eligible import EligibleRequest
from on_api.fast.memory import Memory
from on_api.fast.wire import with_id
from on_api.public.gateway.answers import Gathering, head_of, with_ours
from on_api.public.gateway.app import Gateway
from on_api.public.gateway.request import NodeOutcome

access_logger = logging.getLogger("on_api.access")
logger = logging.getLogger(__name__)


class Client(Protocol):
    """A client that waits for an answer: a connection of on-api's own server."""

    @property
    def is_gone(self) -> bool:
        """True if the client has gone."""

    @property
    def is_ready(self) -> bool:
        """True if the client takes what it is given."""

    def give(self, head: bytes, body: bytes) -> None:
        """Send an answer: status line and headers, without the line that ends them, and a body."""

    def fall_back(self, outcome: NodeOutcome | None) -> None:
        """Have the application serve the request, with what the node has answered so far."""


class Relay:
    """Asks the node for clients that have neither scope nor task. Used on the event loop only."""

    def __init__(
        self,
        services: Services,
        gateway: Gateway,
        memory: Memory,
        tell: Callable[[int, int, float], None],
    ) -> None:
        """`tell` counts an answer, by its status, the bytes of its body and its seconds."""
        self._gateway = gateway
        self._memory = memory
        self._tell = tell
        self._policy = services.gateway
        self._node = services.node_gateway
        self._is_remembering = services.settings.gateway.cache_bytes > 0
        self._most = services.settings.max_requests

    def begin(self, request: EligibleRequest, client: Client) -> bool:
        """Ask the node. The client gets an answer later, or is sent the ordinary way then. Return
        False if it must take the ordinary way at once."""
        if self._gateway.under_way >= self._most or access_logger.isEnabledFor(logging.DEBUG):
            return False
        path, query, accept = request.key
        if not (query.isascii() and accept.isascii()):
            return False
        try:
            if tidied(path) is not None:
                return False
            target = read_path(path)
            verdict = self._policy.recall(target.normalised)
            if verdict is None or target.root is None:
                return False
            asking = _Asking(self, client, request.key, target, verdict.charges[0])
            sent_on = [("accept", accept.decode())] if accept else []
            if not self._node.get_at_once(
                target.encoded, query.decode(), sent_on, asking.on_outcome
            ):
                return False
        except OnApiError:
            return False
        self._gateway.under_way += 1
        return True

    def ended(self) -> None:
        """Count one request less under way: the node has answered, or failed."""
        self._gateway.under_way -= 1

    def pass_on(self, answer: NodeAnswer, asking: _Asking) -> bool:
        """Give the client the node's answer; return False if that is unusual or lacks credit."""
        body, client = answer.whole, asking.client
        if answer.status != 200 or not body or answer.length is None or not client.is_ready:
            return False
        if ending_of(dict(answer.headers).get(b"content-type", b"")) is not None:
            return False
        if self._is_remembering:
            self._remember(answer, asking, body)
        if not self._memory.tally(asking.target.normalised, asking.charge).take(len(body)):
            return False
        head = head_of(200, with_ours(answer.headers))
        client.give(with_id(head), body)
        self._tell(200, len(body), time.perf_counter() - asking.started)
        return True

    def gone(self, asking: _Asking) -> None:
        """Count a request whose client has gone before the answer."""
        self._tell(0, 0, time.perf_counter() - asking.started)

    def _remember(self, answer: NodeAnswer, asking: _Asking, body: bytes) -> None:
        """Keep an answer in memory, if it is cacheable. Raises `ContentDamaged`."""
        root = asking.target.root
        if root is None:
            return
        gathering = Gathering.of(self._gateway.answers, asking.key, root, "GET", answer)
        if gathering is not None:
            try:
                gathering.take(body)
                gathering.keep()
            finally:
                gathering.end()


class _Asking:
    """A request that waits for the node."""

    __slots__ = ("_relay", "charge", "client", "key", "started", "target")

    def __init__(
        self, relay: Relay, client: Client, key: AnswerKey, target: GatewayPath, charge: Charge
    ) -> None:
        self._relay = relay
        self.client = client
        self.key = key
        self.target = target
        self.charge = charge
        self.started = time.perf_counter()

    def on_outcome(self, outcome: NodeAnswer | NodeError | Stale) -> None:
        """Handle the node's answer or failure: answer, or send the client the ordinary way."""
        self._relay.ended()
        if self.client.is_gone:
            self._relay.gone(self)
            if isinstance(outcome, NodeAnswer):
                outcome.close()
            return
        try:
            if isinstance(outcome, NodeAnswer) and self._relay.pass_on(outcome, self):
                return
        except OnApiError:
            pass  # it happens again on the ordinary way, which answers the error
        except Exception:
            logger.exception("could not relay the node's response")
        self.client.fall_back(None if isinstance(outcome, Stale) else outcome)
