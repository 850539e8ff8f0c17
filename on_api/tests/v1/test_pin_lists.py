"""Lists of pins: filters, the order, and the walk that real clients do until they have all."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any
from unicodedata import normalize

import pytest
from sqlalchemy import event

from on_api.tests.conftest import Account, Server
from on_api.tests.testing.pins import add_pin, list_pins, some_cid

EVERY = "queued,pinning,pinned,failed"


def names(account: Account, **query: Any) -> set[str | None]:
    """The names of all pins that match; the count says the same."""
    page = list_pins(account, limit=1000, **query)
    assert page["count"] == len(page["results"])
    return {pin["pin"].get("name") for pin in page["results"]}


def walk(account: Account, limit: int, **query: Any) -> list[dict[str, Any]]:
    """Every pin, as Kubo's client does it: `before` the last one, until `count` is what came."""
    found: list[dict[str, Any]] = []
    before: dict[str, str] = {}
    while True:
        page = list_pins(account, limit=limit, **query, **before)
        assert len(page["results"]) == min(limit, page["count"])
        found += page["results"]
        if page["count"] == len(page["results"]):
            return found
        before = {"before": page["results"][-1]["created"]}


def test_without_a_filter_only_what_is_pinned(carol: Account) -> None:
    """With a cid, a name or meta the pin is shown in every state; a status says it all."""
    cid = str(carol.upload(b"kept")["cid"])
    pinned = add_pin(carol, cid, name="pinned", meta={"a": "1"})
    queued = add_pin(carol, name="queued", meta={"a": "1"})
    assert (pinned["status"], queued["status"]) == ("pinned", "queued")
    assert names(carol) == names(carol, status="pinned") == {"pinned"}
    assert names(carol, status="queued") == {"queued"}
    assert names(carol, status="queued,pinned") == names(carol, status=EVERY)
    assert names(carol, status="failed,pinning") == set()
    assert names(carol, name="queued") == {"queued"}
    assert names(carol, cid=queued["pin"]["cid"]) == {"queued"}
    assert names(carol, meta='{"a": "1"}') == {"queued", "pinned"}
    assert names(carol, meta='{"a": "1"}', status="pinned") == {"pinned"}
    assert names(carol, name="queued", status="pinned") == set()
    # A page of time, and how names would be compared, narrow nothing.
    assert names(carol, after="2020-01-01T00:00:00Z") == {"pinned"}
    assert names(carol, match="partial") == {"pinned"}


NAMES = {"100%_Sure.TXT", "100xySure.TXT", "100%_sure.txt", "a\\b", "Straße ÄÖÜ", "ДОМ.txt", "日本"}


@pytest.mark.parametrize(
    ("match", "name", "expected"),
    [
        ("exact", "100%_Sure.TXT", {"100%_Sure.TXT"}),
        ("exact", "100%_SURE.TXT", set()),
        ("exact", "100%", set()),
        ("exact", "100_", set()),
        ("exact", "", set()),
        ("iexact", "100%_SURE.txt", {"100%_Sure.TXT", "100%_sure.txt"}),
        ("iexact", "100%_sure", set()),
        ("iexact", "straße äöü", {"Straße ÄÖÜ"}),
        ("iexact", "дом.TXT", {"ДОМ.txt"}),
        ("partial", "%_S", {"100%_Sure.TXT"}),
        ("partial", "_", {"100%_Sure.TXT", "100%_sure.txt"}),
        ("partial", "%", {"100%_Sure.TXT", "100%_sure.txt"}),
        ("partial", "SURE", set()),
        ("partial", "\\", {"a\\b"}),
        ("partial", "本", {"日本"}),
        ("partial", "äö", set()),
        ("ipartial", "SURE", {"100%_Sure.TXT", "100xySure.TXT", "100%_sure.txt"}),
        ("ipartial", "%_sURE", {"100%_Sure.TXT", "100%_sure.txt"}),
        ("ipartial", "äö", {"Straße ÄÖÜ"}),
        ("ipartial", "Дом", {"ДОМ.txt"}),
        ("ipartial", "A\\B", {"a\\b"}),
        ("ipartial", "", NAMES),
    ],
)
def test_four_ways_to_match_a_name(
    carol: Account, match: str, name: str, expected: set[str]
) -> None:
    """`%`, `_` and the backslash are letters like others; case is that of every alphabet."""
    for given in NAMES:
        add_pin(carol, name=given)
    add_pin(carol)
    assert names(carol, name=name, match=match) == expected
    if match == "exact":
        assert names(carol, name=name) == expected


