"""Kubo's configuration as values: dotted keys, and whether a datastore syncs its writes.

Source of the format: docs/config.md and docs/datastores.md of Kubo.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping


def make_durable(spec: object) -> None:
    """Make the flatfs stores of a Datastore.Spec sync their writes."""
    for store in stores_of(spec):
        if store.get("type") == "flatfs":
            store["sync"] = True


def is_durable(spec: object) -> bool:
    """Return whether the block stores sync their writes: flatfs only if configured, pebble by
    default."""
    stores = [store for store in _block_stores(spec) if store.get("type") != "measure"]
    return bool(stores) and all(
        (store.get("type") == "flatfs" and store.get("sync") is True)
        or (store.get("type") == "pebbleds" and not store.get("disableWAL"))
        for store in stores
    )


def _block_stores(spec: object) -> Iterator[dict[str, object]]:
    if isinstance(spec, dict) and spec.get("type") == "mount":
        mounts = _dicts(spec.get("mounts"))
        # Without a mount of their own the blocks are in the one at `/`.
        own = [mount for mount in mounts if mount.get("mountpoint") == "/blocks"]
        for mount in own or mounts:
            yield from _block_stores(mount)
    else:
        yield from stores_of(spec)


def stores_of(spec: object) -> Iterator[dict[str, object]]:
    """Yield the nodes of a Datastore.Spec: a store, a `mount` of several, or a `measure` around
    one."""
    if isinstance(spec, dict):
        yield spec
        yield from stores_of(spec.get("child"))
        for mount in _dicts(spec.get("mounts")):
            yield from stores_of(mount)


def _dicts(value: object) -> list[dict[str, object]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def value_of(config: Mapping[str, object], dotted: str) -> object:
    """Return the value of a dotted key, or None."""
    value: object = config
    for name in dotted.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def with_values(config: Mapping[str, object], wanted: Mapping[str, object]) -> dict[str, object]:
    """Return a copy of `config` in which every dotted key of `wanted` has its value."""
    result: dict[str, object] = json.loads(json.dumps(config))
    for dotted, value in wanted.items():
        *groups, name = dotted.split(".")
        group = result
        for part in groups:
            inner = group.get(part)
            if not isinstance(inner, dict):
                inner = group[part] = {}
            group = inner
        group[name] = value
    return result
