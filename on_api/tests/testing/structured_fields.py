"""A strict reader of the structured fields (RFC 9651) that rate limits are told in."""

from __future__ import annotations

import re

_ITEM = re.compile(r'"([ -!#-\[\]-~]*)"((?:; *[a-z*][a-z0-9_.*-]*=-?[0-9]{1,15})*)')


def read_list(value: str) -> dict[str, dict[str, int]]:
    """Return a List of Strings with Integers as parameters, by the strings. Fails for anything
    else, and for what is named twice."""
    items: dict[str, dict[str, int]] = {}
    for member in re.split(r"[ \t]*,[ \t]*", value):
        match = _ITEM.fullmatch(member)
        assert match is not None, f"{member!r} is no String with Integers"
        assert match[1] not in items, f"{match[1]} is told twice"
        pairs = [pair.strip().split("=") for pair in match[2].split(";")[1:]]
        assert len({name for name, _ in pairs}) == len(pairs), f"{member!r} repeats a parameter"
        items[match[1]] = {name: int(number) for name, number in pairs}
    return items
