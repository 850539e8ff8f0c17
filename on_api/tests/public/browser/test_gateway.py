"""What strangers' pages may do at `/ipfs`, in a real browser: run, and nothing with on-api."""

from __future__ import annotations

from playwright.sync_api import Browser, Page

from on_api.core.setting_groups import GatewaySettings, TrafficSettings
from on_api.tests.conftest import Account, DatabaseMaker, Kubo, Server
from on_api.tests.public.browser.conftest import browsing, needs_chromium
from on_api.tests.public.test_gateway import pin_folder
from on_api.tests.worker.conftest import MakeSettings, account_of

pytestmark = needs_chromium

PAGE = b"""<!doctype html><title>waiting</title><img src="picture.svg" id="picture"><script>
const attempt = async (what) => { try { return String(await what()) } catch (e) { return e.name } };
(async () => {
  const tried = {
    cookie: await attempt(() => document.cookie),
    storage: await attempt(() => localStorage.setItem("a", "b")),
    database: await attempt(() => indexedDB.open("a")),
    caches: await attempt(() => caches.open("a")),
    worker: await attempt(() => navigator.serviceWorker.register("worker.js")),
    parent: await attempt(() => window.opener.document.cookie),
    api: await attempt(async () => (await fetch("/healthz")).status),
    shares: await attempt(async () => (await fetch("/v1/files")).status),
    own: await attempt(async () => (await fetch("a.txt")).text()),
  };
  document.body.dataset.origin = String(window.origin);
  document.title = JSON.stringify(tried);
})();
</script>"""


def test_a_page_runs_without_an_origin_of_ours(
    page: Page, server: Server, kubo: Kubo, alice: Account
) -> None:
    """No cookie, storage, service worker or API of on-api's is its to use; its own files are."""
    files = {
        "page.html": PAGE,
        "worker.js": b"self.addEventListener('fetch', () => {})",
        "a.txt": b"its own",
        "picture.svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="7" height="7"/>',
    }
    folder, _ = pin_folder(kubo, alice, files)
    page.goto(f"{server.url}/docs")
    page.evaluate("document.cookie = 'secret=1'; localStorage.setItem('secret', '1')")
    page.goto(f"{server.url}/ipfs/{folder}/page.html")
    page.wait_for_function("document.title !== 'waiting'")
    tried = page.evaluate("JSON.parse(document.title)")
    assert page.evaluate("document.body.dataset.origin") == "null"
    assert tried.pop("own") == "its own"
    assert page.evaluate("document.getElementById('picture').naturalWidth") == 7
    allowed = {name: what for name, what in tried.items() if not what.endswith("Error")}
    assert allowed == {}
    page.goto(f"{server.url}/docs")
    registered = page.evaluate(
        "(async () => (await navigator.serviceWorker.getRegistrations()).length)()"
    )
    assert registered == 0


def test_no_worker_from_a_page_of_our_own_origin(
    page: Page, server: Server, kubo: Kubo, alice: Account
) -> None:
    """Not even where a page of on-api's tries to register it."""
    folder, _ = pin_folder(kubo, alice, {"worker.js": b"1", "listing/x": b"x"})
    page.goto(f"{server.url}/docs")
    outcome = page.evaluate(
        """path => navigator.serviceWorker.register(path).then(() => "registered", e => e.name)""",
        f"/ipfs/{folder}/worker.js",
    )
    assert outcome.endswith("Error")
    page.goto(f"{server.url}/ipfs/{folder}/listing/")
    page.get_by_role("link", name="x", exact=True).first.click()
    page.wait_for_url("**/listing/x")


def test_a_used_up_budget_sends_browsers_elsewhere(
    browser: Browser, settings_for: MakeSettings, sqlite_database: DatabaseMaker, kubo: Kubo
) -> None:
    """They show the same page, from the operator's other gateway."""
    other = str(kubo.ipfs.gateway_url)
    settings = settings_for(
        sqlite_database(),
        traffic=TrafficSettings(over_budget="redirect"),
        gateway=GatewaySettings(fallback_url=other),
    )
    with Server(settings) as server, account_of(server) as ada:
        folder, _ = pin_folder(kubo, ada, {"index.html": b"<title>here</title>moved, not gone"})
        with server.new_user(admin=True).client as admin:
            admin.patch(f"/v1/users/{ada.id}", json={"egress_budget": 10}).raise_for_status()
        with browsing(browser, server.url, other) as page:
            page.goto(f"{server.url}/ipfs/{folder}/?filename=x%20y.html")
            assert page.url == f"{other}/ipfs/{folder}/?filename=x%20y.html"
            assert page.inner_text("body") == "moved, not gone"
