"""Look-up of the names that users give to files and pins."""

from __future__ import annotations

from unicodedata import normalize


def spellings(name: str) -> list[str]:
    """Return the spellings of a name that look the same (Unicode's canonical equivalence): as
    given, composed as keyboards type it (NFC), decomposed as a Mac writes it (NFD). Names are
    stored as given, so a look-up has to ask for all spellings; most names have one."""
    return sorted({name, normalize("NFC", name), normalize("NFD", name)})
