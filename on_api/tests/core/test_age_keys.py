"""age's keys as text, Bech32 under them, and passphrases: strict, and silent about secrets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from on_api.core.crypto import kdf
from on_api.core.crypto.age import (
    BadHeader,
    BadKey,
    BadPassphrase,
    BadRecipients,
    Decryptor,
    Encryptor,
    Passphrase,
    Recipient,
    WorkFactorTooHigh,
    X25519Identity,
    X25519Recipient,
    bech32,
    unlock,
)
from on_api.core.crypto.age.header import Header
from on_api.core.crypto.age.stanza import Stanza
from on_api.core.crypto.kdf import Scrypt
from on_api.core.setting_groups import MIB

IDENTITY = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX"
RECIPIENT = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"
PRIME = 2**255 - 19
LOW_ORDER = [
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    PRIME - 1,
    PRIME,
    PRIME + 1,
]
"""Every point of low order that 32 bytes can spell (https://cr.yp.to/ecdh.html#validate)."""


def test_the_specifications_example() -> None:
    """Identity to recipient, both ways of writing."""
    identity = X25519Identity.parse(IDENTITY)
    assert identity.secret == b"\x42" * 32
    assert identity.export() == IDENTITY
    assert str(identity.recipient) == RECIPIENT
    assert X25519Recipient.parse(RECIPIENT).point == identity.recipient.point


def test_new_identities() -> None:
    """Each is another, and survives being written."""
    first, second = X25519Identity.generate(), X25519Identity.generate()
    assert first.secret != second.secret
    assert X25519Identity.parse(first.export()).secret == first.secret
    assert X25519Recipient.parse(str(first.recipient)).point == first.recipient.point


def test_secrets_are_not_shown() -> None:
    """Whatever a log does with them."""
    identity = X25519Identity.parse(IDENTITY)
    passphrase = Passphrase("open sesame", Scrypt(memory=MIB))
    for shown in (str(identity), repr(identity), f"{[identity]}"):
        assert IDENTITY not in shown
        assert str(identity.secret) not in shown
        assert identity.secret.hex() not in shown
    assert "sesame" not in f"{passphrase} {passphrase!r}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "age1",
        RECIPIENT.upper(),
        RECIPIENT[:-1] + "J",
        RECIPIENT[:-1],
        RECIPIENT + "q",
        RECIPIENT + "\n",
        " " + RECIPIENT,
        RECIPIENT.replace("zvkyg", "zvkyh"),
        IDENTITY,
        bech32.encode("age", bytes(31)),
        bech32.encode("age", b"\x42" * 33),
        bech32.encode("age1tag", b"\x42" * 32),
        bech32.encode("ago", b"\x42" * 32),
        "age1" + "q" * 100_000,
        "åge1" + RECIPIENT[4:],
    ],
)
def test_what_is_no_recipient(text: str) -> None:
    """One spelling, lower case, the right length and type."""
    with pytest.raises(BadKey):
        X25519Recipient.parse(text)


@pytest.mark.parametrize(
    "text", ["", IDENTITY.lower(), IDENTITY.title(), IDENTITY[:-1], RECIPIENT, f"# {IDENTITY}"]
)
def test_what_is_no_identity(text: str) -> None:
    """One spelling, upper case; and the message doesn't repeat it."""
    with pytest.raises(BadKey) as caught:
        X25519Identity.parse(text)
    assert text[20:] not in str(caught.value) or not text[20:]
    with pytest.raises(BadKey):
        X25519Identity(b"short")


@pytest.mark.parametrize("high_bit", [0, 1 << 255])
@pytest.mark.parametrize("coordinate", LOW_ORDER)
def test_points_of_low_order(coordinate: int, high_bit: int) -> None:
    """With these everybody would agree on zero."""
    point = (coordinate | high_bit).to_bytes(32, "little")
    with pytest.raises(BadKey):
        X25519Recipient(point)
    with pytest.raises(BadKey):
        X25519Recipient.parse(bech32.encode("age", point))


@pytest.mark.parametrize(
    "text",
    [
        "A12UEL5L",
        "a12uel5l",
        "an83characterlonghumanreadablepartthatcontainsthenumber1andtheexcludedcharactersbio1tt5tgs",
        "abcdef1qpzry9x8gf2tvdw0s3jn54khce6mua7lmqqqxw",
        f"11{'q' * 82}c8247j",
        "split1checkupstagehandshakeupstreamerranterredcaperred2y9e3w",
        "?1ezyfcl",
    ],
)
def test_valid_bech32(text: str) -> None:
    """BIP 173's own list; written back it is the same."""
    prefix, data = bech32.decode(text)
    assert bech32.encode(prefix.lower(), data) == text.lower()


