"""DAGs of files under the profile: balanced trees of raw leaves (UnixFS specification, dag-pb).

From this the in-memory node, and tests, know a file's CID and size on the node without Kubo.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import libipld

from on_api.core.ipfs.formats.cid import (
    CHUNK_BYTES,
    DAG_PB,
    MAX_LINKS,
    SHA2_256,
    encode,
    raw_leaf_cid,
    varint,
)


@dataclass(frozen=True, slots=True)
class DagNode:
    """The root of a (sub-)tree. Sizes are in bytes: of the file below it, and of the whole DAG."""

    cid: str
    file_size: int
    dag_size: int
    block: bytes
    children: tuple[DagNode, ...] = ()

    def walk(self) -> Iterator[DagNode]:
        """Yield this node and all below it, depth first."""
        yield self
        for child in self.children:
            yield from child.walk()


def build_file(data: bytes, *, chunk_bytes: int = CHUNK_BYTES) -> DagNode:
    """Return the DAG of a file's bytes."""
    starts = range(0, len(data), chunk_bytes) or range(1)
    level = [_leaf(data[start : start + chunk_bytes]) for start in starts]
    while len(level) > 1:
        level = [_parent(children) for children in _batches(level, MAX_LINKS)]
    return level[0]


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a directory; `dag_size` is the cumulative size of the DAG in bytes."""

    name: str
    cid: str
    dag_size: int


def build_directory(entries: Sequence[Entry]) -> tuple[Entry, bytes]:
    """Return a plain directory of entries that are sorted by name, as an entry without a name, and
    its block. More than some thousands don't fit into one block."""
    links = b"".join(_field(2, _named_link(each.cid, each.name, each.dag_size)) for each in entries)
    block = links + _field(1, _number(1, 1))  # Type=Directory
    cid = encode(DAG_PB, SHA2_256, hashlib.sha256(block).digest())
    return Entry("", cid, len(block) + sum(each.dag_size for each in entries)), block


def _leaf(block: bytes) -> DagNode:
    return DagNode(raw_leaf_cid(hashlib.sha256(block).digest()), len(block), len(block), block)


def _parent(children: list[DagNode]) -> DagNode:
    links = b"".join(_field(2, _link(child)) for child in children)
    file_size = sum(child.file_size for child in children)
    sizes = b"".join(_number(4, child.file_size) for child in children)
    unixfs = _number(1, 2) + _number(3, file_size) + sizes  # Type=File, filesize, blocksizes
    block = links + _field(1, unixfs)  # dag-pb writes links before data
    cid = encode(DAG_PB, SHA2_256, hashlib.sha256(block).digest())
    dag_size = len(block) + sum(child.dag_size for child in children)
    return DagNode(cid, file_size, dag_size, block, tuple(children))


def _link(child: DagNode) -> bytes:
    return _named_link(child.cid, "", child.dag_size)


def _named_link(cid: str, name: str, dag_size: int) -> bytes:
    binary = libipld.decode_multibase(cid)[1]
    return _field(1, binary) + _field(2, name.encode()) + _number(3, dag_size)


def _field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


def _number(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def _batches(nodes: Iterable[DagNode], size: int) -> Iterator[list[DagNode]]:
    remaining = iter(nodes)
    while batch := list(islice(remaining, size)):
        yield batch
