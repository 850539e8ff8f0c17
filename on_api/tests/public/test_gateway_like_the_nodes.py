"""`/ipfs` answers what the node's own gateway does, header by header: policy `local`, nobody's key.

`OURS` names every header in which they may differ, `DIFFERENT` every request.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.client import IncompleteRead

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from on_api.core.setting_groups import GatewaySettings
from on_api.tests.conftest import DatabaseMaker, Kubo, Server, make_settings
from on_api.tests.testing.gateway_corpus import FILES, Answer, Corpus, RawClient, raw_client
from on_api.tests.testing.pins import forms_of

OURS = {
    # of the connection or of the server that answers
    "connection", "date", "keep-alive", "server", "transfer-encoding",
    # on-api's own: users' bytes get no origin of ours, and are of no other type than they say
    "content-security-policy", "x-content-type-options", "x-request-id",
}  # fmt: skip
CORS = {f"access-control-{what}" for what in (
    "allow-headers", "allow-methods", "allow-origin", "expose-headers"
)}  # fmt: skip


@dataclass(frozen=True)
class Both:
    """The node's gateway, and on-api's in front of it."""

    node: RawClient
    on_api: RawClient
    corpus: Corpus
    server: Server

    def compare(
        self, target: str, headers: dict[str, str] | None = None, methods: str = "GET HEAD"
    ) -> Answer:
        """Ask both; on-api more than once, so that the later answers come from memory. Returns the
        node's answer to the first method."""
        first = None
        for method in methods.split():
            where = f"{method} {target} {headers}"
            try:
                theirs = self.node(target, headers, method)
            except IncompleteRead:  # of odd ranges: it sends less than it announces
                _must_fail(self.on_api, target, headers)
                return Answer(0, {}, b"")
            for _ in range(3):
                ours = self.on_api(target, headers, method)
                assert ours.status == theirs.status, where
                assert _comparable(ours) == _comparable(theirs), where
                assert _comparable_body(ours) == _comparable_body(theirs), where
            first = first or theirs
        assert first is not None
        return first

    def compare_ignoring(self, target: str, headers: dict[str, str], methods: str) -> None:
        """on-api's answers are those that the node gives without these headers."""
        for method in methods.split():
            where = f"{method} {target} {headers}"
            theirs = self.node(target, None, method)
            for _ in range(2):
                ours = self.on_api(target, headers, method)
                assert ours.status == theirs.status, where
                assert _comparable(ours) == _comparable(theirs), where
                assert ours.body == theirs.body, where


def _comparable(answer: Answer) -> dict[str, str]:
    """With what isn't to be compared left out; of redirects to a tidier path the node says only
    for some who may read them."""
    left_out = CORS | OURS if answer.status == 307 else OURS
    return {name: value for name, value in answer.headers.items() if name not in left_out}


def _comparable_body(answer: Answer) -> object:
    """Without the moment that a tar carries: that at which it was asked for."""
    if answer.headers.get("content-type") != "application/x-tar" or not answer.body:
        return answer.body
    with tarfile.open(fileobj=io.BytesIO(answer.body)) as tar:
        return [
            (each.name, each.type, each.mode, each.size, file.read() if file else b"")
            for each in tar
            for file in [tar.extractfile(each)]
        ]


def _must_fail(ask: RawClient, target: str, headers: dict[str, str] | None) -> None:
    """An error, or an answer that is seen to be cut."""
    with suppress(IncompleteRead):
        assert ask(target, headers).status == 502


@pytest.fixture(scope="module")
def both(
    sqlite_database: DatabaseMaker, kubo: Kubo, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Both]:
    """Both, and what there is to be had."""
    changed = make_settings(
        tmp_path_factory.mktemp("local"),
        sqlite_database(),
        ipfs=kubo.ipfs,
        gateway=GatewaySettings(policy="local"),
    )
    with (
        Server(changed) as server,
        raw_client(changed.gateway_url) as node,
        raw_client(server.url) as on_api,
    ):
        yield Both(node, on_api, Corpus(kubo), server)


