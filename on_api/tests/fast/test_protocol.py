"""Answers that the protocol gives later, without a task, beside everything that it hands over."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

from on_api.fast.eligible import EligibleRequest
from on_api.fast.protocol import FastHttp
from on_api.tests.server.test_protocol import END_OF_STREAM, NEXT, Asked, hear_each


class Relaying(Asked):
    """Answers GET requests for `/ipfs/relayed` later, without a task."""

    def answer_at_once(self, request: EligibleRequest) -> None:
        """As a `FastApplication` does that has nothing in memory."""

    def ask_node(self, request: EligibleRequest, client: FastHttp) -> bool:
        """As a `FastApplication` does that has to ask its node."""
        if request.key[0] != b"/ipfs/relayed":
            return False
        self.requests.append(("RELAYED", "/ipfs/relayed", b""))
        head = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n"
        asyncio.get_running_loop().call_soon(client.give, head, b"ok")
        return True


def test_what_is_answered_later_cut_anywhere() -> None:
    """What comes behind a request that waits for such an answer is the next one's, all of it."""
    relayed = NEXT.replace(b"/next", b"/ipfs/relayed")
    stream = relayed + NEXT + relayed + relayed + NEXT
    first = len(relayed)
    cuts = [sorted({0, first - 3, cut, len(stream)}) for cut in range(len(stream))]
    streams = [[stream[a:b] for a, b in pairwise(cut)] for cut in cuts]
    names = ["RELAYED", "GET", "RELAYED", "RELAYED", "GET"]
    heard = hear_each(streams, Relaying, FastHttp)
    for cut, (asked, statuses, _) in zip(cuts, heard, strict=True):
        assert ([name for name, _, _ in asked.requests], statuses) == (names, [200] * 5), cut


class Hot(Asked):
    """Has the answer to `/ipfs/hot` in memory, and takes its time for the first other request."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer, later than the client has closed its side."""
        for _ in range(0 if self.requests else 25):
            await asyncio.sleep(0)
        await super().__call__(scope, receive, send)

    def answer_at_once(self, request: EligibleRequest) -> tuple[bytes, bytes] | None:
        """As a `FastApplication` does."""
        if request.key[0] != b"/ipfs/hot":
            return None
        self.requests.append(("HOT", "/ipfs/hot", b""))
        return b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n", b"ok"

    def ask_node(self, request: EligibleRequest, client: FastHttp) -> bool:
        """As a `FastApplication` does that has no node."""
        return False


def test_who_sends_no_more_is_answered_all_that_was_asked() -> None:
    """Also what is answered at once while it is taken from behind another request."""
    stream = NEXT + NEXT.replace(b"/next", b"/ipfs/hot") + NEXT + NEXT
    [(asked, statuses, _)] = hear_each([[stream, END_OF_STREAM]], Hot, FastHttp)
    assert [name for name, _, _ in asked.requests] == ["GET", "HOT", "GET", "GET"]
    assert statuses == [200] * 4
