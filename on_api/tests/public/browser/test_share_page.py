"""The page of a link: what a person sees and presses, whatever a file is called."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from on_api.tests.conftest import Account, Server
from on_api.tests.public.browser.conftest import needs_chromium
from on_api.tests.public.test_share_page import HOSTILE
from on_api.tests.testing.shares import share

pytestmark = needs_chromium


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
