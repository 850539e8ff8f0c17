"""Log lines: whole, parseable, of one request, and not to be forged from outside."""

from __future__ import annotations

import io
import json
import logging

import pytest

from on_api.core.crypto.tokens import new_key, new_share_token
from on_api.core.logging import EXTRA, configure_logging, request_id
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
