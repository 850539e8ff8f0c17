"""The page of a link: what a person sees and presses, in a real browser, whatever a file is
called."""

from __future__ import annotations

import re
from html import unescape

import httpx
import pytest
from playwright.sync_api import Page, expect

from on_api.tests.conftest import Account, Server
from on_api.tests.public.conftest import needs_chromium
from on_api.tests.shares import share

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


@needs_chromium
def test_download_in_a_browser(page: Page, server: Server, alice: Account) -> None:
    """One press; the address shows no more than the link."""
    link = share(alice, alice.upload(b"shared", "Grüße.txt"), max_downloads=1)
    page.goto(server.url + link.path)
    expect(page.get_by_role("heading")).to_have_text("Grüße.txt")
    expect(page.get_by_text("6 bytes · text/plain")).to_be_visible()
    expect(page.get_by_label("Password")).to_have_count(0)
    assert link.downloads == 0
    with page.expect_download() as started:
        page.get_by_role("button", name="Download").click()
    assert started.value.suggested_filename == "Grüße.txt"
    assert started.value.path().read_bytes() == b"shared"
    assert page.url == server.url + link.path
    assert link.downloads == 1
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("not valid")
    expect(page.get_by_role("button")).to_have_count(0)


@needs_chromium
def test_a_password_in_a_browser(page: Page, server: Server, alice: Account) -> None:
    """Wrong first: the page says so; then right. It is in no address, the link in no referrer."""
    link = share(alice, alice.upload(b"shared", "x.txt"), password="päß wört")
    asked: list[tuple[str, str | None]] = []
    page.on("request", lambda request: asked.append((request.url, request.headers.get("referer"))))
    page.goto(server.url + link.path)
    field = page.get_by_label("Password")
    expect(field).to_have_attribute("type", "password")
    page.get_by_role("button").click()
    assert link.downloads == 0
    field.fill("wrong")
    page.get_by_role("button").click()
    expect(page.get_by_role("alert")).to_have_text("Wrong password.")
    expect(field).to_have_value("")
    field.fill("päß wört")
    with page.expect_download() as started:
        page.get_by_role("button").click()
    assert started.value.path().read_bytes() == b"shared"
    assert {url for url, _ in asked} <= {server.url + link.path, f"{server.url}/favicon.ico"}
    assert not any(link.token in (referrer or "") for _, referrer in asked)
    assert link.downloads == 1


@needs_chromium
@pytest.mark.parametrize("name", HOSTILE)
def test_no_script_runs(page: Page, server: Server, alice: Account, name: str) -> None:
    """Neither from a name nor by one put into the page afterwards; styles are applied."""
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    link = share(alice, alice.upload(b"x", name, **{"visibility": "public"}), password="word")
    page.goto(server.url + link.path)
    expect(page).to_have_title(" ".join(name.split()))
    expect(page.locator("main")).to_have_css("max-width", "480px")
    assert not [text for text in refused if "style" in text]
    page.evaluate(
        """() => {
            const script = document.createElement('script');
            script.textContent = "document.title = 'owned'";
            document.body.append(script);
        }"""
    )
    expect(page).not_to_have_title("owned")
    assert any("Content Security Policy" in text for text in refused)


@needs_chromium
def test_shared_bytes_run_no_script(page: Page, server: Server, alice: Account) -> None:
    """HTML that is opened where it can be shown has no script and no origin of ours."""
    html = b"<title>quiet</title><script>document.title = 'owned'</script>"
    link = share(alice, alice.upload(html, "evil.html"))
    page.route(
        "**/*", lambda route: route.continue_(headers={**route.request.headers, "accept": "*/*"})
    )
    page.goto(server.url + link.path)
    expect(page).to_have_title("quiet")
    assert page.evaluate("self.origin") == "null"
