"""Names that people give to files and pins, and how they are found again."""

from __future__ import annotations

from unicodedata import normalize


def spellings(name: str) -> list[str]:
    """The ways to write a name that look the same (Unicode's canonical equivalence): as it is
    given, composed as keyboards type it (NFC), decomposed as a Mac writes it (NFD). Names are kept
    as they were given, so that a look-up has to ask for all of these; most have one.
    """
    return sorted({name, normalize("NFC", name), normalize("NFD", name)})
