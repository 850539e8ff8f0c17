"""Digests that clients declare: what is compared, and how much of it."""

from __future__ import annotations

import base64
import hashlib

import pytest

from on_api.core.errors import BadRequest
from on_api.core.web.digests import MOST_DIGESTS, SentDigests

BODY = b"hello"
RIGHT = base64.b64encode(hashlib.sha256(BODY).digest())


def test_each_algorithm_is_computed_once() -> None:
    """However often, and in whichever header, its digest is declared."""
    declared = [(b"digest", b"sha-256=" + RIGHT)] * 3
    declared += [(b"content-digest", b"sha-256=:" + RIGHT + b":, unknown=:AAAA:")]
    digests = SentDigests(declared)
    digests.update(BODY)
    digests.check()
    digests.update(b"!")
    with pytest.raises(BadRequest, match="sha256"):
        digests.check()


def test_of_two_digests_both_must_be_right() -> None:
    """One body has one digest."""
    wrong = base64.b64encode(bytes(32))
    digests = SentDigests([(b"digest", b"sha-256=" + RIGHT + b",sha-256=" + wrong)])
    digests.update(BODY)
    with pytest.raises(BadRequest):
        digests.check()


@pytest.mark.parametrize(
    "value",
    [
        b"md5=",
        b"md5=::",
        b"md5=,md5=",
        b"md5=AAAA",
        b"sha-256=" + RIGHT + b"=",
        b"md5=" + b" " * 60_000 + b"!",
        b",".join(b"md5=" + base64.b64encode(bytes([n] * 16)) for n in range(MOST_DIGESTS + 1)),
    ],
    ids=["empty", "empty in colons", "empty twice", "short", "padded", "blanks", "too many"],
)
def test_what_is_no_digest_is_refused(value: bytes) -> None:
    """Before any of the body is read: each would cost its length again."""
    with pytest.raises(BadRequest):
        SentDigests([(b"digest", value)])
