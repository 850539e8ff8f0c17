"""Every source that is asked over HTTP, by one suite on fakes of their services; then what is
peculiar to each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from on_api.core.errors import AddressRefused, BadRequest, OnApiError
from on_api.core.ipfs.formats.unixfs import build_file
from on_api.core.net.errors import SourceMalformed, SourceUnauthorized, SourceUnavailable
from on_api.core.providers import kubo, pinning_api
from on_api.core.providers.base import MAX_RESUME_BYTES, Page, SourceItem, SourceSpec
from on_api.core.providers.on_api import NO_IDENTITY
from on_api.core.providers.opening import open_source
from on_api.core.providers.pinata import IS_PENDING, IS_PRIVATE
from on_api.core.providers.shapes import NO_CID
from on_api.tests.testing.foreign import HTML, Asked, Reply, outbound, says, service

pytestmark = pytest.mark.anyio

TOKEN = "a-token"
PEER = "/ip4/203.0.113.7/tcp/4001/p2p/12D3KooWJ59N9z5CyLTtcUvzuRQDdGMbGRsUGv4zGbGKGN1Vdzpa"
START = datetime(2024, 2, 29, 12, 0, 0, 123456, UTC)
NAMES = ["a", "地図.pdf", None, "é" * 400, "with\x00control\nletters"]


def cid(number: int) -> str:
    """One of different ones."""
    return build_file(str(number).encode()).cid


@dataclass
class Thing:
    """What a fake has."""

    number: int
    created: datetime
    name: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def cid(self) -> str:
        """Its own."""
        return cid(self.number)


def things(count: int) -> list[Thing]:
    """The newest first."""
    return [
        Thing(n, START - timedelta(seconds=n), NAMES[n % len(NAMES)], {"n": str(n)})
        for n in range(count)
    ]


def written(moment: datetime, timespec: str = "milliseconds") -> str:
    """As services write it."""
    return moment.isoformat(timespec=timespec).replace("+00:00", "Z")


class PinningApi:
    """A pinning service. `truncate` is how exactly it keeps moments."""

    kind = "pinning_api"
    page = 3
    timespec = "milliseconds"
    counts_all = False

    def __init__(self, has: Sequence[Thing]) -> None:
        self.has = has

    def spec(self, url: str) -> SourceSpec:
        """How a user would name it."""
        return SourceSpec("pinning_api", endpoint=f"{url}/psa", token=TOKEN)

    def __call__(self, asked: Asked) -> Reply:
        """See `GET /pins` of the specification."""
        assert (asked.path, asked.query["status"]) == ("/psa/pins", "pinned")
        found = [thing for thing in self.has if self._is_before(thing, asked.query.get("before"))]
        results = [
            self._status(each) for each in found[: min(self.page, int(asked.query["limit"]))]
        ]
        return says({"count": len(self.has if self.counts_all else found), "results": results})

    def _is_before(self, thing: Thing, before: str | None) -> bool:
        return before is None or self._kept(thing.created) < self._kept(
            datetime.fromisoformat(before)
        )

    def _kept(self, moment: datetime) -> str:
        return written(moment, self.timespec)

    def _status(self, thing: Thing) -> dict[str, Any]:
        name = {} if thing.name is None else {"name": thing.name}
        return {
            "requestid": f"id-{thing.number}",
            "status": "pinned",
            "created": self._kept(thing.created),
            "pin": {"cid": thing.cid, "meta": thing.meta, **name},
            "delegates": [PEER, "nonsense"],
        }


class Pinata:
    """Pinata's v3 list."""

    kind = "pinata"

    def __init__(self, has: Sequence[Thing]) -> None:
        self.has = has

    def spec(self, url: str) -> SourceSpec:
        """How a user would name it; usually without an endpoint."""
        return SourceSpec("pinata", endpoint=url, token=TOKEN)

    def __call__(self, asked: Asked) -> Reply:
        """See "list files" of its documentation."""
        if asked.path == "/v3/files/private":
            return says({"data": {"files": None, "next_page_token": ""}})
        assert asked.path == "/v3/files/public"
        start = int(asked.query.get("pageToken", "0"))
        files = [
            {
                "id": str(thing.number),
                "name": thing.name,
                "cid": thing.cid,
                "size": 7,
                "number_of_files": 1,
                "mime_type": "text/plain",
                "group_id": None,
                "keyvalues": thing.meta,
                "created_at": written(thing.created, "microseconds"),
            }
            for thing in self.has[start : start + 3]
        ]
        more = str(start + 3) if start + 3 < len(self.has) else None
        return says({"data": {"files": files, "next_page_token": more}})