@pytest.mark.parametrize("match", ["exact", "iexact", "partial", "ipartial"])
def test_names_are_found_however_their_letters_are_composed(carol: Account, match: str) -> None:
    """A letter and its accent are one text, whether in one piece or in two."""
    spelled = {normalize(form, "Éléphant.txt") for form in ("NFC", "NFD")}
    for given in (*spelled, "Elephant.txt"):
        add_pin(carol, name=given)
    for typed in spelled:
        assert names(carol, name=typed, match=match) == spelled


def test_meta_must_hold_every_pair(carol: Account) -> None:
    """Pins may have more; keys and values are compared whole, whatever is in them."""
    odd = {'q"': "\\", "$.a": "%", "ü": "日本", "": ""}
    add_pin(carol, name="one", meta={"a": "1", "b": "2"})
    add_pin(carol, name="two", meta={"a": "1", "b": "3", "c": ""})
    add_pin(carol, name="odd", meta=odd)
    add_pin(carol, name="none")
    for wanted, expected in (
        ({"a": "1"}, {"one", "two"}),
        ({"a": "1", "b": "2"}, {"one"}),
        ({"b": "2", "a": "1", "c": ""}, set()),
        ({"c": ""}, {"two"}),
        ({"a": "%"}, set()),
        ({"A": "1"}, set()),
        ({"a": ""}, set()),
        (odd, {"odd"}),
        ({"": ""}, {"odd"}),
    ):
        assert names(carol, meta=json.dumps(wanted)) == expected, wanted
    assert names(carol, meta='{"a": "1"}', name="two") == {"two"}
    # Nothing wanted is no filter.
    assert names(carol, meta="{}", status=EVERY) == {"one", "two", "odd", "none"}
    assert names(carol, meta="{}") == names(carol) == set()


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0},
        {"limit": 1001},
        {"limit": -1},
        {"limit": "ten"},
        {"limit": ""},
        {"limit": 10**30},
        {"status": "done"},
        {"status": ""},
        {"status": "pinned,"},
        {"status": "PINNED"},
        {"match": "fuzzy"},
        {"match": ""},
        {"name": "x" * 256},
        {"name": "\x00"},
        {"before": "yesterday"},
        {"before": "2020-07-27"},
        {"before": "2020-07-27T17:32:28"},
        {"after": ""},
        {"after": "2020-13-27T17:32:28Z"},
        {"before": "0001-01-01T00:00:00+23:59"},
        {"after": "9999-12-31T23:59:59-23:59"},
        {"cid": "bafkqaaa," * 10 + "bafkqaaa"},
        {"cid": "bafkqaaa,"},
        {"meta": "a"},
        {"meta": "null"},
        {"meta": "["},
        {"meta": "[" * 10_000},
        {"meta": '{"a": NaN}'},
    ],
    ids=lambda query: str(query)[:40],
)
def test_queries_that_are_wrong(carol: Account, query: dict[str, Any]) -> None:
    """400, saying which parameter it was."""
    answer = carol.client.get("/v1/pins", params=query)
    assert answer.status_code == 400, answer.text
    assert next(iter(query)) in answer.json()["error"]["details"]


def test_several_cids(carol: Account) -> None:
    """By commas as the specification says; repeated as some clients write lists."""
    made = [add_pin(carol) for _ in range(11)]
    cids = [pin["pin"]["cid"] for pin in made]
    for asked in (cids[:1], cids[:10], [cids[0], cids[0]], [some_cid()], [cids[3], some_cid()]):
        expected = {pin["requestid"] for pin in made if pin["pin"]["cid"] in asked}
        for form in (",".join(asked), asked):
            page = list_pins(carol, cid=form)
            assert {pin["requestid"] for pin in page["results"]} == expected
            assert page["count"] == len(expected)
    repeated = carol.client.get("/v1/pins?status=queued&status=pinned").json()
    assert repeated["count"] == 11
    too_many = carol.client.get("/v1/pins", params={"cid": cids})
    assert too_many.status_code == 400


def test_created_rises_strictly_in_a_burst(carol: Account) -> None:
    """In milliseconds, each moment once, in the order of the list; not far from the clock."""
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: add_pin(carol), range(120)))
    listed = walk(carol, 1000, status=EVERY)
    moments = [pin["created"] for pin in listed]
    assert len(set(moments)) == 120
    assert moments == sorted(moments, reverse=True)
    assert {pin["requestid"] for pin in made} == {pin["requestid"] for pin in listed}
    newest = datetime.fromisoformat(moments[0])
    assert abs(datetime.now(newest.tzinfo) - newest) < timedelta(minutes=1)


