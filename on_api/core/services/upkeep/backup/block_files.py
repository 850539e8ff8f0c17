"""Blocks of a backup as files, one a block, named by its multihash: equal bytes under another codec
are the same block.

Thread-safe. A block gets its name only when it is durable, many at once.
"""

from __future__ import annotations

import base64
import ctypes
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from on_api.core.durable_files import replace_file, sync
from on_api.core.errors import BadRequest
from on_api.core.ipfs.formats.car import MAX_BLOCK_BYTES, CarError, WrongBlockError, check_block
from on_api.core.ipfs.formats.cid import RAW, Cid, read_varint, varint
from on_api.core.services.content.walking import DamagedError

PART = ".part"
DAMAGED = ".damaged"
"""Endings of files that are no blocks: not written to their end, and set aside."""


class BlockFiles:
    """Folder of blocks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._unsettled: dict[Path, int] = {}
        """Blocks that were written and are not durable yet: their bytes, by their names to be."""

    @property
    def unsettled(self) -> tuple[int, int]:
        """Number and bytes of the blocks that `settle` would make durable."""
        with self._lock:
            return len(self._unsettled), sum(self._unsettled.values())

    def has(self, cid: Cid) -> bool:
        """Return whether the block is here, durable or not. Reads nothing of it."""
        path = self._path(cid)
        with self._lock:
            return path in self._unsettled or path.exists()

    def read(self, cid: Cid) -> bytes:
        """Read a block. Raises `DamagedError` when it is missing, can't be read, or isn't what its
        CID says."""
        if cid.inline is not None:
            return cid.inline
        path = self._path(cid)
        with self._lock:
            place = _part_of(path) if path in self._unsettled else path
            try:
                with place.open("rb") as file:
                    block = file.read(MAX_BLOCK_BYTES + 1)
            except FileNotFoundError:
                raise DamagedError(f"block {cid} is not in the backup") from None
            except OSError as error:
                raise DamagedError(f"block {cid} can't be read ({error.strerror})") from None
        require_sound(cid, block)
        return block

    def put(self, cid: Cid, block: bytes) -> bool:
        """Write a block that is not here, or is damaged. Returns whether it was written now:
        another thread may have done it. Raises `OSError`."""
        path = self._path(cid)
        with self._lock:
            if path in self._unsettled:
                return False
            made_folder(path.parent)
            part = _part_of(path)
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(block)
            self._unsettled[path] = len(block)
            return True

    def settle(self) -> None:
        """Make all blocks durable that were written. Raises `OSError`."""
        with self._lock:
            paths = list(self._unsettled)
            _make_durable(self._folder, [_part_of(path) for path in paths])
            for path in paths:
                _part_of(path).replace(path)
            _make_durable(self._folder, {path.parent for path in paths})
            self._unsettled.clear()

    def clear_parts(self) -> None:
        """Remove what a killed run has left half written."""
        for path in self._folder.glob(f"*/*{PART}"):
            path.unlink()

    def all(self) -> Iterator[tuple[Path, Cid]]:
        """Yield every block's file, and a CID with its multihash. Files that aren't named as a
        block are left out."""
        for folder in sorted(path for path in self._folder.iterdir() if path.is_dir()):
            for path in folder.iterdir():
                cid = _cid_of(path.name)
                if cid is not None and path.parent.name == path.name[-3:-1]:
                    yield path, cid

    def set_aside(self, cid: Cid) -> None:
        """Take its name from a damaged block, so that the next backup copies it anew. Raises
        `OSError`."""
        path = self._path(cid)
        path.replace(path.with_name(path.name + DAMAGED))

    def _path(self, cid: Cid) -> Path:
        multihash = varint(cid.hash_code) + varint(len(cid.digest)) + cid.digest
        name = base64.b32encode(multihash).decode().rstrip("=").lower()
        # As in Kubo's own store: the last character has a few bits only.
        return self._folder / name[-3:-1] / name


def require_sound(cid: Cid, block: bytes) -> None:
    """Raise `DamagedError` unless this is the block of that CID. A hash that on-api doesn't know is
    believed: the node checks it when it takes the block back."""
    try:
        check_block(cid, block)
    except WrongBlockError as error:
        raise DamagedError(str(error)) from error
    except CarError as error:
        if len(block) > MAX_BLOCK_BYTES:
            raise DamagedError(str(error)) from error


def written(path: Path, data: bytes) -> None:
    """Write a small file (mode 0600), durable and whole or not at all. Raises `OSError`."""
    replace_file(path, data, _part_of(path))


def made_folder(path: Path) -> None:
    """Make a folder (mode 0700) unless it is there. Raises `OSError`."""
    path.mkdir(mode=0o700, exist_ok=True)


def _part_of(path: Path) -> Path:
    return path.with_name(path.name + PART)


def _cid_of(name: str) -> Cid | None:
    try:
        multihash = base64.b32decode(name.upper() + "=" * (-len(name) % 8))
        code, at = read_varint(multihash, 0)
        length, at = read_varint(multihash, at)
    except (ValueError, IndexError, BadRequest):
        return None
    return Cid(RAW, code, multihash[at:]) if length == len(multihash) - at else None


def _make_durable(folder: Path, paths: Iterable[Path]) -> None:
    """Make files and folders durable: on Linux by one call for the whole file system, which takes
    as long as a few of the hundreds of calls that one each would be."""
    if sys.platform != "linux":
        for path in paths:
            sync(path)
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if _LIBC.syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(folder))
    finally:
        os.close(descriptor)


_LIBC = ctypes.CDLL(None, use_errno=True)
