"""`kill -9` at random moments of requests that carry an `Idempotency-Key` and are repeated until
they are answered: none is done twice."""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from on_api.tests.conftest import Kubo
from on_api.tests.testing.processes import Home, beside

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="starts and kills whole process trees, as on Linux"
)

PASSING = {409, 503}
"""Statuses of what is to be sent again: it is under way, or was given up."""

Send = Callable[[httpx.Client, str, dict[str, str]], httpx.Response]


def make_key(client: httpx.Client, name: str, headers: dict[str, str]) -> httpx.Response:
    """A key of its own name."""
    body = {"name": name, "scopes": ["files:read"]}
    return client.post("/v1/keys", json=body, headers=headers)


def rotate(client: httpx.Client, _name: str, headers: dict[str, str]) -> httpx.Response:
    """An identity: a request without a body."""
    return client.post("/v1/users/me/identity/rotate", headers=headers)


def pin(client: httpx.Client, name: str, headers: dict[str, str]) -> httpx.Response:
    """A pin of its own name."""
    return client.post("/v2/pins", json={"cid": "bafkqaaa", "name": name}, headers=headers)


def upload(client: httpx.Client, name: str, headers: dict[str, str]) -> httpx.Response:
    """A small file of its own name."""
    return client.put("/v1/files", params={"name": name}, content=name, headers=headers)


@dataclass
class Sender:
    """Does one thing after another, and each until it is answered."""

    home: Home
    key: str
    send: Send
    stopping: threading.Event
    answered: list[dict[str, Any]] = field(default_factory=list)
    broken_off: int = 0

    def run(self) -> None:
        """In a thread."""
        while not self.stopping.is_set():
            name = uuid.uuid4().hex
            self.answered.append(self.until_answered(name, {"Idempotency-Key": name}))

    def until_answered(self, name: str, headers: dict[str, str]) -> dict[str, Any]:
        """The answer, however often it has to be asked for."""
        while True:
            try:
                with self.home.client(self.key) as client:
                    answer = self.send(client, name, headers)
            except httpx.TransportError:
                self.broken_off += 1
                time.sleep(0.05)
                continue
            if answer.status_code not in PASSING:
                assert answer.is_success, answer.text
                return dict(answer.json())
            time.sleep(0.05)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "kills", [2, pytest.param(40, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])]
)
def test_no_twins(home: Home, kubo: Kubo, kills: int) -> None:
    """Each was done once, and what was answered is what there is."""
    home.extra |= {**beside(kubo), "ON_API_FILES__LEASE_SECONDS": "10"}
    key, stopping = home.init(), threading.Event()
    kinds: list[Send] = [make_key, rotate, pin, upload]
    senders = [Sender(home, key, kind, stopping) for kind in kinds]
    threads = [threading.Thread(target=sender.run, daemon=True) for sender in senders]
    for thread in threads:
        thread.start()
    for _ in range(kills):
        with home.serving() as process:
            # The moment is the thing under test, and must be random.
            time.sleep(random.uniform(0.3, 1.0))
            process.send_signal(signal.SIGKILL)
            process.wait()
    with home.serving(), home.client(key) as client:
        stopping.set()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        keys, identities, pins, files = senders
        assert min(len(sender.answered) for sender in senders) > 0
        assert everything(client, "/v2/keys") == {one["id"] for one in keys.answered} | {"first"}
        shown = client.get("/v1/users/me/identities").json()["items"]
        assert {one["id"] for one in shown} == {one["id"] for one in identities.answered}
        assert everything(client, "/v2/files") == {one["id"] for one in files.answered}
        # Some may still be claimed by the worker that was killed.
        every = {"limit": "1", "status": "queued,pinning,pinned,failed"}
        count = client.get("/v1/pins", params=every).json()["count"]
        assert count == len({one["requestid"] for one in pins.answered}) == len(pins.answered)


def everything(client: httpx.Client, url: str) -> set[str]:
    """Ids of a whole list, page by page; of the key that `init` made: `first`."""
    found: set[str] = set()
    cursor: dict[str, str] = {}
    while True:
        page = client.get(url, params={"limit": 1000, **cursor}).json()
        found |= {"first" if one["name"] == "first key" else one["id"] for one in page["items"]}
        if page["next_cursor"] is None:
            return found
        cursor = {"cursor": page["next_cursor"]}
