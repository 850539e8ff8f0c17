"""Walking DAGs in a backup, without the node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from on_api.core.ipfs.formats.cid import RAW, Cid
from on_api.core.ipfs.formats.dag import DagError, UnknownCodecError, links_of
from on_api.core.services.content.walking import DamagedError
from on_api.core.services.upkeep.backup.block_files import BlockFiles
from on_api.core.services.upkeep.backup.root_index import RootIndex

Found = tuple[Cid, bytes | DamagedError]
"""A block of the DAG, or why it can't be had. Of a leaf that isn't to be read the bytes are left
out."""


def walk(blocks: BlockFiles, roots: RootIndex, root: Cid, *, reads_leaves: bool) -> Iterator[Found]:
    """Yield every block of a DAG, depth first: inner ones once, a leaf perhaps more often, so that
    memory grows by inner blocks only."""
    seen: set[Cid] = set()
    pending = [root]
    while pending:
        cid = pending.pop()
        block = _look(blocks, cid, reads_leaves=reads_leaves)
        if cid.inline is None:
            yield cid, block
        if isinstance(block, DamagedError):
            continue
        try:
            links = links_of(cid.codec, block)
        except UnknownCodecError:
            if listed := roots.listed(str(root)):
                yield from _listed(blocks, listed, reads_leaves=reads_leaves)
            else:
                yield cid, DamagedError(f"the links of block {cid} can't be followed here")
            return
        except DagError:
            yield cid, DamagedError(f"block {cid} is not well formed")
            continue
        for link in reversed(links):
            if link.codec == RAW:
                pending.append(link)
            elif link not in seen:
                seen.add(link)
                pending.append(link)


def _look(blocks: BlockFiles, cid: Cid, *, reads_leaves: bool) -> bytes | DamagedError:
    try:
        if cid.codec != RAW or reads_leaves or cid.inline is not None:
            return blocks.read(cid)
    except DamagedError as error:
        return error
    return b"" if blocks.has(cid) else DamagedError(f"block {cid} is not in the backup")


def _listed(blocks: BlockFiles, listed: Sequence[str], *, reads_leaves: bool) -> Iterator[Found]:
    for text in listed:
        cid = Cid.from_text(text)
        yield cid, _look(blocks, cid, reads_leaves=reads_leaves)
