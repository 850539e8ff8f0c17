"""The header of age files: one way to write it, and every other refused; bounded."""

from __future__ import annotations

import pytest

from on_api.core.crypto.age import (
    BadHeader,
    BadMac,
    Decryptor,
    Encryptor,
    NoMatch,
    UnsupportedVersion,
    X25519Identity,
    unlock,
)
from on_api.core.crypto.age.header import Header
from on_api.core.crypto.age.stanza import Stanza

ALICE, BOB = X25519Identity.generate(), X25519Identity.generate()
MAC = "A" * 43


def test_written_and_read() -> None:
    """Bodies of every length around a line's end come back."""
    for length in (0, 1, 47, 48, 49, 95, 96, 97):
        stanza = Stanza(("example.com/x", "!", "~"), bytes(range(length)))
        header = Header.seal([stanza, stanza], bytes(16))
        assert Header.parse(header.encoded).stanzas == (stanza, stanza)


@pytest.mark.parametrize(
    "text",
    [
        f"-> X25519 {MAC}\n{MAC}\n",
        f"--- {MAC}\n",
        f"-> x\n\n--- {MAC}\n\n",
        f"-> x\n\n--- {MAC}\nmore\n",
        f"-> x\n\n---{MAC}\n",
        f"-> x\n\n--- {MAC}=\n",
        f"-> x\n\n--- {MAC[1:]}B\n",
        f"-> x\n\n--- {MAC[1:]}\n",
        f"-> x\n--- {MAC}\n",
        f"->\n\n--- {MAC}\n",
        f"-> \n\n--- {MAC}\n",
        f"-> x \n\n--- {MAC}\n",
        f"->  x\n\n--- {MAC}\n",
        f"-> x\ty\n\n--- {MAC}\n",
        f"-> é\n\n--- {MAC}\n",
        f"->x\n\n--- {MAC}\n",
        f"x\n\n--- {MAC}\n",
        f"-> x\nAB\n--- {MAC}\n",
        f"-> x\nAA==\n--- {MAC}\n",
        f"-> x\nAA\nAA\n--- {MAC}\n",
        f"-> x\n{'A' * 64}\n--- {MAC}\n",
        f"-> x\n{'A' * 65}\n\n--- {MAC}\n",
        f"-> x\n\n\n--- {MAC}\n",
        f"-> scrypt x 1\n\n-> x\n\n--- {MAC}\n",
    ],
)
def test_every_other_spelling(text: str) -> None:
    """Refused, and before any key is tried."""
    with pytest.raises(BadHeader):
        Header.parse(b"age-encryption.org/v1\n" + text.encode())


def test_other_files() -> None:
    """Of another version, or none at all: told from their first bytes."""
    for start in (
        b"age-encryption.org/v2\n",
        b"age-encryption.org/v1\r\n",
        b"age-encryption.org/x",
    ):
        with pytest.raises(UnsupportedVersion):
            Decryptor([ALICE]).update(start)
    for start in (b"\x89PNG", b"age-encryptiom", b"-----BEGIN AGE ENCRYPTED FILE-----", b"\n"):
        with pytest.raises(BadHeader):
            Decryptor([ALICE]).update(start)


def test_nothing_can_be_put_in() -> None:
    """A recipient added by somebody, or taken away, breaks the MAC; a file for others says so."""
    start = Encryptor([ALICE.recipient, BOB.recipient]).start
    unlock(start, [ALICE])
    line, first, rest = start.split(b"-> ", 2)
    for changed in (line + b"-> " + first + start[len(line) :], line + b"-> " + first):
        end = b"--- " + start.split(b"\n--- ")[1]
        changed = changed if b"\n--- " in changed else changed + end
        with pytest.raises(BadMac):
            unlock(changed, [ALICE])
    with pytest.raises(NoMatch):
        unlock(start, [X25519Identity.generate()])
    with pytest.raises(NoMatch):
        unlock(start, [])
    assert rest


def test_bounded() -> None:
    """Hundreds of recipients, but no more than a reader takes."""
    unlock(Encryptor([ALICE.recipient] * 600).start, [ALICE])
    with pytest.raises(BadHeader, match="65536"):
        Encryptor([ALICE.recipient] * 700)
    with pytest.raises(BadHeader, match="65536"):
        Decryptor([ALICE]).update(b"age-encryption.org/v1\n-> x" + b"y" * 70_000)
