"""Log lines: whole, parseable, of one request, and not to be forged from outside."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys

import pytest

from on_api.core.crypto.tokens import new_key, new_share_token
from on_api.core.logging import EXTRA, configure_logging, request_id
from on_api.core.models.revisions import PROJECT
from on_api.core.server_settings import LogSettings


def lines(style: str, monkeypatch: pytest.MonkeyPatch, message: str) -> list[str]:
    """What one warning looks like in a format."""
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    monkeypatch.setattr("sys.stderr", stream)
    token = request_id.set("abc123")
    try:
        configure_logging(LogSettings.model_validate({"format": style}))
        logging.getLogger("on_api.test").warning("%s", message, extra={EXTRA: {"status": 200}})
    finally:
        request_id.reset(token)
        root.handlers, root.level = handlers, level
    return stream.getvalue().splitlines()


def test_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """One object a line, with the request's id and the fields."""
    [line] = lines("json", monkeypatch, 'über\n"alles"')
    told = json.loads(line)
    assert told["message"] == 'über\n"alles"'
    assert (told["request_id"], told["status"], told["level"]) == ("abc123", 200, "WARNING")
    assert told["time"].endswith("Z")


def test_console(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new line from outside can't begin a line of its own."""
    [line] = lines("console", monkeypatch, "GET /\r\n2026 INFO forged")
    assert "request_id=abc123" in line
    assert "status=200" in line


@pytest.mark.parametrize("style", ["json", "console"])
def test_nothing_from_outside_steers_a_terminal(
    monkeypatch: pytest.MonkeyPatch, style: str
) -> None:
    """Or ends a line for some reader, or turns its direction."""
    outside = "\x1b\x9b\x7f\x00\u2028\u2029\u202e\u0085\x0b"
    [line] = lines(style, monkeypatch, f"GET /{outside}")
    assert not set(outside) & set(line)
    if style == "json":
        assert json.loads(line)["message"] == f"GET /{outside}"


@pytest.mark.parametrize("style", ["json", "console"])
def test_keys_are_cut_off(monkeypatch: pytest.MonkeyPatch, style: str) -> None:
    """Wherever a client has put one."""
    key = new_key()
    [line] = lines(style, monkeypatch, f"GET /v1/files/{key}")
    assert key not in line
    assert key[:12] in line


@pytest.mark.parametrize("style", ["json", "console"])
def test_links_are_cut_off(monkeypatch: pytest.MonkeyPatch, style: str) -> None:
    """Whoever logs one: a link is the secret itself."""
    token = new_share_token()
    [line] = lines(style, monkeypatch, f"GET https://files.example/s/{token}?download=1 failed")
    assert token not in line
    assert "https://files.example/s/…?download=1 failed" in line


def test_journalds_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each line, by its level, also before the lines of a traceback."""
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    monkeypatch.setattr("sys.stderr", stream)
    logger = logging.getLogger("on_api.test")
    try:
        configure_logging(LogSettings(format="json", priority=True))
        logger.info("one")
        logger.warning("two")
        configure_logging(LogSettings(priority=True))
        try:
            raise ValueError("three")
        except ValueError:
            logger.exception("failed")
    finally:
        root.handlers, root.level = handlers, level
    info, warning, *error = stream.getvalue().splitlines()
    assert info.startswith('<6>{"time"')
    assert json.loads(warning.removeprefix("<4>"))["message"] == "two"
    assert len(error) > 3
    assert all(line.startswith("<3>") for line in error)


def test_nothing_but_json_on_standard_error() -> None:
    """Not what Python itself tells of: a warning, an error in a thread, one in a finaliser, one
    that ends the process; nor why a command fails."""
    code = """
import threading, warnings
from on_api.core.logging import configure_logging, log_uncaught_errors, tell_failure
from on_api.core.models.revisions import PROJECT
from on_api.core.server_settings import LogSettings

class Last:
    def __del__(self):
        raise ValueError("in a finaliser")

configure_logging(LogSettings(format="json"))
log_uncaught_errors()
warnings.warn("a warning")
thread = threading.Thread(target=lambda: 1 / 0, name="divider")
thread.start()
thread.join()
Last()
tell_failure("The port is taken.")
raise KeyError("the end")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    told = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["level"] for line in told] == [
        "WARNING",
        "CRITICAL",
        "ERROR",
        "CRITICAL",
        "CRITICAL",
    ]
    warning, thread, finaliser, failure, end = told
    assert "a warning" in warning["message"]
    assert "divider" in thread["message"]
    assert "ZeroDivisionError" in thread["exception"]
    assert "in a finaliser" in finaliser["exception"]
    assert failure["message"] == "The port is taken."
    assert "KeyError" in end["exception"]
