"""What the memory of hot answers holds: never more than it may, whatever is asked for."""

from __future__ import annotations

from on_api.core.services.gateway.hot_answers import AnswerKey, HotAnswer, HotAnswers

KIB = 1024
CAPACITY = 1024 * KIB
LONG = 32 * KIB
HEADERS = [(b"etag", b'"x"')]


def answer(headers: list[tuple[bytes, bytes]] = HEADERS) -> HotAnswer:
    """A small one."""
    return HotAnswer("bafkqaaa", headers, b"x", b'"x"')


def kept(keys: list[AnswerKey], headers: list[tuple[bytes, bytes]] = HEADERS) -> int:
    """How many of these are still known when all have been kept."""
    answers = HotAnswers(CAPACITY)
    for key in keys:
        answers.keep(key, answer(headers))
    assert answers.size <= CAPACITY
    return sum(answers.get(key) is not None for key in keys)


def test_what_the_client_sends_counts() -> None:
    """Path, query and Accept, each of which may be as long as a head: anybody may ask for one
    small file by any number of queries."""
    numbers = [b"%d" % n for n in range(200)]
    assert kept([(number, b"", b"") for number in numbers]) == 200
    long = b"a" * LONG
    for keys in (
        [(long + number, b"", b"") for number in numbers],
        [(b"/ipfs/x", long + number, b"") for number in numbers],
        [(b"/ipfs/x", b"", long + number) for number in numbers],
    ):
        assert 0 < kept(keys) * LONG < CAPACITY


def test_what_the_node_says_counts() -> None:
    """Its headers name the path that was asked for; they are held as such and as a head."""
    keys: list[AnswerKey] = [(b"%d" % n, b"", b"") for n in range(200)]
    headers = [*HEADERS, (b"x-ipfs-path", b"a" * LONG)]
    assert 0 < kept(keys, headers) * 2 * LONG < CAPACITY


def test_what_is_replaced_and_forgotten_counts_no_more() -> None:
    """Nor does what was gathered."""
    answers = HotAnswers(CAPACITY)
    for length in (LONG, 1, LONG):
        key = (b"/ipfs/x", b"a" * length, b"")
        answers.keep(key, answer())
        answers.keep(key, answer([*HEADERS, (b"x-ipfs-path", b"a" * length)]))
        answers.keep(key, answer())
    assert answers.size < 2 * LONG
    for _ in range(100):
        assert answers.reserve(key, HEADERS, KIB)
        answers.settle(key, HEADERS, KIB)


def test_what_is_on_its_way_counts_with_its_key_and_headers() -> None:
    """At most a quarter of the memory is taken by it."""
    for key, headers in (
        ((b"/ipfs/x", b"a" * LONG, b""), HEADERS),
        ((b"/ipfs/x", b"", b""), [(b"x-ipfs-path", b"a" * LONG)]),
    ):
        answers = HotAnswers(CAPACITY)
        taken = 0
        while answers.reserve(key, headers, 1):
            taken += 1
        assert 0 < taken * LONG <= CAPACITY // 4