def test_files_folders_and_listings(both: Both) -> None:
    """By every name, with index, listing and redirect; 10,000 entries in a HAMT."""
    folder = both.corpus.folder
    for name, data in FILES.items():
        assert both.compare(both.corpus.path(name)).body == data
    assert both.compare(f"/ipfs/{folder}").status == 301
    assert b"listing" in both.compare(f"/ipfs/{folder}/").body
    assert both.compare(f"/ipfs/{folder}/sub").status == 301
    assert both.compare(f"/ipfs/{folder}/sub/").body == FILES["sub/index.html"]
    assert both.compare(f"/ipfs/{folder}/listing?x=1").headers["location"].endswith("?x=1")
    assert both.compare(f"/ipfs/{both.corpus.hamt}/09999").body == b"x"
    assert both.compare(f"/ipfs/{both.corpus.hamt}/nothing").status == 404
    # The node lists a HAMT in no order that lasts.
    theirs, ours = (ask(f"/ipfs/{both.corpus.hamt}/") for ask in (both.node, both.on_api))
    assert (ours.status, _comparable(ours)) == (theirs.status, _comparable(theirs))
    assert sorted(ours.body.split()) == sorted(theirs.body.split())
    assert both.compare(f"/ipfs/{folder}/nothing").status == 404
    assert both.compare(f"/ipfs/{folder}/a.txt/nothing").status == 404
    for form in forms_of(both.corpus.raw).values():
        if "/" not in form:
            assert both.compare(f"/ipfs/{form}").body == FILES["joined.bin"]


@pytest.mark.parametrize(
    "kind", ["raw", "car", "tar", "json", "cbor", "dag-json", "dag-cbor", "ipns-record", "nonsense"]
)
def test_formats(both: Both, kind: str) -> None:
    """By query, by Accept, by both."""
    corpus = both.corpus
    roots = [corpus.folder, corpus.raw, corpus.dag_json, corpus.json, corpus.dag_cbor, corpus.cbor]
    for root in roots:
        both.compare(f"/ipfs/{root}?format={kind}")
        both.compare(f"/ipfs/{root}/?format={kind}&filename=a%20name.bin&download=true", None)
        media_type = {"tar": "application/x-tar", "json": "application/json"}.get(
            kind, f"application/vnd.ipld.{kind}"
        )
        both.compare(f"/ipfs/{root}", {"Accept": media_type})
        both.compare(f"/ipfs/{root}?format=raw", {"Accept": media_type})
    both.compare(f"/ipfs/{corpus.folder}/sub/index.html?format={kind}")
    both.compare(f"/ipfs/{corpus.hamt}?format={kind}", methods="HEAD")


def test_cars(both: Both) -> None:
    """Parts of DAGs, and the order and repetition of blocks."""
    folder = both.corpus.folder
    accept = "application/vnd.ipld.car; version=1; order={}; dups={}"
    for order in ("dfs", "unk"):
        for dups in ("y", "n"):
            both.compare(f"/ipfs/{folder}", {"Accept": accept.format(order, dups)})
    for scope in ("block", "entity", "all", "nonsense"):
        both.compare(f"/ipfs/{folder}/sub/deep?format=car&dag-scope={scope}")
    for part in ("0:*", "5:100", "1048576:2097152", "-100:*", "*:5", "9:1"):
        path = both.corpus.path("big.bin")
        both.compare(f"{path}?format=car&dag-scope=entity&entity-bytes={part}", methods="GET")
    both.compare(f"/ipfs/{folder}?format=car&car-order=dfs&car-dups=y&car-version=1")
    both.compare(f"/ipfs/{folder}?format=car&car-version=2")
    assert both.compare(f"/ipfs/{folder}/nothing?format=car").status == 200


