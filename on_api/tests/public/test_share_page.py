"""The page of a link, whatever a file is called. What a browser makes of it is in `browser/`."""

from __future__ import annotations

import re
from html import unescape

import httpx
import pytest

from on_api.tests.conftest import Account
from on_api.tests.testing.shares import share

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
HOSTILE = [
    "<script>document.title='owned'</script>.txt",
    '"><img src=x onerror="document.title=\'owned\'">',
    "</title><script>document.title='owned'</script>",
    "&lt;b&gt; &amp; ' \" `",
    "javascript:document.title='owned'",
    "{{7*7}} ${7*7} %s {0}",
    "日本語 🦄 ünïcödé " + "x" * 200,
]


@pytest.mark.parametrize(
    ("accept", "page"),
    [
        (BROWSER["Accept"], True),
        ("text/html", True),
        ("TEXT/HTML; q=0.9, */*;q=0.1", True),
        ("*/*", False),
        ("", False),
        ("application/pdf, text/html;q=0.5", False),
        ("text/html;q=0, */*", False),
        ("text/html;q=nonsense", False),
        ("image/avif,image/webp,*/*;q=0.8", False),
        ("text/plain", False),
    ],
)
def test_who_gets_the_page(
    alice: Account, anonymous: httpx.Client, accept: str, page: bool
) -> None:
    """Who would rather have HTML than anything else; nobody who asks for a part or a download."""
    link = share(alice, alice.upload(b"<p>shared</p>", "a.html"))
    headers = {"Accept": accept}
    answer = anonymous.get(link.path, headers=headers)
    assert (answer.content != b"<p>shared</p>") == page
    assert answer.headers["vary"] == "Accept"
    for bytes_always in (
        anonymous.get(f"{link.path}?download=1", headers=headers),
        anonymous.get(link.path, headers={**headers, "Range": "bytes=0-"}),
    ):
        assert bytes_always.content == b"<p>shared</p>"
    head = anonymous.head(link.path, headers=headers)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == answer.headers["content-type"]
    assert head.headers["content-length"] == answer.headers["content-length"]


def test_headers_of_the_page(alice: Account, anonymous: httpx.Client) -> None:
    """No script, no frame, no other place to send the form to; kept by nobody, told to nobody; of
    errors too."""
    link = share(alice, alice.upload(b"x"), password="word")
    for answer, status in (
        (anonymous.get(link.path, headers=BROWSER), 200),
        (anonymous.post(link.path, headers=BROWSER, data={"password": "wrong"}), 403),
        (anonymous.post(link.path, headers=BROWSER), 403),
        (anonymous.get("/s/x", headers=BROWSER), 404),
        (anonymous.put(link.path, headers=BROWSER), 405),
    ):
        assert answer.status_code == status
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        policy = dict(
            directive.split(" ", 1)
            for directive in answer.headers["content-security-policy"].split("; ")
        )
        assert policy.pop("style-src").startswith("'sha256-")
        assert policy == {
            "default-src": "'none'",
            "form-action": "'self'",
            "base-uri": "'none'",
            "frame-ancestors": "'none'",
        }
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "private, no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "<script" not in answer.text
        assert link.token not in answer.text


@pytest.mark.parametrize("name", HOSTILE)
def test_any_name_is_only_text(alice: Account, anonymous: httpx.Client, name: str) -> None:
    """The page's own elements are all that there are; what is read is the name."""
    link = share(alice, alice.upload(b"x", name))
    html = anonymous.get(link.path, headers=BROWSER).text
    tags = set(re.findall(r"<\s*([a-z!]\w*)", html, re.IGNORECASE))
    assert tags == {
        "!doctype", "html", "head", "meta", "title", "style", "body", "main", "h1", "bdi", "p",
        "form", "button",
    }  # fmt: skip
    heading = re.search(r"<bdi>(.*?)</bdi>", html, re.DOTALL)
    assert heading is not None
    assert unescape(heading[1]) == name


def test_a_name_cant_turn_itself_around(alice: Account, anonymous: httpx.Client) -> None:
    """`photo_gpj.exe` would else be read as `photo_exe.jpg`."""
    link = share(alice, alice.upload(b"x", "photo_\u202egpj.exe"))
    assert "photo_\ufffdgpj.exe" in anonymous.get(link.path, headers=BROWSER).text


@pytest.mark.parametrize(
    ("size", "shown"), [(0, "0 bytes"), (999, "999 bytes"), (1234, "1.23 kB"), (2_000_000, "2 MB")]
)
def test_sizes_are_for_people(
    alice: Account, anonymous: httpx.Client, size: int, shown: str
) -> None:
    """In powers of 1000, as everywhere here."""
    link = share(alice, alice.upload(bytes(size), "x.bin"))
    html = anonymous.get(link.path, headers=BROWSER).text
    assert f"<p>{shown} · application/octet-stream</p>" in html
