"""Helpers for pins: CIDs without content, spellings of one CID, requests."""

from __future__ import annotations

import base64
import os
from typing import Any

from on_api.core.ipfs.formats.cid import RAW, SHA2_256, Cid, encode
from on_api.tests.conftest import Account

_BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def some_cid() -> str:
    """Return a CID whose content does not exist."""
    return encode(RAW, SHA2_256, os.urandom(32))


def forms_of(cid: str) -> dict[str, str]:
    """Return a CIDv1 in the bases of multibase, by name (the multibase specification's table)."""
    raw = Cid.from_text(cid).raw
    base32 = base64.b32encode(raw).decode().rstrip("=")
    return {
        "base16": "f" + raw.hex(),
        "base16upper": "F" + raw.hex().upper(),
        "base32upper": "B" + base32,
        "base32hex": "v" + base64.b32hexencode(raw).decode().lower().rstrip("="),
        "base36": "k" + _in_base(raw, _BASE36),
        "base58btc": "z" + _in_base(raw, _BASE58),
        "base64": "m" + base64.b64encode(raw).decode().rstrip("="),
        "base64url": "u" + base64.urlsafe_b64encode(raw).decode().rstrip("="),
    }


def version_0(digest: bytes) -> str:
    """Return the CIDv0 of a sha2-256 digest."""
    return _in_base(bytes((SHA2_256, 32)) + digest, _BASE58)


def add_pin(account: Account, cid: str | None = None, **more: Any) -> dict[str, Any]:
    """Request a pin, by default of content that does not exist, and return the answer."""
    answer = account.client.post("/v1/pins", json={"cid": cid or some_cid(), **more})
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


def list_pins(account: Account, **query: Any) -> dict[str, Any]:
    """Return a page of pins."""
    answer = account.client.get("/v1/pins", params=query)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def charged(account: Account) -> int:
    """Return the bytes that a user is charged for storage."""
    usage = account.client.get("/v1/users/me/usage").json()
    return int(usage["storage"]["bytes"])


def _in_base(raw: bytes, alphabet: str) -> str:
    number, digits = int.from_bytes(raw, "big"), ""
    while number:
        number, digit = divmod(number, len(alphabet))
        digits = alphabet[digit] + digits
    return digits
