"""`/ipfs`: the answers of the node's own gateway, for clients that may have them.

A pure ASGI application beside the framework's, since most of its work takes microseconds.
`services/gateway/policy.py` decides what may be served.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from starlette.types import Receive, Scope, Send

from on_api.core.errors import (
    BadRequest,
    EgressBudgetExceeded,
    Gone,
    InternalError,
    LegallyUnavailable,
    NodeError,
    NotFound,
    OnApiError,
    RateLimited,
    ServiceUnavailable,
    Unauthorized,
)
from on_api.core.ipfs.formats.gateway_path import GatewayPath, read_path, tidied
from on_api.core.ipfs.gateway_client.connection import NodeAnswer
from on_api.core.ipfs.gateway_client.heads import Headers
from on_api.core.logging import EXTRA, log_failure, request_id
from on_api.core.services.accounts import access
from on_api.core.services.accounts.access import Principal
from on_api.core.services.container import Services
from on_api.core.services.gateway.hot_answers import HotAnswers
from on_api.core.services.gateway.policy import Verdict
from on_api.core.services.shared.rate_limits import headers_of
from on_api.core.services.traffic.metering import Charge, Kind, Ticket
from on_api.public.gateway.accel import Accelerator
from on_api.public.gateway.answers import (
    Delivery,
    Gathering,
    as_headers,
    kept_private,
    with_ours,
)
from on_api.public.gateway.request import PASSED_ON, GatewayRequest, address_of

access_logger = logging.getLogger("on_api.access")
logger = logging.getLogger(__name__)

_METHODS = ("GET", "HEAD", "OPTIONS")
_NOBODYS = Charge(Kind.GATEWAY, None)


class Gateway:
    """The gateway's ASGI application. Its services live as long as the process."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._policy = services.gateway
        self._node = services.node_gateway
        self._meter = services.meter
        self._closed = services.settings.gateway.policy == "closed"
        self._serves_any = services.settings.gateway.policy == "local"
        self._fallback = services.settings.gateway.fallback_url
        answers = self.answers = HotAnswers(services.settings.gateway.cache_bytes)
        services.metrics.watch(
            "on_api_gateway_hot_size_bytes", "Responses served from memory.", lambda: answers.size
        )
        self._accelerator = Accelerator(services)
        self._limits = services.rate_limits
        self._is_limited = bool(services.settings.gateway.rate_per_ip)
        self._most = services.settings.max_requests
        self.under_way = 0
        """Requests that are being answered, including those of a fast lane."""
        self._sent_bytes = services.metrics.sent_bytes.labels("/ipfs")
        self._measures = cache(
            lambda method, status: (
                services.metrics.requests.labels(method, "/ipfs", status),
                services.metrics.request_seconds.labels(method, "/ipfs"),
            )
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        limit_headers: Headers = []
        refusal = None
        if self._is_limited:
            try:
                limit_headers = as_headers(
                    headers_of(self._limits.count_address(address_of(scope)))
                )
            except RateLimited as error:
                refusal = error
        await self._serve(scope, receive, send, limit_headers, refusal)

    async def _serve(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        extra_headers: Headers,
        refusal: OnApiError | None,
    ) -> None:
        """Answer a request, log it and count it."""
        identity = _new_id()
        token = request_id.set(identity)
        started = time.perf_counter()
        delivery = Delivery(
            scope, receive, send, [*extra_headers, (b"x-request-id", identity.encode())]
        )
        self.under_way += 1
        request = GatewayRequest.of(scope)
        try:
            if refusal is not None:
                raise refusal
            with self._limits.connection(address_of(scope)):
                await self._answer(request, delivery, scope["path"])
        except OnApiError as error:
            await self._fail(delivery, error)
        except asyncio.CancelledError:
            delivery.outcome = "client gone"
            raise
        except Exception:
            logger.exception("a request failed")
            words = (
                "An internal error occurred on the server; the log entry has the request ID"
                f" {identity}."
            )
            await self._fail(delivery, InternalError(words))
        finally:
            self.under_way -= 1
            if isinstance(request.node_outcome, NodeAnswer):
                request.node_outcome.close()
            self._tell(scope, delivery, time.perf_counter() - started)
            request_id.reset(token)

    async def _fail(self, delivery: Delivery, error: OnApiError) -> None:
        if error.status >= 500:
            log_failure(logger, f"answered {error.status} {error.reason}", error.__cause__)
        if delivery.status:
            # No honest end is possible any more: returning makes the server cut the connection.
            delivery.outcome = "cut"
        else:
            await delivery.refusal(error)

    async def _answer(self, request: GatewayRequest, delivery: Delivery, path: str) -> None:
        if self.under_way > self._most:
            self._services.metrics.refused.inc()
            raise ServiceUnavailable("Too many simultaneous requests.", retry_after=1)
        if request.method not in _METHODS:
            headers = [(b"allow", ", ".join(_METHODS).encode())]
            words = f"Method {request.method} not allowed: read only access\n"
            await delivery.words(405, words, headers)
            return
        if not path.startswith("/ipfs"):
            raise NotFound(
                "on-api does not serve names (/ipns), since resolving them requires the network."
            )
        if request.headers.get(b"service-worker", b"").strip() == b"script":
            raise BadRequest("navigator.serviceWorker: registration is not allowed for this scope")
        elsewhere = tidied(request.raw_path)
        if elsewhere is not None:
            query = b"?" + request.query if request.query else b""
            await delivery.redirect(307, (elsewhere + query).decode("latin-1"), [])
            return
        target = read_path(request.raw_path)
        if request.method == "OPTIONS":
            await self._relay_words(request, delivery, target, {200, 204})
            return
        principal = await self._principal(request)
        if target.root is None:
            await self._refuse_root(request, delivery, target)
            return
        verdict = await self._verdict(target)
        await self._give(request, delivery, target, verdict, principal)

    async def _principal(self, request: GatewayRequest) -> Principal | None:
        """Return the principal of the request's API key, or None without one. Raises `Unauthorized`
        for a bad key, and for none if the policy is `closed`; `RateLimited`; `Forbidden` for a key
        that may not read files, if the policy is `closed`."""
        kind, _, secret = request.headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() != b"bearer":
            if self._closed:
                raise Unauthorized
            return None
        key = secret.strip().decode("latin-1")
        principal = await self._services.key_lookups.principal_of(key, self._limits.count_key)
        if self._closed:
            principal.require(access.Scope.FILES_READ)
        return principal

    async def _verdict(self, target: GatewayPath) -> Verdict:
        """Return the verdict for a target that is served; raise the error to answer otherwise."""
        root = target.root
        if root is None:
            raise NotFound
        verdict = self._policy.recall(target.normalised)
        if verdict is None:
            if self._serves_any:
                await self._services.private_blocks.find_all()
            verdict = await self._services.strangers.in_thread(self._policy.decide, root)
        if verdict.denied is not None:
            raise Gone if verdict.denied == Gone.status else LegallyUnavailable
        if not verdict.served:
            raise NotFound
        return verdict

    async def _give(
        self,
        request: GatewayRequest,
        delivery: Delivery,
        target: GatewayPath,
        verdict: Verdict,
        principal: Principal | None,
    ) -> None:
        charges = verdict.charges
        if principal is not None:
            charges = [replace(charge, key_id=principal.key_id) for charge in charges]
        try:
            if not await self._give_hot(request, delivery, charges):
                await self._give_nodes(request, delivery, target, charges)
        except EgressBudgetExceeded as error:
            is_public = verdict.is_listed and not self._closed
            if delivery.status or not (error.redirectable and self._fallback and is_public):
                raise
            query = f"?{request.query_text}" if request.query else ""
            location = f"{self._fallback}{target.encoded}{query}"
            await delivery.redirect(302, location, [(b"cache-control", b"no-store")])

    async def _give_hot(
        self, request: GatewayRequest, delivery: Delivery, charges: Sequence[Charge]
    ) -> bool:
        answer = self.answers.get(request.key)
        if answer is None:
            return False
        asked = {name: value for name, value in request.headers.items() if name in PASSED_ON}
        known = answer.to(request.method, asked)
        if known is None:
            return False
        status, headers, body = known
        ticket = await self._ticket(charges, len(body))
        try:
            headers = kept_private(headers) if self._closed else headers
            await delivery.whole(status, headers, body, ticket)
        finally:
            ticket.close(delivery.status)
        return True

    async def _give_nodes(
        self,
        request: GatewayRequest,
        delivery: Delivery,
        target: GatewayPath,
        charges: Sequence[Charge],
    ) -> None:
        if isinstance(request.node_outcome, NodeError):
            raise request.node_outcome
        answer = request.node_outcome or await self._ask(request, target)
        gathering = None
        try:
            if await self._hand_over(request, delivery, target, charges, answer):
                return
            headers = with_ours(answer.headers)
            if self._closed:
                headers = kept_private(headers)
            ticket = await self._ticket(charges, answer.length)
            try:
                if target.root is not None and request.is_unconditional:
                    gathering = Gathering.of(
                        self.answers, request.key, target.root, request.method, answer
                    )
                await delivery.relay(answer, headers, ticket, gathering)
            finally:
                ticket.close(delivery.status)
        finally:
            answer.close()
            if gathering is not None:
                gathering.end()

    async def _ask(self, request: GatewayRequest, target: GatewayPath) -> NodeAnswer:
        """Return the node's answer. The node fails if a range counts from the end and asks for more
        bytes than there are; such a request is repeated for all of them."""
        path, query = target.encoded, request.query_text
        answer = await self._node.ask(request.method, path, query, request.sent_on)
        if not request.counts_from_the_end:
            return answer
        is_empty = dict(answer.headers).get(b"content-length") == b"0"
        if answer.status == 500 or (answer.status == 206 and is_empty):
            answer.close()
            spelled = request.from_the_beginning().sent_on
            answer = await self._node.ask(request.method, path, query, spelled)
        return answer

    async def _hand_over(
        self,
        request: GatewayRequest,
        delivery: Delivery,
        target: GatewayPath,
        charges: Sequence[Charge],
        answer: NodeAnswer,
    ) -> bool:
        """Have nginx fetch the answer if that is allowed. Budgets that are nearly used up, and a
        second account to charge, are left to the ordinary way."""
        name = None if self._closed else self._accelerator.name_of(request, answer)
        if name is None or answer.length is None:
            return False
        query = f"?{request.query_text}" if request.query else ""
        path = f"{target.encoded}{query}"
        return await self._accelerator.hand_over(name, path, charges[0], answer.length, delivery)

    async def _ticket(self, charges: Sequence[Charge], length: int | None) -> Ticket:
        """Open a ticket for the first charge with budget left. Raises `EgressBudgetExceeded`."""
        *others, last = charges
        for charge in others:
            try:
                return await self._meter.open(charge, length)
            except EgressBudgetExceeded:
                continue
        return await self._meter.open(last, length)

    async def _refuse_root(
        self, request: GatewayRequest, delivery: Delivery, target: GatewayPath
    ) -> None:
        """Answer a path without a valid CID in the node's words. The node may read more as a CID
        than on-api does, but none of that is served."""
        moves = not target.has_root or target.encoded.startswith(("/ipfs/ipfs/", "/ipfs/ipns/"))
        await self._relay_words(request, delivery, target, {400, 301} if moves else {400})

    async def _relay_words(
        self, request: GatewayRequest, delivery: Delivery, target: GatewayPath, statuses: set[int]
    ) -> None:
        """Relay an answer of the node that holds no content of users. Raises `BadRequest` if it has
        another status than these."""
        answer = await self._node.ask(
            request.method, target.encoded, request.query_text, request.sent_on
        )
        try:
            if answer.status not in statuses:
                raise BadRequest("on-api does not support this CID.")
            ticket = await self._ticket([_NOBODYS], answer.length)
            try:
                await delivery.relay(answer, with_ours(answer.headers), ticket, None)
            finally:
                ticket.close(delivery.status)
        finally:
            answer.close()

    def _tell(self, scope: Scope, delivery: Delivery, seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self.count(method, delivery.status, delivery.sent, seconds)
        fine = 200 <= delivery.status < 400 and delivery.outcome != "cut"
        level = logging.DEBUG if fine else logging.INFO
        if access_logger.isEnabledFor(level):
            fields = {
                "status": delivery.status or "-",
                "outcome": delivery.outcome,
                "bytes_out": delivery.sent,
                "ms": round(seconds * 1000, 1),
                "client": scope["client"][0] if scope.get("client") else "-",
            }
            access_logger.log(level, "%s %s", scope["method"], scope["path"], extra={EXTRA: fields})

    def count(self, method: str, status: int, sent: int, seconds: float) -> None:
        """Count an answer: its status, the bytes of its body, and its seconds."""
        count, clock = self._measures(method, status)
        count.inc()
        clock.observe(seconds)
        self._sent_bytes.inc(sent)


def _new_id() -> str:
    return f"{random.getrandbits(64):016x}"
