"""The gateway's answers from memory alone: the bytes are in memory, known to be servable, and
covered by credit. Nothing is awaited.

Requests with anything unusual are left to the gateway.
"""

from __future__ import annotations

from on_api.core.services.container import Services
from on_api.core.services.gateway.hot_answers import HotAnswers
from on_api.core.services.traffic.metering import Charge
from on_api.fast.eligible import EligibleRequest
from on_api.fast.hot_counter import HotCounter
from on_api.fast.wire import with_id

MOST_TALLIES = 10_000
"""Tallies kept, one for each root; beyond that, all are dropped."""


class Memory:
    """Answers that need neither database nor node. Used on the event loop only."""

    def __init__(self, services: Services, answers: HotAnswers) -> None:
        self._answers = answers
        self._policy = services.gateway
        self._meter = services.meter
        self._tallies: dict[str, HotCounter] = {}
        self._given = self._given_bytes = 0
        watch = services.metrics.watch
        # Plain numbers: a Prometheus counter takes longer than the rest of a hot answer.
        watch(
            "on_api_gateway_hot_answers",
            "Responses served directly from memory.",
            lambda: self._given,
        )
        watch(
            "on_api_gateway_hot_sent_bytes",
            "Bytes of responses served directly from memory.",
            lambda: self._given_bytes,
        )

    def answer(self, request: EligibleRequest) -> tuple[bytes, bytes] | None:
        """Return the head (without the line that ends it) and the body of an answer that may be
        sent as it is, with a request id of its own; it is counted as sent. Otherwise None."""
        answer = self._answers.get(request.key)
        if answer is None or not answer.body:
            return None
        verdict = self._policy.recall(answer.root)
        if verdict is None:
            return None
        size = len(answer.body)
        if not self.tally(answer.root, verdict.charges[0]).take(size):
            return None
        self._given += 1
        self._given_bytes += size
        return with_id(answer.head), answer.body

    def tally(self, root: str, charge: Charge) -> HotCounter:
        """Return the tally that counts the answers below a root."""
        tally = self._tallies.get(root)
        if tally is None or tally.charge is not charge:
            if len(self._tallies) >= MOST_TALLIES:
                self._tallies.clear()
            tally = self._tallies[root] = HotCounter(self._meter, charge)
        return tally