class PinList:
    """Pinata's older list, with a key that may read nothing else."""

    kind = "pinata"

    def __init__(self, has: Sequence[Thing]) -> None:
        self.has = list(has)

    def spec(self, url: str) -> SourceSpec:
        """How a user would name it."""
        return SourceSpec("pinata", endpoint=url, token=TOKEN)

    def __call__(self, asked: Asked) -> Reply:
        """See "query files (legacy)" of its documentation."""
        if asked.path.startswith("/v3/"):
            return says({"error": "NO_SCOPES_FOUND"}, "403 Forbidden")
        assert (asked.path, asked.query["status"]) == ("/data/pinList", "pinned")
        start = int(asked.query["pageOffset"])
        rows = [
            {
                "id": str(thing.number),
                "ipfs_pin_hash": thing.cid,
                "size": 7,
                "date_pinned": written(thing.created),
                "metadata": {"name": thing.name, "keyvalues": thing.meta or None},
            }
            for thing in self.has[start : start + 3]
        ]
        return says({"count": len(self.has), "rows": rows})


class Kubo:
    """A Kubo's RPC."""

    kind = "kubo"

    def __init__(self, has: Sequence[Thing]) -> None:
        self.has = has

    def spec(self, url: str) -> SourceSpec:
        """How an administrator would name it."""
        return SourceSpec("kubo", endpoint=url, token=f"bearer:{TOKEN}")

    def __call__(self, asked: Asked) -> Reply:
        """`pin/ls` and `id`."""
        assert asked.method == "POST"
        if asked.path == "/api/v0/id":
            short = PEER.rpartition("/p2p/")
            return says({"ID": short[2], "Addresses": [short[0], PEER]})
        assert (asked.path, asked.query["type"]) == ("/api/v0/pin/ls", "recursive")
        pins = {each.cid: {"Type": "recursive", "Name": each.name or ""} for each in self.has}
        return says({"Keys": pins} if pins else {})


class OnApi(PinningApi):
    """Another on-api: the even ones are files, the odd ones pins."""

    kind = "on_api"

    def __init__(self, has: Sequence[Thing]) -> None:
        super().__init__([thing for thing in has if thing.number % 2])
        self.files = [thing for thing in has if thing.number % 2 == 0]

    def spec(self, url: str) -> SourceSpec:
        """How a user would name it."""
        return SourceSpec("on_api", endpoint=url, token=TOKEN)

    def __call__(self, asked: Asked) -> Reply:
        """`GET /v2/files` and `GET /v1/pins`."""
        if asked.path == "/v1/pins":
            return super().__call__(replace(asked, path="/psa/pins"))
        assert asked.path == "/v2/files"
        start = int(asked.query.get("cursor", "0"))
        items = [self.file(thing) for thing in self.files[start : start + 3]]
        more = str(start + 3) if start + 3 < len(self.files) else None
        return says({"items": items, "next_cursor": more})

    def file(self, thing: Thing, visibility: str = "public") -> dict[str, Any]:
        """A file of its."""
        return {
            "id": str(thing.number), "cid": thing.cid, "source_cid": None,
            "name": thing.name or "", "size": 7, "media_type": "text/plain", "sha256": "ab" * 32,
            "visibility": visibility, "meta": thing.meta, "created_at": written(thing.created),
            "gateway_url": None,
        }  # fmt: skip


FAKES = [PinningApi, Pinata, PinList, Kubo, OnApi]
Fake = Callable[[Asked], Reply]


async def pages(
    answer: Fake, spec: Callable[[str], SourceSpec], after: str | None = None, **changes: Any
) -> list[Page]:
    """All that a source lists, from the beginning or a place."""
    async with service(answer) as there, outbound(**changes) as calls:
        source = open_source(spec(there.url), calls)
        found = [page async for page in source.pages(after)]
        await source.close()
    for page in found:
        assert len(page.resume.encode()) <= MAX_RESUME_BYTES
        assert TOKEN not in page.resume
    return found


async def items(
    answer: Fake, spec: Callable[[str], SourceSpec], **changes: Any
) -> list[SourceItem]:
    """Of all pages."""
    return [item for page in await pages(answer, spec, **changes) for item in page.items]


