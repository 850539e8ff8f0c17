"""Swagger UI in a real browser without a network: it renders, lets one log in, and uploads."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Page, expect

from on_api.tests.conftest import PASSWORD, Account, Server
from on_api.tests.public.browser.conftest import needs_chromium

pytestmark = needs_chromium


def log_in_by_password(page: Page, account: Account) -> None:
    """Press *Authorize*, fill in the form."""
    page.get_by_role("button", name="Authorize").first.click()
    dialog = page.locator(".modal-ux")
    dialog.locator("#oauth_username").fill(account.username)
    dialog.locator("#oauth_password").fill(PASSWORD)
    dialog.locator(".auth-container", has=page.locator("#oauth_username")).get_by_role(
        "button", name="Apply given OAuth2 credentials"
    ).click()
    expect(dialog.get_by_text("Authorized", exact=True).first).to_be_visible()
    dialog.get_by_role("button", name="Close", exact=True).first.click()


def open_operation(page: Page, title: str) -> None:
    """Unfold an operation and press *Try it out*."""
    block = page.locator(
        ".opblock", has=page.locator(".opblock-summary-description", has_text=title)
    )
    block.locator(".opblock-summary-control").click()
    block.get_by_role("button", name="Try it out").click()


def test_log_in_and_upload_by_try_it_out(
    page: Page, server: Server, alice: Account, tmp_path: Path
) -> None:
    """With the network cut off; the file is then in the API."""
    upload = tmp_path / "von Hand.txt"
    upload.write_text("sent from Swagger")
    page.goto(f"{server.url}/docs")
    expect(page.locator(".opblock").first).to_be_visible()
    log_in_by_password(page, alice)
    open_operation(page, "Upload Files")
    block = page.locator(".opblock.is-open")
    block.locator("input[type=file]").set_input_files(upload)
    block.get_by_role("button", name="Execute").click()
    status = block.locator(".live-responses-table .response-col_status").nth(1)
    expect(status).to_contain_text("201")
    [file] = alice.client.get("/v1/files").json()["items"]
    assert (file["name"], file["size"]) == ("von Hand.txt", 17)
    content = alice.client.get(f"/v1/files/{file['id']}/content")
    assert content.text == "sent from Swagger"


def test_the_second_version_renders(page: Page, server: Server) -> None:
    """Every operation of the document is shown."""
    page.goto(f"{server.url}/v2/docs")
    expect(page.locator(".opblock").first).to_be_visible()
    shown = page.locator(".opblock").count()
    document = page.request.get(f"{server.url}/v2/openapi.json").json()
    assert shown == sum(len(methods) for methods in document["paths"].values())
    expect(page.locator(".errors-wrapper")).to_have_count(0)