def test_names_to_save_under(both: Both) -> None:
    """`filename`, `download`, and a query that means nothing."""
    path = both.corpus.path("a.txt")
    for query in (
        "filename=x.html", "filename=%E5%9C%B0.txt", "download=true&filename=a%22b.txt",
        "download=true", "filename=a+b%20c", "x=%2F..%2F&y=;&z", "filename=ü", "?", "format=",
    ):  # fmt: skip
        both.compare(f"{path}?{quote_what_must_be(query)}")


def quote_what_must_be(query: str) -> str:
    """`http.client` writes ASCII only."""
    return query.replace("ü", "%C3%BC")


def test_conditions(both: Both) -> None:
    """If-None-Match in its forms, what isn't in the node's store, what was changed since."""
    corpus = both.corpus
    targets = [
        corpus.path("a.txt"), corpus.path("hot.bin"), corpus.path("big.bin"), f"/ipfs/{corpus.raw}",
        f"/ipfs/{corpus.raw}?format=raw", f"/ipfs/{corpus.folder}/", f"/ipfs/{corpus.folder}/sub/",
        f"/ipfs/{corpus.folder}?format=car", f"/ipfs/{corpus.dag_json}",
    ]  # fmt: skip
    for target in targets:
        etag = both.compare(target).headers["etag"]
        for value in (etag, f"W/{etag}", f'"x", {etag}', "*", '"x"', "", f"{etag},", "W/*"):
            both.compare(target, {"If-None-Match": value})
        for value in (etag, '"x"', "*"):
            both.compare(target, {"If-Match": value})
            both.compare(target, {"If-Range": value, "Range": "bytes=1-2"})
        both.compare(target, {"If-Modified-Since": "Tue, 24 Nov 2026 11:28:40 GMT"})
        both.compare(target, {"If-Unmodified-Since": "Tue, 24 Nov 2020 11:28:40 GMT"})
        both.compare(target, {"Cache-Control": "only-if-cached"})
        both.compare(target, {"Cache-Control": "no-cache"})
    absent = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"
    assert both.compare(f"/ipfs/{absent}").status == 404
    assert both.compare(f"/ipfs/{absent}", {"Cache-Control": "only-if-cached"}).status == 412


NUMBERS = st.one_of(
    st.integers(0, 20), st.integers(299_990, 300_010), st.integers(0, 4_000_000)
).map(str)
ONE_RANGE = st.one_of(
    st.builds("{}-{}".format, NUMBERS, NUMBERS),
    st.builds("{}-".format, NUMBERS),
    st.builds("-{}".format, NUMBERS),
    st.sampled_from(["-", "", "x-y", " 0-1", "0 - 1", "0-1 ", "--1", "99999999999999999999-"]),
)
RANGES = st.one_of(ONE_RANGE, st.lists(ONE_RANGE, min_size=2, max_size=3).map(",".join))


@given(
    name=st.sampled_from(["a.txt", "empty", "hot.bin", "big.bin", "sub/index.html"]),
    unit=st.sampled_from(["bytes", "bytes", "bytes", "lines"]),
    ranges=RANGES,
)
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_ranges(both: Both, name: str, unit: str, ranges: str) -> None:
    """Any range of any file, also of one in memory: what is to be ignored is (RFC 9110, 14.2), of
    which the node makes an error."""
    path, wanted = both.corpus.path(name), {"Range": f"{unit}={ranges}"}
    both.on_api(path)
    for target, methods in ((path, "GET HEAD"), (f"{path}?format=raw", "GET")):
        if not is_well_formed(unit, ranges):
            both.compare_ignoring(target, wanted, methods)
        elif re.search(r"(^|,)-", ranges) is None:
            both.compare(target, wanted, methods)
        else:
            size = int(both.node(target, None, "HEAD").headers["content-length"])
            last = {int(part[1:]) for part in ranges.split(",") if part.startswith("-")}
            if min(last) > 0 and max(last) <= size:
                both.compare(target, wanted, methods)