@pytest.fixture(params=FAKES, ids=lambda fake: fake.__name__)
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One with eleven things, on several pages."""
    monkeypatch.setattr(kubo, "PAGE_ITEMS", 3)
    return request.param(things(11))


async def test_everything_is_listed_once(fake: Any) -> None:
    """With names, meta, dates and sizes, as far as the service knows them."""
    found = await items(fake, fake.spec)
    assert sorted(item.cid for item in found) == sorted(thing.cid for thing in things(11))
    assert [item.problem for item in found] == [None] * 11
    by_cid = {item.cid: item for item in found}
    for thing in things(11):
        item = by_cid[thing.cid]
        expected = thing.name and thing.name.replace("\0", " ").replace("\n", " ")[:255]
        assert (item.name or "unnamed") == (expected or "unnamed") or fake.kind == "on_api"
        if fake.kind != "kubo":
            assert item.meta == thing.meta
            assert item.created_at is not None
            assert abs(item.created_at - thing.created) < timedelta(milliseconds=1)


async def test_an_empty_source(fake: Any) -> None:
    """Has nothing, and that is no error."""
    empty = type(fake)([])
    assert await items(empty, empty.spec) == []


async def test_going_on_after_any_page(fake: Any) -> None:
    """As after a crash: what comes then is the rest."""
    whole = await pages(fake, fake.spec)
    assert len(whole) >= 4
    for number, page in enumerate(whole, 1):
        rest = await pages(fake, fake.spec, page.resume)
        seen = [item.cid for each in whole[:number] for item in each.items]
        seen += [item.cid for each in rest for item in each.items]
        assert sorted(seen) == sorted(thing.cid for thing in things(11))


async def test_where_its_content_is_served(fake: Any) -> None:
    """Only addresses that could be dialled, each once."""
    async with service(fake) as there, outbound() as calls:
        delegates = await open_source(fake.spec(there.url), calls).delegates()
    assert tuple(delegates) == (() if fake.kind == "pinata" else (PEER,))


def after(calls: int, reply: Reply, answer: Fake, times: int = 10**9) -> Fake:
    """A service that answers so many calls, then another thing so many times."""
    left = iter(range(calls + times))

    def answering(asked: Asked) -> Reply:
        number = next(left, calls + times)
        return reply if calls <= number < calls + times else answer(asked)

    return answering


@pytest.mark.parametrize("calls", [0, 2])
@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (says({}, "500 Oh"), SourceUnavailable),
        (says({}, "429 Wait"), SourceUnavailable),
        (Reply(hangs=True), SourceUnavailable),
        (Reply(b'{"count": 3, "res', length=1000), SourceUnavailable),
        (Reply(b'{"count": 3, "res'), SourceMalformed),
        (HTML, SourceMalformed),
        (says([]), SourceMalformed),
        (says({"data": {"files": 7}, "Keys": 7, "results": 7, "items": 7}), SourceMalformed),
        (says({"data": 1, "Keys": {"x": 1}, "results": [1], "items": [1]}), SourceMalformed),
        (says({"error": "expired"}, "401 Unauthorized"), SourceUnauthorized),
    ],
)
async def test_a_source_that_fails(
    fake: Any, calls: int, reply: Reply, error: type[OnApiError]
) -> None:
    """At once or half-way: an error, never a shorter list."""
    if fake.kind == "kubo":
        calls = 0  # it is asked but once
    if isinstance(fake, PinList):
        calls += 1  # the first one is refused anyway
    with pytest.raises(error):
        await items(after(calls, reply, fake), fake.spec, read_timeout=0.6, retries=1)


@pytest.mark.parametrize(
    "reply", [says({}, "429 Wait", Retry_After="0"), says({}, "502 Oh"), Reply(b"{", length=99)]
)
async def test_a_source_that_recovers(fake: Any, reply: Reply) -> None:
    """Nothing is lost by it, and nothing comes twice."""
    calls = 0 if fake.kind == "kubo" else 2
    found = await items(after(calls, reply, fake, times=2), fake.spec)
    assert sorted(item.cid for item in found) == sorted(thing.cid for thing in things(11))


async def test_its_credentials_are_sent(fake: Any) -> None:
    """And to nobody else: private addresses are refused without the operator's word."""
    async with service(fake) as there:
        async with outbound() as calls:
            async for _ in open_source(fake.spec(there.url), calls).pages():
                pass
        assert {asked.headers["authorization"] for asked in there.asked} == {f"Bearer {TOKEN}"}
        heard = len(there.asked)
        async with outbound(allow_private=False) as calls:
            with pytest.raises(AddressRefused):
                open_source(fake.spec(there.url.replace("http", "https")), calls)
        assert len(there.asked) == heard


# --- Pinning Service API


