"""Answers of the gateway that memory gives alone: it has the bytes, knows that they may be served,
and has credit for them. Nothing is awaited.

Everything that is unusual about a request is left to `gateway.py`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from on_api.core.services.container import Services
from on_api.core.services.gateway.hot_answers import HotAnswer, HotAnswers
from on_api.core.services.traffic.metering import Charge
from on_api.core.services.traffic.tally import Tally
from on_api.public.gateway.request import READ

MOST_TALLIES = 10_000
"""Remembered by root, beside the answers."""

_START = b"/ipfs/"
_random = random.Random()  # noqa: S311 (names for the log, no secrets)


class Memory:
    """What is given without asking anybody. On the event loop only."""

    def __init__(self, services: Services, answers: HotAnswers) -> None:
        settings = services.settings.gateway
        self._answers = answers
        self._policy = services.gateway
        self._meter = services.meter
        self._is_plain = settings.policy != "closed" and not settings.rate_per_ip
        self._tallies: dict[str, Tally] = {}
        self._given = self._given_bytes = 0
        watch = services.metrics.watch
        # Plain numbers: a counter of Prometheus's takes longer than the rest of a hot answer.
        watch("on_api_gateway_hot_size_bytes", "Answers in memory.", lambda: answers.size)
        watch("on_api_gateway_hot_answers", "Given by memory alone.", lambda: self._given)
        watch("on_api_gateway_hot_sent_bytes", "Bytes of these.", lambda: self._given_bytes)

    def quick_answer(
        self, url: bytes, headers: Sequence[tuple[bytes, bytes]]
    ) -> tuple[bytes, bytes] | None:
        """The answer to a GET without a body: its head, but for the line that ends it, and its
        body. It is counted as sent.

        For a server that asks before it makes a scope and a task. None: ask the usual way.
        """
        if not self._is_plain or not url.startswith(_START) or b"#" in url:
            return None
        path, _, query = url.partition(b"?")
        answer = self.recall(path, query, headers)
        if answer is None:
            return None
        return b"%sx-request-id: %016x\r\n" % (answer.head, _random.getrandbits(64)), answer.body

    def recall(
        self, path: bytes, query: bytes, headers: Sequence[tuple[bytes, bytes]]
    ) -> HotAnswer | None:
        """An answer to a GET (its path and query as they came) that may be given as it is; it is
        counted as sent."""
        accept = accept_of(headers)
        if accept is None:
            return None
        answer = self._answers.get((path, query, accept))
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
        return answer

    def tally(self, root: str, charge: Charge) -> Tally:
        """What counts the answers below a root."""
        tally = self._tallies.get(root)
        if tally is None or tally.charge is not charge:
            if len(self._tallies) >= MOST_TALLIES:
                self._tallies.clear()
            tally = self._tallies[root] = Tally(self._meter, charge)
        return tally


def accept_of(headers: Sequence[tuple[bytes, bytes]]) -> bytes | None:
    """`Accept` of a request where it alone selects the representation; None where there is more."""
    accept = b""
    for name, value in headers:
        if name in READ:
            if name != b"accept" or accept:
                return None
            accept = value
    return accept
