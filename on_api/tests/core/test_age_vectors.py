"""The public test vectors of the age format: what succeeds, how the others fail, and that no byte
is given out that shouldn't be."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

import pytest

from on_api.core.crypto.age import (
    AgeError,
    BadArmor,
    BadHeader,
    BadKey,
    BadMac,
    BadPayload,
    Decryptor,
    Identity,
    NoMatch,
    Passphrase,
    X25519Identity,
)
from on_api.core.crypto.kdf import Scrypt
from on_api.core.setting_groups import MIB

pytestmark = pytest.mark.usefixtures("each_aead")

FOLDER = Path(__file__).parent / "vectors" / "age"
EXPECTED: dict[str, type[AgeError] | None] = {
    "success": None,
    "no match": NoMatch,
    "HMAC failure": BadMac,
    "header failure": BadHeader,
    "armor failure": BadArmor,
    "payload failure": BadPayload,
}
HYBRID = "the hybrid post-quantum recipient (ML-KEM-768 with X25519), which on-api doesn't do"
NOT_DONE = {
    "armor_hybrid": HYBRID,
    "hybrid": HYBRID,
    "hybrid_and_x25519": HYBRID,
    "hybrid_bad_tag": HYBRID,
    "hybrid_currupted_enc_mlkem": HYBRID,
    "hybrid_currupted_enc_x25519": HYBRID,
    "hybrid_extra_argument": HYBRID,
    "hybrid_grease": HYBRID,
    "hybrid_identity": HYBRID,
    "hybrid_long_file_key": HYBRID,
    "hybrid_long_share": HYBRID,
    "hybrid_low_order": HYBRID,
    "hybrid_multiple_recipients": HYBRID,
    "hybrid_no_match": HYBRID,
    "hybrid_not_canonical_body": HYBRID,
    "hybrid_not_canonical_enc": HYBRID,
    "hybrid_short_share": HYBRID,
    "hybrid_uppercase": HYBRID,
}
NAMES = sorted(path.name for path in FOLDER.iterdir())
DONE = [name for name in NAMES if name not in NOT_DONE]


def load(name: str) -> tuple[dict[str, list[str]], bytes]:
    """A vector's description, by key, and the age file."""
    text, _, file = (FOLDER / name).read_bytes().partition(b"\n\n")
    description: dict[str, list[str]] = {}
    for line in text.decode().splitlines():
        key, _, value = line.partition(": ")
        description.setdefault(key, []).append(value)
    if "compressed" in description:
        file = zlib.decompress(file)
    return description, file


@pytest.mark.parametrize("name", DONE)
@pytest.mark.parametrize("pieces", ["whole", "small"])
def test_vector(name: str, pieces: str) -> None:
    """The outcome is the one expected, and all that was given out is the payload it names."""
    description, file = load(name)
    scrypt = Scrypt(memory=256 * MIB)
    # One vector has a hybrid identity beside the one that matters.
    identities: list[Identity] = [
        X25519Identity.parse(text)
        for text in description.get("identity", [])
        if not text.startswith("AGE-SECRET-KEY-PQ-1")
    ]
    identities += [Passphrase(text, scrypt) for text in description.get("passphrase", [])]
    step = max(1, len(file) if pieces == "whole" else min(len(file) // 50, 65_551))
    reader = Decryptor(identities, armored="armored" in description)
    out = bytearray()
    error: AgeError | None = None
    try:
        for start in range(0, len(file), step):
            out += reader.update(file[start : start + step])
        out += reader.finish()
    except AgeError as caught:
        error = caught
    expected = EXPECTED[description["expect"][0]]
    if expected is None:
        assert error is None
    else:
        assert isinstance(error, expected), error
    payload = description.get("payload", [hashlib.sha256().hexdigest()])
    assert hashlib.sha256(out).hexdigest() == payload[0]


def test_all_vectors_are_here() -> None:
    """None was lost, and every one not done is one."""
    assert len(NAMES) == 143
    assert set(NOT_DONE) <= set(NAMES)


@pytest.mark.parametrize("name", NOT_DONE)
def test_what_is_not_done_is_said(name: str) -> None:
    """Their identities are refused by name, and nobody else opens their files."""
    description, file = load(name)
    for text in description["identity"]:
        with pytest.raises(BadKey, match="not an X25519 key"):
            X25519Identity.parse(text)
    reader = Decryptor([X25519Identity.generate()], armored="armored" in description)
    with pytest.raises((NoMatch, BadHeader)):
        reader.update(file)