@pytest.mark.parametrize("timespec", ["seconds", "milliseconds", "microseconds"])
@pytest.mark.parametrize("counts_all", [False, True])
@pytest.mark.parametrize("gap", [0.0004, 0.3, 1.5])
async def test_pins_of_one_moment(timespec: str, counts_all: bool, gap: float) -> None:
    """None is lost at the border of two pages, however exactly the service keeps moments. Only
    when a page has no room for those of one moment they can't be listed, and that is told."""
    has = [Thing(n, START - timedelta(seconds=gap * (n // 2))) for n in range(20)]
    fake = PinningApi(has)
    fake.page, fake.timespec, fake.counts_all = 7, timespec, counts_all
    if timespec == "seconds" and gap < 1:
        with pytest.raises(SourceMalformed):
            await items(fake, fake.spec)
        return
    found = await items(fake, fake.spec)
    assert sorted(item.cid for item in found) == sorted(thing.cid for thing in has)


async def test_more_pins_of_one_moment_than_a_page() -> None:
    """Can't be listed by this API: told, and not for ever."""
    fake = PinningApi([Thing(n, START) for n in range(9)])
    with pytest.raises(SourceMalformed, match="lists 3"):
        await items(fake, fake.spec)


async def test_half_a_page() -> None:
    """A service that says it has more than it ever lists."""
    fake = PinningApi(things(11))

    def hiding(asked: Asked) -> Reply:
        answer = json.loads(fake(asked).body)
        shown = [each for each in answer["results"] if each["requestid"] != "id-10"]
        return says({**answer, "results": shown})

    with pytest.raises(SourceMalformed, match="11 pins, but lists 10"):
        await items(hiding, fake.spec)


async def test_pins_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that always has an older one."""
    monkeypatch.setattr(pinning_api, "PAGE_ITEMS", 10)
    made = 0

    def endless(_: Asked) -> Reply:
        nonlocal made
        results = []
        for _number in range(10):
            made += 1
            created = written(START - timedelta(seconds=made))
            pin = {"requestid": str(made), "created": created, "pin": {"cid": "x"}}
            results.append({**pin, "status": "pinned", "delegates": []})
        return says({"count": 50, "results": results})

    with pytest.raises(SourceMalformed, match="more pins than"):
        await items(endless, PinningApi([]).spec)
    assert made < 300


async def test_pins_in_the_wrong_order() -> None:
    """Oldest first: paging by `before` would lose the others."""
    fake = PinningApi(list(reversed(things(11))))
    with pytest.raises(SourceMalformed):
        await items(fake, fake.spec)


async def test_pins_that_go_meanwhile() -> None:
    """Removed ones are gone, the others are all there."""
    fake = PinningApi(things(11))

    def shrinking(asked: Asked) -> Reply:
        reply = fake(asked)
        fake.has = [thing for thing in fake.has if thing.number != 7]
        return reply

    found = await items(shrinking, fake.spec)
    assert sorted(i.cid for i in found) == sorted(t.cid for t in things(11) if t.number != 7)


async def test_the_endpoint_as_people_write_it() -> None:
    """With or without its slash, or with `/pins`."""
    fake = PinningApi(things(2))
    for ending in ("/psa", "/psa/", "/psa/pins"):
        spec = partial(_ending_in, ending)
        assert len(await items(fake, spec)) == 2


def _ending_in(ending: str, url: str) -> SourceSpec:
    return SourceSpec("pinning_api", endpoint=url + ending, token=TOKEN)


async def test_what_is_no_cid() -> None:
    """An item with a problem, as long as a CID and free of what no database holds."""
    shown: list[Any] = ["nonsense", "x" * 500, "\x00\ud800", "", 7, None, cid(0)]

    def answer(_: Asked) -> Reply:
        results = [
            {"requestid": str(n), "created": written(START), "pin": {"cid": each}}
            for n, each in enumerate(shown)
        ]
        return says({"count": len(results), "results": results})

    found = await items(answer, PinningApi([]).spec)
    assert [item.problem for item in found] == [NO_CID] * 6 + [None]
    assert max(len(item.cid) for item in found) == 128
    json.dumps([item.cid for item in found]).encode().decode("ascii")
    assert not any("\0" in item.cid or "\ud800" in item.cid for item in found)


# --- Pinata


async def test_what_is_private_at_pinata() -> None:
    """Is listed with its reason, after the rest; so is what has no CID yet."""

    def answer(asked: Asked) -> Reply:
        network = asked.path.rpartition("/")[2]
        known = {"public": "pending", "private": cid(1)}[network]
        return says({"data": {"files": [{"cid": known, "name": network}]}})

    found = await items(answer, Pinata([]).spec)
    assert [(item.name, item.problem) for item in found] == [
        ("public", IS_PENDING),
        ("private", IS_PRIVATE),
    ]


async def test_a_key_for_the_public_network_alone() -> None:
    """Lists that."""
    fake = Pinata(things(4))

    def answer(asked: Asked) -> Reply:
        return says({}, "403 No") if "private" in asked.path else fake(asked)

    assert len(await items(answer, fake.spec)) == 4


async def test_tokens_that_lead_in_a_circle() -> None:
    """End."""
    answer = says({"data": {"files": [], "next_page_token": "again"}})
    with pytest.raises(SourceMalformed):
        await items(lambda _: answer, Pinata([]).spec)


async def test_older_pins_that_go_meanwhile() -> None:
    """What moves up behind a removed one is not passed over."""
    fake = PinList(things(11))

    def shrinking(asked: Asked) -> Reply:
        reply = fake(asked)
        if asked.query.get("pageOffset") == "3":
            fake.has = fake.has[2:]
        return reply

    found = {item.cid for item in await items(shrinking, fake.spec)}
    assert found == {thing.cid for thing in things(11)}


async def test_pinata_needs_no_endpoint() -> None:
    """It has but one."""
    async with outbound(allow_private=False) as calls:
        open_source(SourceSpec("pinata", token=TOKEN), calls)


# --- another on-api


async def test_files_stay_files() -> None:
    """With all that makes one."""
    fake = OnApi(things(3))
    found = await items(fake, fake.spec)
    file = found[0].file
    assert file is not None
    assert (file.name, file.size, file.media_type, file.visibility) == (
        "a",
        7,
        "text/plain",
        "public",
    )
    assert (file.sha256, file.meta) == (b"\xab" * 32, {"n": "0"})
    assert [item.file is None for item in found] == [False, False, True]


async def test_private_files_need_an_identity() -> None:
    """Exported by a login, or given; else they are listed with the reason."""
    fake = OnApi(things(1))

    def answer(asked: Asked) -> Reply:
        if asked.path == "/v1/auth/token":
            assert asked.body == b"username=ada&password=p+w"
            return says({"access_token": "short", "token_type": "bearer"})
        if asked.path == "/v1/users/me/identity/export":
            assert asked.headers["authorization"] == "Bearer short"
            assert json.loads(asked.body) == {"password": "p w"}
            keys = [{"identity": f"AGE-SECRET-KEY-1{n}"} for n in range(2)]
            return says({"identity": "x", "identities": keys})
        if asked.path == "/v2/files":
            return says({"items": [fake.file(things(1)[0], "private")], "next_cursor": None})
        return fake(asked)

    cases: list[tuple[Mapping[str, Any], str | None, list[str]]] = [
        ({}, NO_IDENTITY, []),
        ({"identities": ("AGE-X",)}, None, ["AGE-X"]),
        (
            {"username": "ada", "password": "p w"},
            None,
            ["AGE-SECRET-KEY-10", "AGE-SECRET-KEY-11"],
        ),
    ]
    for more, problem, identities in cases:
        async with service(answer) as there, outbound() as calls:
            spec = SourceSpec("on_api", endpoint=there.url, token=TOKEN, **more)
            source = open_source(spec, calls)
            found = [item async for page in source.pages() for item in page.items]
            assert [item.problem for item in found] == [problem]
            assert list(await source.identities()) == identities


# --- what people tell


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "ftp"},
        {"kind": "pinning_api", "endpoint": "https://x.example"},
        {"kind": "pinning_api", "token": "x"},
        {"kind": "pinning_api", "endpoint": "https://x.example", "token": "x", "path": "/etc"},
        {"kind": "pinata", "token": "x\r\nHost: y"},
        {"kind": "pinata", "token": "é"},
        {"kind": "pinata", "token": "x" * 10_000},
        {"kind": "cids", "text": "x", "token": "x"},
    ],
)
def test_specs_that_can_not_be(fields: Any) -> None:
    """Refused before anything is asked."""
    with pytest.raises(BadRequest):
        SourceSpec(**fields)


def test_specs_are_kept_and_show_no_secret() -> None:
    """Round a JSON text, which is sealed; `repr` may be logged."""
    spec = SourceSpec(
        "on_api", "https://x.example", "secret-1", "ada", "secret-2", identities=("secret-3",)
    )
    assert SourceSpec.from_json(spec.to_json()) == spec
    assert "secret" not in repr(spec)
