"""Whatever bytes come as an age file: only errors of ours, no more than was put in, and never
plaintext that isn't the file's."""

from __future__ import annotations

import os
from base64 import encodebytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from on_api.core.crypto.age import (
    CHUNK_BYTES,
    AgeError,
    BadArmor,
    Decryptor,
    Encryptor,
    Passphrase,
    RangeDecryptor,
    X25519Identity,
    unlock,
)
from on_api.core.crypto.age.armor import ArmorReader
from on_api.core.crypto.kdf import Scrypt
from on_api.core.setting_groups import MIB

pytestmark = pytest.mark.usefixtures("each_aead")

ALICE, BOB = X25519Identity.generate(), X25519Identity.generate()
PASSPHRASE = Passphrase("x", Scrypt(memory=MIB), log_n=2, max_log_n=10)
PLAIN = os.urandom(CHUNK_BYTES + 100)


def write(*recipients: X25519Identity | Passphrase, size: int = len(PLAIN)) -> bytes:
    """A file for these."""
    writer = Encryptor([r.recipient if isinstance(r, X25519Identity) else r for r in recipients])
    return bytes(writer.update(PLAIN[:size]) + writer.finish())


def armor(file: bytes) -> bytes:
    """As `age --armor` writes it."""
    lines = encodebytes(file).replace(b"\n", b"")
    body = b"".join(lines[a : a + 64] + b"\n" for a in range(0, len(lines), 64))
    begin, end = (f"-----{word} AGE ENCRYPTED FILE-----\n".encode() for word in ("BEGIN", "END"))
    return begin + body + end


def read(file: bytes, step: int, *, armored: bool = False) -> bytes:
    """What is given out, up to the first error of ours."""
    reader = Decryptor([BOB, PASSPHRASE], armored=armored)
    plain = bytearray()
    try:
        for start in range(0, len(file), step):
            plain += reader.update(file[start : start + step])
        plain += reader.finish()
    except AgeError:
        pass
    return bytes(plain)


FILES = [write(BOB), write(ALICE, BOB, size=20), write(PASSPHRASE, size=20), write(BOB, size=0)]
ARMORED = [armor(file) for file in FILES]
FRAGMENTS = [
    b"age-encryption.org/v1\n",
    b"age-encryption.org/v2\n",
    b"-> X25519 ",
    b"-> scrypt ",
    b"-> ",
    b"--- ",
    b"\n",
    b" ",
    b"A" * 43,
    b"A" * 64 + b"\n",
    b"18",
    b"99999999999999999999",
    b"\r\n",
    b"=",
    b"\x00",
    b"\xff" * 20,
    b"-----END AGE ENCRYPTED FILE-----",
]
NOISE = st.binary(max_size=40) | st.sampled_from(FRAGMENTS)
STEPS = st.sampled_from([1, 77, 10**9])


@st.composite
def edited(draw: st.DrawFn, files: list[bytes]) -> bytes:
    """One of the files, with a few bytes changed, lost, doubled or put in, mostly in its header."""
    file = draw(st.sampled_from(files))
    for _ in range(draw(st.integers(1, 4))):
        where = draw(st.integers(0, min(len(file), 420)) | st.integers(0, len(file)))
        length = draw(st.integers(0, 70))
        middle = draw(NOISE | st.just(file[where : where + length] * 2))
        file = file[:where] + middle + file[where + length :]
    return file


@settings(deadline=5000, max_examples=400)
@given(file=edited(FILES), step=STEPS)
def test_damaged_files(file: bytes, step: int) -> None:
    """Nothing but the beginning of the true plaintext."""
    assert PLAIN.startswith(read(file, max(step, len(file) // 1000)))


@settings(deadline=5000, max_examples=300)
@given(file=edited(ARMORED), step=STEPS)
def test_damaged_armor(file: bytes, step: int) -> None:
    """The same."""
    assert PLAIN.startswith(read(file, max(step, len(file) // 1000), armored=True))


@settings(deadline=5000, max_examples=400)
@given(parts=st.lists(NOISE, max_size=30), step=STEPS, start=st.booleans(), armored=st.booleans())
def test_noise(parts: list[bytes], step: int, start: bool, armored: bool) -> None:
    """Nothing at all."""
    file = (FRAGMENTS[0] if start else b"") + b"".join(parts)
    assert read(armor(file) if armored and step > 1 else file, step, armored=armored) == b""


@settings(deadline=5000, max_examples=200)
@given(
    payload=st.binary(max_size=200),
    size=st.integers(-20, 5 * CHUNK_BYTES),
    offset=st.integers(0, CHUNK_BYTES),
    length=st.integers(0, CHUNK_BYTES),
)
def test_ranges_of_noise(payload: bytes, size: int, offset: int, length: int) -> None:
    """Behind a true header, whatever the file's size is said to be."""
    unlocked = unlock(FILES[0], [BOB])
    plain = b""
    try:
        layout = unlocked.layout(unlocked.start_size + size)
        offset = min(offset, layout.plaintext_size)
        span = layout.span(offset, min(length, layout.plaintext_size - offset))
        reader = RangeDecryptor(unlocked, span)
        if span.final is not None:
            reader.check_final(payload)
        plain = bytes(reader.update(payload) + reader.finish())
    except AgeError:
        pass
    assert plain == b""


def test_armor_is_never_gathered() -> None:
    """Lines have an end; white space around the block may go on and is forgotten."""
    begin, end = ARMORED[3].split(b"\n", 1)[0] + b"\n", ARMORED[3].rstrip().rsplit(b"\n", 1)[1]
    for start in (b"-" * 70, begin + b"A" * 66, begin + b"A" * 66 + b"\n"):
        with pytest.raises(BadArmor):
            ArmorReader().update(start)
    reader = ArmorReader()
    for piece in (*[b" \r\n\t" * 1000] * 10, begin, end, *[b" \n" * 1000] * 10):
        assert reader.update(piece) == b""
        assert reader.held <= len(begin)
    reader.finish()
    with pytest.raises(BadArmor):
        ArmorReader().finish()


def test_the_files_themselves() -> None:
    """What the damage is done to is whole."""
    for files, armored in ((FILES, False), (ARMORED, True)):
        for file, size in zip(files, (len(PLAIN), 20, 20, 0), strict=True):
            assert read(file, 1000, armored=armored) == PLAIN[:size]
