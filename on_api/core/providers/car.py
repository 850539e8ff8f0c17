"""A CAR as a source, whose items are its roots. `ipfs/retrieval.take_car` stores its blocks on the
node."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path

from anyio import open_file

from on_api.core.errors import BadCar, BadRequest
from on_api.core.ipfs.formats.car import CarError, CarReader
from on_api.core.providers import shapes
from on_api.core.providers.base import CAR, Page, Source, SourceSpec

CHUNK_BYTES = 1024 * 1024


class CarSource(Source):
    """The roots of a CAR: of the file at `path`, or of a CAR that was stored already."""

    kind = CAR

    def __init__(self, spec: SourceSpec) -> None:
        self._roots = list(spec.roots)
        self._path = None if spec.path is None else Path(spec.path)
        if not self._roots and self._path is None:
            raise BadRequest("source.path: required for a source of kind car.")

    async def pages(self, after: str | None = None) -> AsyncIterator[Page]:
        """See `Source.pages`. Yields one page; raises `BadCar`, or `BadRequest` for a file that
        can't be read."""
        if after is not None:
            return
        roots = self._roots
        if not roots and self._path is not None:
            async with aclosing(chunks_of(self._path)) as chunks:
                roots = await roots_of(chunks)
        named = self._path.stem if self._path is not None and len(roots) == 1 else None
        yield Page([shapes.item(root, named=named) for root in dict.fromkeys(roots)], "end")


async def chunks_of(path: Path) -> AsyncGenerator[bytes]:
    """Yield the bytes of a file on this machine; to be closed. Raises `BadRequest` if it can't be
    read."""
    try:
        async with await open_file(path, "rb") as file:
            while chunk := await file.read(CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise BadRequest(f"The file can't be read: {error.strerror}.") from error


async def roots_of(chunks: AsyncIterator[bytes]) -> list[str]:
    """Return the roots that a CAR names, as CIDv1 in base32. Raises `BadCar`."""
    reader = CarReader(chunks)
    try:
        async with aclosing(reader.blocks()) as blocks:
            await anext(blocks, None)
    except CarError as error:
        raise BadCar(f"This CAR is not acceptable: {error}.") from error
    if not reader.roots:
        raise BadCar("This CAR has no root.")
    return [str(root) for root in reader.roots]