def is_well_formed(unit: str, ranges: str) -> bool:
    """Whether every range of a list is one of bytes."""
    for part in ranges.split(","):
        match = re.fullmatch(r" *(?:(\d{1,19})-(\d*)|-(\d{1,19})) *", part)
        if unit != "bytes" or match is None:
            return False
        first, last, _ = match.groups()
        if first and last and int(last) < int(first):
            return False
    return True


@pytest.mark.parametrize("name", ["a.txt", "empty", "hot.bin", "big.bin"])
@pytest.mark.parametrize(
    "wanted",
    [
        "bytes=-5", "bytes=-0", "bytes=-9999999999", "bytes=-99999999999999999999", "items=0-5",
        "bytes=5-2", "bytes=", "bytes=x-y", "0-5", "bytes=0-1,x", "bytes = 0-1", "BYTES=0-1",
        "bytes=0-", "bytes=99999999-", "bytes=0-99999999", "bytes=0-1,5-2",
    ],
)  # fmt: skip
def test_a_range_is_read_as_that_of_content(both: Both, wanted: str, name: str) -> None:
    """GET and HEAD, from the node and from memory: the status, the part and the bytes that
    `/v1/files/{id}/content` answers for the same bytes."""
    path = both.corpus.path(name)
    somebody = both.server.new_user()
    with somebody.client as client:
        file = somebody.upload(both.node(path).body)
        for method in ("GET", "HEAD"):
            content = client.request(
                method, f"/v1/files/{file['id']}/content", headers={"Range": wanted}
            )
            for _ in range(2):
                ours = both.on_api(path, {"Range": wanted}, method)
                assert ours.status == content.status_code
                assert ours.headers.get("content-range") == content.headers.get("content-range")
                if ours.status < 400:
                    assert ours.body == content.content
                    assert ours.headers["content-length"] == content.headers["content-length"]


def test_not_modified_from_memory(both: Both) -> None:
    """The same headers as the node's, whatever selected the representation."""
    path = both.corpus.path("a.txt")
    for headers in ({}, {"Accept": "application/vnd.ipld.raw"}):
        etag = both.node(path, headers).headers["etag"]
        both.on_api(path, headers)
        both.compare(path, {**headers, "If-None-Match": etag})


def test_paths_however_they_are_written(both: Both) -> None:
    """One decoding, one cleaning: as the node does it."""
    corpus = both.corpus
    folder, raw = corpus.folder, corpus.raw
    for path in (
        "/ipfs", "/ipfs/", "/ipfs/foo", f"/ipfs/{raw}.", f"/ipfs/%20{raw}", f"/ipfs/ipfs/{raw}",
        f"/ipfs/ipns/{raw}", f"/ipfs/ipfs/{folder}/a.txt?x=1", f"/ipfs/?uri=ipfs://{raw}",
        f"/ipfs/{folder}/../{raw}", f"/ipfs/{folder}/sub/..", f"/ipfs/{folder}//a.txt",
        f"/ipfs//{folder}/a.txt?x=%2F", f"/ipfs/{folder}/./a.txt", f"/ipfs/{folder}/sub//",
        f"/ipfs/{folder}/sub/.", f"/ipfs/{folder}/%2e%2e/{raw}", f"/ipfs/{folder}%2f..%2f{raw}",
        f"/ipfs/{folder}/sub/%2e%2e", f"/ipfs/{folder}/sub/%2e%2e/", f"/ipfs/{folder}/%2fa.txt",
        f"/ipfs/{folder}/%2e/a.txt", f"/ipfs/{folder}/a.txt/", f"/ipfs/{folder}/a.txt%2f",
        f"/ipfs/{folder}/sub%2f", f"/ipfs/{folder}%2fa.txt", f"/ipfs/{folder}/%61.txt",
        f"/ipfs/%62{raw[1:]}", f"/ipfs/{folder}/%252e%252e/{raw}", f"/ipfs/{folder}/%ff%fe",
        f"/ipfs/{folder}/a%2Bb%20c.txt", f"/ipfs/{folder}/..%5c{raw}", f"/ipfs/{folder}\\..\\{raw}",
        f"/ipfs/{folder}/%2e%2e/%2e%2e/ipfs/{raw}", f"/ipfs/%2e%2e/ipfs/{raw}", f"/%69pfs/{raw}",
        f"/ipfs/{raw.upper()}", f"/ipfs/{folder}/...", f"/ipfs/{folder}/a.txt;x=1",
        f"/ipfs/{folder}/%3fformat=raw", f"/ipfs/{folder}/[x]", f"/ipfs/{folder}/a'b(c)!*~",
        f"/ipfs/{folder}/a.txt?", f"/ipfs/{folder}?format=raw&format=car", f"/ipfs/{raw}/x",
        f"/ipfs/{corpus.dag_cbor}/link/a.txt", f"/ipfs/{corpus.dag_json}/link/sub/",
        f"/ipfs/{corpus.dag_json}/name",
    ):  # fmt: skip
        both.compare(path)