@pytest.mark.parametrize(
    "text",
    [
        "\x201nwldj5",
        "\x7f1axkwrx",
        "\x801eym55h",
        "pzry9x0s0muk",
        "1pzry9x0s0muk",
        "x1b4n0q5v",
        "li1dgmt3",
        "de1lg7wt\xff",
        "A1G7SGD8",
        "10a06t8",
        "1qzzfhee",
        "split1cheo2y9e2w",
        "spl\x7ft1checkupstagehandshakeupstreamerranterredcaperred2y9e3w",
    ],
)
def test_invalid_bech32(text: str) -> None:
    """BIP 173's own list."""
    with pytest.raises(BadKey):
        bech32.decode(text)


@pytest.mark.parametrize("values", [[0], [3, 1], [1, 16, 0], [0] * 51 + [1], [0] * 51 + [8]])
def test_bits_that_no_byte_has(values: list[int]) -> None:
    """A true checksum doesn't help: what is left of the last group must be zero, and short."""
    check = bech32.polymod([*bech32.expand("age"), *values, *[0] * 6]) ^ 1
    values = [*values, *((check >> shift) & 31 for shift in range(25, -1, -5))]
    with pytest.raises(BadKey, match="padding"):
        bech32.decode("age1" + "".join(bech32.CHARSET[value] for value in values))


@given(data=st.binary(max_size=80), where=st.integers(0), new=st.sampled_from(bech32.CHARSET))
def test_bech32_notices_a_mistyped_character(data: bytes, where: int, new: str) -> None:
    """Round trip, and the checksum's promise."""
    text = bech32.encode("age", data)
    assert bech32.decode(text) == ("age", data)
    where = 4 + where % (len(text) - 4)
    changed = text[:where] + new + text[where + 1 :]
    if changed != text:
        with pytest.raises(BadKey):
            bech32.decode(changed)


@given(text=st.text(max_size=120))
def test_noise_is_no_key(text: str) -> None:
    """And raises nothing else."""
    for parse in (X25519Recipient.parse, X25519Identity.parse):
        with pytest.raises(BadKey):
            parse(text)


def encrypted(passphrase: Passphrase, plain: bytes = b"hello") -> bytes:
    """A small file for a passphrase."""
    writer = Encryptor([passphrase])
    return bytes(writer.update(plain) + writer.finish())


def test_passphrases() -> None:
    """The right one opens; a wrong one is told from a file for others."""
    scrypt = Scrypt(memory=MIB)
    file = encrypted(Passphrase("pässword 密码", scrypt, log_n=8))
    reader = Decryptor([Passphrase("wrong", scrypt), Passphrase("pässword 密码", scrypt)])
    assert reader.update(file) + reader.finish() == b"hello"
    with pytest.raises(BadPassphrase):
        Decryptor([X25519Identity.generate(), Passphrase("wrong", scrypt)]).update(file)
    for unusable in ("", "\ud800"):
        with pytest.raises(BadKey):
            Passphrase(unusable, scrypt)


def test_a_passphrase_is_alone() -> None:
    """Also where it is not the only one of its kind."""
    passphrase = Passphrase("x", Scrypt(memory=MIB), log_n=1)
    mixtures: list[list[Recipient]] = [
        [],
        [passphrase, passphrase],
        [X25519Recipient.parse(RECIPIENT), passphrase],
    ]
    for recipients in mixtures:
        with pytest.raises(BadRecipients):
            Encryptor(recipients)


@pytest.mark.parametrize("factor", ["0", "01", "+1", "-1", "1x", "x1", "1.", "0x1", "1_0"])
def test_what_is_no_work_factor(factor: str) -> None:
    """Digits, and no zero before them."""
    stanza = Stanza(("scrypt", "A" * 22, factor), bytes(32))
    start = Header.seal([stanza], bytes(16)).encoded + bytes(16)
    with pytest.raises(BadHeader):
        unlock(start, [Passphrase("x", Scrypt(memory=MIB))])


def test_work_factors_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the reader's own limit, and by the memory there is; nothing is spent to find out."""
    roomy = Scrypt(memory=64 * MIB)
    file = encrypted(Passphrase("x", roomy, log_n=12))  # 4 MiB

    def refuse(*_: object, **__: object) -> bytes:
        raise AssertionError("scrypt was called")

    monkeypatch.setattr(kdf, "scrypt", refuse)
    with pytest.raises(WorkFactorTooHigh):
        Decryptor([Passphrase("x", roomy, max_log_n=11)]).update(file)
    with pytest.raises(WorkFactorTooHigh):
        Decryptor([Passphrase("x", Scrypt(memory=2 * MIB))]).update(file)
    with pytest.raises(WorkFactorTooHigh):
        Encryptor([Passphrase("x", Scrypt(memory=2 * MIB))])
    absurd = file.replace(b" 12\n", b" " + b"9" * 9000 + b"\n")
    with pytest.raises(WorkFactorTooHigh):
        Decryptor([Passphrase("x", roomy)]).update(absurd)
