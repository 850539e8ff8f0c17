"""Header values of the form `value; name=value; …` (RFC 9110, section 5.6.6), and the filenames in
them in the clients' spellings.

Knows no web framework.
"""

from __future__ import annotations

import base64
import binascii
import quopri
import re
from urllib.parse import unquote_to_bytes

from on_api.core.errors import BadRequest

TEXT_CODINGS = {"utf-8": "utf-8", "utf8": "utf-8", "us-ascii": "utf-8", "iso-8859-1": "latin-1"}
"""Accepted charsets, and Python's name for each."""

_PARAMETER = re.compile(
    r"""[ \t]*;[ \t]*
    (?:([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*=[ \t]*
        (?:"((?:[^"\\]|\\.)*)"(?=[ \t]*(?:;|$))
        # Browsers escape no backslash, so that one may stand before the last quote.
        |"([^"]*)"(?=[ \t]*(?:;|$))
        |([^;"]*)
        )
    )?""",
    re.VERBOSE | re.DOTALL,
)
_EXTENDED = re.compile(r"([^']*)'[^']*'((?:[^%]|%[0-9A-Fa-f]{2})*)")
_ENCODED_WORDS = re.compile(r"=\?[\w-]+\?[BbQq]\?[^? ]*\?=(?: =\?[\w-]+\?[BbQq]\?[^? ]*\?=)*")
_ENCODED_WORD = re.compile(r"=\?([\w-]+)\?([BbQq])\?([^? ]*)\?=")


def read_parameters(text: str) -> tuple[str, dict[str, str]]:
    """Return the value in lower case, and its parameters by name in lower case; empty ones
    (`text/plain;`) are skipped. Raises `BadRequest` for another form, and for a repeated name."""
    text = text.strip(" \t")
    value, _, _ = text.partition(";")
    parameters: dict[str, str] = {}
    at = len(value)
    while at < len(text):
        found = _PARAMETER.match(text, at)
        if found is None:
            raise BadRequest("The parameters of a header can't be parsed.")
        at = found.end()
        name, quoted, unescaped, bare = found.groups()
        if name is None:
            if at < len(text) and text[at] != ";":
                raise BadRequest("The parameters of a header can't be parsed.")
            continue
        if name.lower() in parameters:
            raise BadRequest(f"A header contains the parameter {name[:32]} twice.")
        if quoted is not None:
            parameters[name.lower()] = re.sub(r'\\(["\\])', r"\1", quoted)
        else:
            parameters[name.lower()] = unescaped if bare is None else bare.strip(" \t")
    return value.strip(" \t").lower(), parameters


def read_filename(parameters: dict[str, str]) -> str | None:
    """Return the filename in a Content-Disposition's parameters, which were decoded as Latin-1:
    `filename*` (RFC 8187) before `filename`, as RFC 6266 demands; the latter as UTF-8, with a quote
    as `%22` as browsers send it, or in the encoded words of mail (RFC 2047), as .NET does.

    A `filename*` in another charset than UTF-8 or ISO-8859-1 is ignored if there is a `filename` as
    well. Raises `BadRequest` for a name that can't be read.
    """
    extended, plain = parameters.get("filename*"), parameters.get("filename")
    if extended is not None:
        name = _read_extended(extended)
        if name is not None:
            return name
        if plain is None:
            raise BadRequest(
                "A form part's filename* can't be parsed: encode it as UTF-8 (RFC 8187)."
            )
    if plain is None:
        return None
    if _ENCODED_WORDS.fullmatch(plain):
        return _read_encoded_words(plain)
    return read_text(plain)


def read_text(text: str) -> str:
    """Decode a name as browsers and curl write it: UTF-8 (decoded as Latin-1 so far), a quote as
    %22 (WHATWG HTML). Raises `BadRequest` for another encoding."""
    try:
        return text.encode("latin-1").decode().replace("%22", '"')
    except UnicodeError:
        raise BadRequest("A form part's name is not UTF-8.") from None


def _read_extended(text: str) -> str | None:
    found = _EXTENDED.fullmatch(text)
    coding = None if found is None else TEXT_CODINGS.get(found[1].lower())
    if found is None or coding is None:
        return None
    try:
        return unquote_to_bytes(found[2].encode("latin-1")).decode(coding)
    except UnicodeError:
        return None


def _read_encoded_words(text: str) -> str:
    name = ""
    for charset, kind, word in _ENCODED_WORD.findall(text):
        try:
            raw = (
                base64.b64decode(word, validate=True)
                if kind in "Bb"
                else quopri.decodestring(word, header=True)
            )
            name += raw.decode(TEXT_CODINGS[charset.lower()])
        except (binascii.Error, KeyError, UnicodeError):
            raise BadRequest("A form part's filename can't be parsed: send it as UTF-8.") from None
    return name