def test_ten_are_shown_and_all_are_counted(carol: Account) -> None:
    """The newest first; the default is 10."""
    made = [add_pin(carol)["requestid"] for _ in range(12)]
    page = list_pins(carol, status=EVERY)
    assert page["count"] == 12
    assert [pin["requestid"] for pin in page["results"]] == made[::-1][:10]


@pytest.mark.parametrize("limit", [1, 2, 5, 12, 13, 1000])
def test_a_walk_finds_every_pin_once(carol: Account, dave: Account, limit: int) -> None:
    """Whatever the page; in spite of pins that come meanwhile; and nobody else's."""
    made = [add_pin(carol, name=f"n{number % 2}")["requestid"] for number in range(12)]
    add_pin(dave)
    assert [pin["requestid"] for pin in walk(carol, limit, status=EVERY)] == made[::-1]
    odd = [pin["requestid"] for pin in walk(carol, limit, name="n1")]
    assert odd == made[1::2][::-1]
    first = list_pins(carol, limit=1, status=EVERY)["results"][0]
    add_pin(carol)
    rest = list_pins(carol, limit=1000, status=EVERY, before=first["created"])
    assert [pin["requestid"] for pin in rest["results"]] == made[:-1][::-1]
    assert rest["count"] == 11


def test_before_and_after_are_exclusive_and_counted(carol: Account) -> None:
    """In any offset, with every other filter."""
    made = [add_pin(carol, name="even" if n % 2 == 0 else "odd") for n in range(8)]
    moments = [pin["created"] for pin in made]
    for _ in range(20):
        low, high = sorted(random.sample(range(8), 2))
        page = list_pins(carol, status=EVERY, after=moments[low], before=moments[high])
        ids = [pin["requestid"] for pin in page["results"]]
        assert ids == [pin["requestid"] for pin in made[low + 1 : high]][::-1]
        assert page["count"] == len(ids)
    elsewhere = datetime.fromisoformat(moments[3]).astimezone().isoformat()
    assert list_pins(carol, status=EVERY, before=elsewhere)["count"] == 3
    assert list_pins(carol, name="odd", after=moments[1])["count"] == 3
    assert list_pins(carol, name="odd", after=moments[1], limit=1)["count"] == 3
    assert list_pins(carol, status=EVERY, before=moments[2], after=moments[5])["count"] == 0
    for far in ("0001-01-01T00:00:00Z", "1969-12-31T23:59:59.999Z"):
        assert list_pins(carol, status=EVERY, after=far)["count"] == 8
        assert list_pins(carol, status=EVERY, before=far)["count"] == 0
    assert list_pins(carol, status=EVERY, before="9999-12-31T23:59:59.999Z")["count"] == 8


def test_the_counter_and_the_rows_agree(resting: Server, carol: Account) -> None:
    """What is pinned is counted by a counter: after pins, removals and replacements too."""
    cids = [str(carol.upload(f"{n}".encode())["cid"]) for n in range(4)]
    made = [add_pin(carol, cid) for cid in cids]
    add_pin(carol)
    carol.client.delete(f"/v1/pins/{made[0]['requestid']}")
    url = f"/v1/pins/{made[1]['requestid']}"
    replaced = carol.client.post(url, json={"cid": cids[0]}).json()
    assert list_pins(carol)["count"] == list_pins(carol, status="pinned")["count"] == 3
    url = f"/v1/pins/{replaced['requestid']}"
    assert carol.client.post(url, json={"cid": some_cid()}).json()["status"] == "queued"
    assert list_pins(carol)["count"] == list_pins(carol, status="pinned")["count"] == 2
    assert len(list_pins(carol)["results"]) == 2

    statements: list[str] = []

    def note(*execution: Any) -> None:
        statements.append(execution[2])

    event.listen(resting.services.database.engine, "before_cursor_execute", note)
    try:
        list_pins(carol)
        list_pins(carol, status="pinned")
        assert not [said for said in statements if "count(" in said and "pins" in said]
        list_pins(carol, name="x")
        assert [said for said in statements if "count(" in said and "pins" in said]
    finally:
        event.remove(resting.services.database.engine, "before_cursor_execute", note)
