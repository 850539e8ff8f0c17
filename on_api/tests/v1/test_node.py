"""What administrators see of the node."""

from __future__ import annotations

import os

from on_api.tests.conftest import Account
from on_api.tests.testing.deadline import until


def pins(admin: Account) -> int:
    """How many pins the node is said to keep."""
    answer = admin.client.get("/v1/node")
    assert answer.status_code == 200, answer.text
    return int(answer.json()["pins"])


def test_pins_are_counted_when_they_are_asked_for(admin: Account, alice: Account) -> None:
    """Not as they were at the start: who has just uploaded looks whether it is there."""
    before = pins(admin)
    for _ in range(3):
        alice.upload(os.urandom(100))
    until(lambda: pins(admin) == before + 3, "the new pins are counted")
