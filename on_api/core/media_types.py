"""Media types: validation, and guessing a file's type if its sender doesn't name one."""

from __future__ import annotations

import mimetypes
import re

import puremagic

BINARY = "application/octet-stream"
TEXT = "text/plain"

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 (RFC 9110's word for it)
_MEDIA_TYPE = re.compile(
    rf'{_TOKEN}/{_TOKEN}(?:\s*;\s*{_TOKEN}=(?:{_TOKEN}|"[\x20-\x21\x23-\x5b\x5d-\x7e]*"))*',
    re.ASCII,
)
_PARAMETER = rf'{_TOKEN}=(?:{_TOKEN}|"[\x20-\x21\x23-\x5b\x5d-\x7e]*")'
_WITH_EMPTY_PARAMETERS = re.compile(
    rf"\s*({_TOKEN}/{_TOKEN})((?:\s*;\s*(?:{_PARAMETER})?)*)\s*", re.ASCII
)
# Python's own table only: the files in the machine's /etc must not change the answer.
_BY_NAME = mimetypes.MimeTypes(filenames=())
_ALSO = {
    "application/epub+zip": ".epub",
    "application/geo+json": ".geojson",
    "application/gpx+xml": ".gpx",
    "application/jsonl": ".jsonl .ndjson",
    "application/manifest+json": ".webmanifest",
    "application/toml": ".toml",
    "application/vnd.apache.parquet": ".parquet",
    "application/vnd.ipld.car": ".car",
    "application/vnd.oasis.opendocument.presentation": ".odp",
    "application/vnd.oasis.opendocument.spreadsheet": ".ods",
    "application/vnd.oasis.opendocument.text": ".odt",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": ".pptx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": ".xlsx",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
    "application/vnd.rar": ".rar",
    "application/x-7z-compressed": ".7z",
    "application/yaml": ".yaml .yml",
    "audio/flac": ".flac",
    "audio/mp4": ".m4a",
    "audio/ogg": ".oga .ogg",
    "font/otf": ".otf",
    "font/ttf": ".ttf",
    "font/woff": ".woff",
    "font/woff2": ".woff2",
    "image/jxl": ".jxl",
    "model/gltf+json": ".gltf",
    "model/gltf-binary": ".glb",
    "text/javascript": ".js .mjs",
    "text/markdown": ".md .markdown",
    "video/matroska": ".mkv",
    "video/ogg": ".ogv",
}
"""IANA's types that are missing or different in Python's table of some version."""
for _media_type, _endings in _ALSO.items():
    for _ending in _endings.split():
        _BY_NAME.add_type(_media_type, _ending)


def is_well_formed(media_type: str) -> bool:
    """Return whether this is `type/subtype`, parameters allowed (RFC 9110, section 8.3.1)."""
    return len(media_type) <= 255 and _MEDIA_TYPE.fullmatch(media_type) is not None


def tidied(media_type: str) -> str | None:
    """Return the media type without the empty parameters that RFC 9110 allows (section 5.6.6), as
    in `text/plain;`; None if it is not a media type."""
    if is_well_formed(media_type):
        return media_type
    found = _WITH_EMPTY_PARAMETERS.fullmatch(media_type) if len(media_type) <= 255 else None
    if found is None:
        return None
    return "; ".join([found[1], *re.findall(_PARAMETER, found[2])])


def sniff(name: str, head: bytes) -> str:
    """Return the media type by the file's name, else by its first bytes."""
    by_name, encoding = _BY_NAME.guess_type(name, strict=False)
    if by_name is not None and encoding is None:
        return by_name
    if not head:
        return BINARY
    if not may_be_known(head):
        return TEXT if _is_text(head) else BINARY
    try:
        found = puremagic.from_string(head, mime=True)
    except (puremagic.PureError, ValueError):
        found = ""
    if found and is_well_formed(found):
        return found
    return TEXT if _is_text(head) else BINARY


def _marks() -> re.Pattern[bytes]:
    """Return a pattern of puremagic's signatures at a file's beginning, grouped by offset and first
    byte so that most of them are skipped together."""
    by_offset: dict[int, dict[bytes, set[bytes]]] = {}
    for row in puremagic.magic_header_array:
        rests = by_offset.setdefault(row.offset, {}).setdefault(row.byte_match[:1], set())
        rests.add(row.byte_match[1:])
    return re.compile(
        b"|".join(
            b".{%d}(?:%s)"
            % (
                offset,
                b"|".join(
                    re.escape(first) + b"(?:" + b"|".join(map(re.escape, sorted(rests))) + b")"
                    for first, rests in sorted(firsts.items())
                ),
            )
            for offset, firsts in sorted(by_offset.items())
        ),
        re.DOTALL,
    )


_MARKS = _marks()
_ENDS = [
    (row.offset, row.offset + len(row.byte_match) or None, row.byte_match)
    for row in puremagic.magic_footer_array
]


def may_be_known(head: bytes) -> bool:
    """Return whether any of puremagic's signatures matches. Puremagic compares each of its 1,400 in
    turn, which takes as long as the rest of a small upload."""
    return _MARKS.match(head) is not None or _ends_with_mark(head)


def _ends_with_mark(head: bytes) -> bool:
    foot = head[-puremagic.main.max_foot :]
    for start, end, mark in _ENDS:  # noqa: SIM110
        if foot[start:end] == mark:
            return True
    return False


def _is_text(head: bytes) -> bool:
    """Return whether this is valid UTF-8 without control characters; the sample may end within a
    character."""
    try:
        head.decode()
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data" or error.start < len(head) - 3:
            return False
    return not any(byte < 32 and byte not in b"\t\n\f\r\x1b" for byte in head)
