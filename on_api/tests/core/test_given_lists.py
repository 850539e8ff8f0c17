"""Sources that are given: lists of CIDs as people keep them, and CARs."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from on_api.core.errors import BadCar, BadRequest, OnApiError
from on_api.core.ipfs.formats.car import car_header, car_section
from on_api.core.ipfs.formats.cid import Cid
from on_api.core.ipfs.formats.unixfs import build_file
from on_api.core.net.errors import SourceMalformed
from on_api.core.providers import cids
from on_api.core.providers.base import SourceItem, SourceSpec
from on_api.core.providers.car import roots_of
from on_api.core.providers.opening import open_source
from on_api.tests.testing.foreign import outbound

pytestmark = pytest.mark.anyio

A, B = (build_file(letter).cid for letter in (b"a", b"b"))
OLD = "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"


async def listed(spec: SourceSpec, after: str | None = None, **changes: object) -> list[SourceItem]:
    """Every item."""
    async with outbound(**changes) as calls:
        source = open_source(spec, calls)
        return [item async for page in source.pages(after) for item in page.items]


def of_text(text: str) -> SourceSpec:
    """A list that was given."""
    return SourceSpec("cids", text=text)


@pytest.mark.parametrize(
    "text",
    [
        f"{A} one\n{OLD}\n",
        f"\ufeff# mine\r\n\r\n{A}\t one \r\n  {OLD}",
        f"cid,name\n{A},one\n{OLD},\n",
        f'name, CID \n"one", {A}\n,{OLD}\n',
    ],
)
async def test_lists_as_people_keep_them(text: str, tmp_path: Path) -> None:
    """Plain or as CSV, with comments, empty lines, Windows' line ends; given, or in a file."""
    path = tmp_path / "list.txt"
    path.write_text(text, encoding="utf-8", newline="")
    for spec in (of_text(text), SourceSpec("cids", path=str(path))):
        found = await listed(spec)
        assert [(item.cid, item.name, item.problem) for item in found] == [
            (A, "one", None),
            (OLD, None, None),
        ]


async def test_names_and_meta() -> None:
    """A name may hold anything but control characters; further columns of a CSV are meta."""
    found = await listed(of_text(f'cid,name,project,empty\n{A},"x, ""y""",atlas,\n{B},地図\n'))
    assert [(item.name, dict(item.meta)) for item in found] == [
        ('x, "y"', {"project": "atlas"}),
        ("地図", {}),
    ]
    (item,) = await listed(of_text(f"{A} two words\x0band\x85more"))
    assert item.name == "two words and more"


async def test_bad_lines_are_told_by_number() -> None:
    """And swallow none of those after them."""
    found = await listed(of_text(f"{A}\nnonsense here\n\n{B}"))
    assert [item.problem for item in found] == [None, "Line 2 is not a valid CID.", None]
    found = await listed(of_text(f'cid,name\n{A},"open\n{B},"closed"\n{A},a,b\n,\n'))
    assert [item.problem for item in found] == [
        "Line 2 does not have the columns of the header.",
        None,
        "Line 4 does not have the columns of the header.",
        "Line 5 is not a valid CID.",
    ]
    found = await listed(of_text("x" * 100_000 + f"\n{A}"))
    assert [item.problem for item in found] == ["Line 1 is too long.", None]
    assert all(len(item.cid) <= 128 for item in found)


async def test_bounds_of_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of bytes and of lines; a file that isn't there, or isn't text."""
    path = tmp_path / "list"
    path.write_bytes(b"\xff\xfe")
    missing = str(tmp_path / "missing")
    monkeypatch.setattr(cids, "MAX_LINES", 3)
    cases: list[tuple[SourceSpec, type[OnApiError]]] = [
        (of_text("x" * 101), SourceMalformed),
        (of_text("\n" * 5), SourceMalformed),
        (SourceSpec("cids", path=str(path)), SourceMalformed),
        (SourceSpec("cids", path=missing), BadRequest),
        (SourceSpec("cids", path=str(tmp_path)), BadRequest),
        (SourceSpec("car", path=missing), BadRequest),
    ]
    for spec, error in cases:
        with pytest.raises(error):
            await listed(spec, max_list=100)
    for kind in ("cids", "car"):
        with pytest.raises(BadRequest):
            await listed(SourceSpec(kind))


async def test_going_on_in_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind any line."""
    monkeypatch.setattr(cids, "PAGE_ITEMS", 2)
    lines = [build_file(str(n).encode()).cid for n in range(7)]
    text = "\n\n".join(lines)
    async with outbound() as calls:
        pages = [page async for page in open_source(of_text(text), calls).pages()]
    assert [item.cid for page in pages for item in page.items] == lines
    for number, page in enumerate(pages, 1):
        rest = await listed(of_text(text), page.resume)
        assert [item.cid for item in rest] == lines[2 * number :]


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    """A stream."""
    stream = io.BytesIO(data)
    while chunk := stream.read(7):
        yield chunk


async def test_a_car_has_its_roots(tmp_path: Path) -> None:
    """Each once; one alone is named like its file. One that was taken already is only named."""
    root = build_file(b"a")
    block = car_section(Cid.from_text(root.cid), root.block)
    path = tmp_path / "holiday.car"
    path.write_bytes(car_header(Cid.from_text(A)) + block)
    (item,) = await listed(SourceSpec("car", path=str(path)))
    assert (item.cid, item.name, item.problem) == (A, "holiday", None)
    path.write_bytes(car_header(*map(Cid.from_text, (A, B, A))) + block)
    found = await listed(SourceSpec("car", path=str(path)))
    assert [(item.cid, item.name) for item in found] == [(A, None), (B, None)]
    assert await listed(SourceSpec("car", path=str(path)), "end") == []
    assert [item.cid for item in await listed(SourceSpec("car", roots=(A, B)))] == [A, B]


@pytest.mark.parametrize("data", [b"", b"\x01", b"<!doctype html>", car_header()])
async def test_what_is_no_car(data: bytes) -> None:
    """Told as such."""
    with pytest.raises(BadCar):
        await roots_of(chunks(data))
