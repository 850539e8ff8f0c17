"""`make bench` counts nothing that is wrong: bytes, statuses and lengths are looked at, a failure
fails the run by name; and a change is judged by its spread."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from benchmarks import __main__ as bench
from benchmarks.bodies import PIECE_BYTES, Body
from benchmarks.compare import Change, compare
from benchmarks.figures import Figure
from benchmarks.load import Job, WrongAnswerError, measure
from benchmarks.results import read_figures
from benchmarks.scenarios.registry import SCENARIOS, Variant
from benchmarks.stage import Stage

BODY = Body("a seed", 7, 2 * PIECE_BYTES + 4321)


def test_a_body_is_known_again_in_any_pieces() -> None:
    """And no byte of it may be another one, nor stand elsewhere."""
    whole = BODY.whole()
    assert len(whole) == BODY.size
    assert whole != Body("a seed", 8, BODY.size).whole()
    for start, length in ((0, 20), (0, BODY.size), (5, 30), (PIECE_BYTES - 3, 40), (77, 2**20)):
        part = whole[start : start + length]
        assert BODY.holds(part, start)
        assert not BODY.holds(part, start + 1)
        for place in {0, length // 2, length - 1}:
            broken = bytearray(part)
            broken[place] ^= 1
            assert not BODY.holds(bytes(broken), start)
    assert not BODY.holds(whole + b"more", 0)


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A server that always says the same."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "damage", "words"),
    [(200, "none", ""), (200, "a bit", "wrong bytes"), (200, "the end", "bytes came"),
     (503, "none", "answered 503")],
)  # fmt: skip
def test_the_load_looks_at_what_comes(status: int, damage: str, words: str) -> None:
    """Right bytes pass, and only they."""
    body = bytearray(BODY.whole())
    if damage == "a bit":
        body[PIECE_BYTES + 100] ^= 1
    if damage == "the end":
        del body[-1]
    with answering(status, bytes(body)) as url:
        job = Job(url, count=2, answer=BODY, answer_bytes=BODY.size)
        if not words:
            assert measure(job).bytes_in == 2 * BODY.size
            return
        with pytest.raises(WrongAnswerError, match=words):
            measure(job)


def test_a_failure_fails_the_run_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others go on, and what they measured is written."""

    def good(_stage: Stage) -> list[Figure]:
        return [Figure("good", "files/s", [3.0, 4.0], [1.0, 2.0], "nothing", at_least=2)]

    def bad(_stage: Stage) -> list[Figure]:
        raise WrongAnswerError("answered 500, not 201")

    monkeypatch.setitem(SCENARIOS, "bad", (bad, (Variant("sqlite"),)))
    monkeypatch.setitem(SCENARIOS, "good", (good, (Variant("sqlite"),)))
    app, written = Typer(), tmp_path / "bench.json"
    app.command()(bench.main)
    done = CliRunner().invoke(app, ["bad", "good", "--json", str(written)])
    assert done.exit_code == 1
    assert "FAILED bad on sqlite, 1: WrongAnswerError: answered 500" in done.output
    document, figures = read_figures(written)
    assert figures == [replace(good(None)[0], database="sqlite")]  # type: ignore[arg-type]
    assert document["figures"][0]["reached"] is True
    assert {"processor", "cores", "memory_mib", "kernel"} <= document["machine"].keys()
    assert {"python", "on-api", "kubo", "sqlalchemy"} <= document["versions"].keys()
    assert json.loads(written.read_text())["failures"].keys() == {"bad on sqlite, 1"}


@pytest.mark.parametrize(
    ("ours", "change"),
    [([5, 6], Change.SAME), ([9, 10], Change.BETTER), ([1, 2], Change.WORSE)],
)
def test_a_change_is_judged_by_its_spread(ours: list[float], change: Change) -> None:
    """Ranges that touch say nothing; without a counterpart nothing is judged at all."""
    before = Figure("work", "files/s", [4, 7], [1, 1], "Kubo")
    assert compare([before], [replace(before, ours=ours)])[0][2] is change
    less = replace(before, at_most=1.5)
    turned = {Change.BETTER: Change.WORSE, Change.WORSE: Change.BETTER}.get(change, change)
    assert compare([less], [replace(less, ours=ours)])[0][2] is turned
    alone = replace(before, theirs=())
    assert compare([alone], [replace(alone, ours=ours)])[0][2] is Change.UNJUDGED
    assert compare([before], [])[0][2] is Change.GONE
    assert compare([], [before])[0][2] is Change.NEW