DIFFERENT = [
    # What on-api answers instead of what the node does, and why.
    ("/ipfs/{raw}%0a", 400),  # the node overlooks a line's end in a CID: no second way to write one
    ("/ipfs/{folder}/%00", 400),  # its header would hold a control character
    ("/ipfs/{folder}/%zz", 400),  # the same status in other words
    ("/ipfs/{folder}/../../ipns/localhost", 404),  # no redirect out of /ipfs
    ("/ipfs/{folder}/%2e%2e/%2e%2e/ipns/localhost", 404),
    ("/ipfs/%2e%2e", 404),
    ("/ipfs%2f{folder}", 301),  # decoded before it is decided: the node knows no such path
    ("/ipns/localhost", 404),  # no names
    ("/ipns/", 404),
]


def test_what_is_different(both: Both) -> None:
    """Every request that on-api answers otherwise than the node, and no more."""
    names = {"raw": both.corpus.raw, "folder": both.corpus.folder}
    for path, status in DIFFERENT:
        assert both.on_api(path.format(**names)).status == status, path
    # The node begins a CAR of what it hasn't, and ends it with words.
    absent = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"
    assert both.on_api(f"/ipfs/{absent}?format=car").status == 502
    worker = both.on_api(f"/ipfs/{both.corpus.raw}", {"Service-Worker": "script"})
    assert (worker.status, b"not allowed" in worker.body) == (400, True)


def test_methods_and_preflights(both: Both) -> None:
    """Reading alone; what a browser asks before it reads."""
    path = both.corpus.path("a.txt")
    both.compare(path, {"Origin": "https://a.example"})
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "GET"}
    both.compare(path, asked, "OPTIONS")
    both.compare("/ipfs/", asked, "OPTIONS")
    both.compare(path, {"Content-Length": "0"}, "POST PUT DELETE PATCH")


def test_headers_of_the_client_that_are_not_passed_on(both: Both) -> None:
    """The node would redirect to, or build URLs of, a host that the client names."""
    for headers in (
        {"X-Forwarded-Host": "localhost"}, {"X-Forwarded-Proto": "https"},
        {"Forwarded": "host=localhost"}, {"Accept-Encoding": "gzip"}, {"Cookie": "a=b"},
        {"X-Ipfs-Gateway-Prefix": "/x"}, {"Referer": "https://a.example"},
    ):  # fmt: skip
        for target in (f"/ipfs/{both.corpus.folder}/", f"/ipfs/{both.corpus.folder}"):
            plain, told = both.on_api(target), both.on_api(target, headers)
            assert (told.status, told.body) == (plain.status, plain.body), headers
            assert _comparable(told) == _comparable(plain), headers
