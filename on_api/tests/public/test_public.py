"""What is outside the versions: health, documents, Swagger UI, headers that every answer has."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from on_api.core.models import Database
from on_api.core.server_settings import CorsSettings
from on_api.core.services.container import Services
from on_api.core.services.upkeep.readiness import Check
from on_api.core.setting_groups import GatewaySettings, IpfsSettings
from on_api.core.settings import Settings
from on_api.tests.conftest import Account, DatabaseMaker, Server, free_port
from on_api.tests.testing.bundles import beside
from on_api.tests.testing.deadline import until


def test_health_asks_nobody(anonymous: httpx.Client) -> None:
    """The process lives."""
    answer = anonymous.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_ready_when_all_is_well(anonymous: httpx.Client) -> None:
    """Database, migrations and node are named."""
    answer = anonymous.get("/readyz")
    assert answer.status_code == 200
    checks = {check["name"]: check["ok"] for check in answer.json()["checks"]}
    assert checks == {
        "database": True, "migrations": True, "writes": True, "node": True, "gateway": True,
        "room": True, "news": True, "secret": True,
    }  # fmt: skip


def test_not_ready_without_the_node(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings]
) -> None:
    """503 says what is missing; the rest goes on; the node's absence is a 503 for uploads, with
    Retry-After."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    settings = settings_for(
        new_database(), ipfs=IpfsSettings(rpc_url=nowhere, gateway_url=nowhere, connect_timeout=1)
    )
    with Server(settings) as server:
        user = server.new_user(admin=True)
        with user.client as client:
            answer = client.get("/readyz")
            assert answer.status_code == 503
            checks = {check["name"]: check["ok"] for check in answer.json()["checks"]}
            failed = {name for name, ok in checks.items() if not ok}
            assert failed == {"node", "gateway", "room"}
            refused = client.put("/v1/files?name=x", content=b"x")
            assert refused.status_code == 503
            assert refused.json()["error"]["reason"] == "NODE_UNAVAILABLE"
            assert int(refused.headers["retry-after"]) > 0
            assert "127.0.0.1" not in refused.text
            assert client.get("/v1/node").status_code == 503
            assert client.get("/v1/files").json() == {"count": 0, "items": []}
            assert client.get("/healthz").status_code == 200
            assert client.head("/readyz").status_code == 503


def test_no_news_are_told_and_need_not_be(server: Server) -> None:
    """In a process that doesn't hear the others: nothing is taken from memory, so what is answered
    is right, and only slower."""

    async def look(services: Services) -> Sequence[Check]:
        return await services.readiness.checks()

    checks = {check.name: check for check in beside(server.settings, look)}
    news = checks.pop("news")
    assert (news.ok, news.needed) == (False, False)
    assert all(check.ok for check in checks.values())


def test_one_line_for_each_request_that_fails(
    new_database: DatabaseMaker,
    settings_for: Callable[..., Settings],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While the node is down, by the API and by the gateway: why, and no traceback."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    ipfs = IpfsSettings(rpc_url=nowhere, gateway_url=nowhere, connect_timeout=1)
    settings = settings_for(new_database(), ipfs=ipfs, gateway=GatewaySettings(policy="local"))
    with Server(settings) as server, server.new_user().client as client:
        caplog.clear()
        assert client.put("/v1/files?name=x", content=b"x").status_code == 503
        block = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"
        assert client.get(f"/ipfs/{block}").status_code in {502, 503, 504}
    told = [record for record in caplog.records if "NODE_" in record.getMessage()]
    assert len(told) == 2
    for record in told:
        assert record.exc_info is None
        assert "Error" in record.getMessage()


def test_a_database_that_is_behind_is_not_served(
    settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    """Neither an empty one nor one of the future."""
    settings = settings_for(f"sqlite:///{tmp_path / 'empty.db'}")
    with pytest.raises(pytest.fail.Exception, match="refused to start"), Server(settings):
        pass


def test_not_ready_when_the_database_falls_behind(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings]
) -> None:
    """Somebody downgrades under a running server."""
    settings = settings_for(new_database())
    with Server(settings) as server, server.client() as client:
        database = Database(settings)
        with database.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'other'")
        answer = client.get("/readyz")
        assert answer.status_code == 503
        failed = {c["name"]: c["details"] for c in answer.json()["checks"] if not c["ok"]}
        assert list(failed) == ["migrations"]
        assert "other" in failed["migrations"]
        with database.engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE deployment")
            connection.exec_driver_sql("DROP TABLE alembic_version")
        database.dispose()

        def without_tables() -> bool:
            answer = client.get("/readyz")
            assert answer.status_code == 503
            return {"migrations", "writes"} <= {
                check["name"] for check in answer.json()["checks"] if not check["ok"]
            }

        until(without_tables, "what is missing is told")


@pytest.mark.parametrize("page", ["/docs", "/v1/docs", "/v2/docs"])
def test_swagger_needs_nothing_from_elsewhere(anonymous: httpx.Client, page: str) -> None:
    """Every script and style of the page is here; the policy forbids any other host."""
    answer = anonymous.get(page)
    assert answer.status_code == 200
    sources = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
    assert len(sources) >= 2
    for source in sources:
        assert source.startswith(("/", "data:")), source
        if source.startswith("/"):
            assert anonymous.get(source).status_code == 200
    document = re.search(r"url: '([^']+)'", answer.text)
    assert document is not None
    assert anonymous.get(document[1]).json()["openapi"].startswith("3.1")
    assert "http" not in answer.headers["content-security-policy"]


def test_every_answer_has_an_id_and_is_not_sniffed(anonymous: httpx.Client) -> None:
    """The id leads to the log; two requests have two."""
    first, second = anonymous.get("/healthz"), anonymous.get("/v1/nothing")
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    for answer in (first, second):
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_unhandled_errors_are_500_with_the_id_in_the_log(
    server: Server, anonymous: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """The client gets the id and nothing of what happened; the log has both."""

    async def explode() -> None:
        raise RuntimeError("the secret inside")

    app = server.app
    app.router.add_api_route("/explode", explode, methods=["GET"])
    answer = anonymous.get("/explode")
    assert answer.status_code == 500
    identity = answer.headers["x-request-id"]
    assert identity in answer.json()["error"]["details"]
    assert "secret" not in answer.text
    assert any("the secret inside" in str(r.exc_info) for r in caplog.records if r.exc_info)


def test_bodies_that_are_read_whole_are_bounded(anonymous: httpx.Client) -> None:
    """413 over a mebibyte, announced or not; before anyone asks who sends it."""
    large = b'{"username": "' + b"a" * 2**20 + b'"}'
    json_type = {"Content-Type": "application/json"}
    announced = anonymous.post("/v1/auth/register", content=large, headers=json_type)
    assert announced.status_code == 413
    assert announced.json()["error"]["reason"] == "PAYLOAD_TOO_LARGE"
    chunked = anonymous.post("/v1/auth/register", content=iter([large]), headers=json_type)
    assert chunked.status_code == 413


@pytest.mark.parametrize("body", [b"{", b"[" * 100_000, b"\xff", b"null", b"[]", b'"x"', b""])
def test_what_is_no_json_object(anonymous: httpx.Client, body: bytes) -> None:
    """400, never 422 or 500, and never an echo."""
    answer = anonymous.post(
        "/v1/auth/register", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["reason"] == "BAD_REQUEST"


def test_validation_errors_name_the_field_and_echo_nothing(anonymous: httpx.Client) -> None:
    """A password must not come back in an answer, nor the name of an unknown field."""
    answer = anonymous.post(
        "/v1/auth/register",
        json={"username": "x y z", "password": "hunter2", "hunter2-field": "hunter2"},
    )
    assert answer.status_code == 400
    assert "username" in answer.json()["error"]["details"]
    assert "hunter2" not in answer.text
    assert "x y z" not in answer.text


def test_cors_only_for_the_origins_named(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings]
) -> None:
    """Other origins get no header; the named one gets those it needs."""
    settings = settings_for(new_database(), cors=CorsSettings(origins=["https://app.example"]))
    with Server(settings) as server, server.client() as client:
        ask = {"Access-Control-Request-Method": "PUT"}
        good = client.options("/v1/files", headers={"Origin": "https://app.example", **ask})
        assert good.status_code == 200
        assert good.headers["access-control-allow-origin"] == "https://app.example"
        bad = client.options("/v1/files", headers={"Origin": "https://evil.example", **ask})
        assert "access-control-allow-origin" not in bad.headers


def test_addresses_are_believed_only_of_trusted_proxies(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings]
) -> None:
    """The audit log names the client behind a proxy, and never one that a stranger makes up."""
    for trusted, seen in (([], "127.0.0.1"), (["127.0.0.1"], "203.0.113.7")):
        settings = settings_for(new_database(), trusted_proxies=trusted)
        with Server(settings) as server:
            account = server.new_user(admin=True)
            with account.client as client:
                client.post(
                    "/v1/keys",
                    json={"name": "k", "scopes": ["files:read"]},
                    headers={"X-Forwarded-For": "203.0.113.7"},
                )
                line = client.get("/v1/audit?action=key.create").json()["items"][0]
                assert line["client"] == seen
                babble = client.post(
                    "/v1/keys",
                    json={"name": "k", "scopes": ["files:read"]},
                    headers={"X-Forwarded-For": "x" * 1000},
                )
                assert babble.status_code == 201


def test_open_registration(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings]
) -> None:
    """Anyone may make an account, never an administrator; two at once get one."""
    settings = settings_for(
        new_database(),
        registration="open",
        secret_key=SecretStr("another secret of 32 characters!"),
    )
    with Server(settings) as server, server.client() as client:
        body = {"username": "newcomer", "password": "a long password"}
        answer = client.post("/v1/auth/register", json=body)
        assert answer.status_code == 201
        assert answer.json()["is_admin"] is False
        assert client.post("/v1/auth/register", json=body).status_code == 409
        elevated = client.post("/v1/auth/register", json={**body, "is_admin": True})
        assert elevated.status_code == 400
        token = client.post("/v1/auth/token", data=body).json()["access_token"]
        me = client.get("/v1/users/me", headers={"Authorization": f"Bearer {token}"})
        assert me.json()["username"] == "newcomer"


def test_metrics_count_what_happens(server: Server, alice: Account) -> None:
    """By route, never by path: ids and names don't become labels."""
    file = alice.upload(b"counted", "a name")
    alice.client.get(f"/v1/files/{file['id']}/content")
    text = alice.client.get("/metrics").text
    assert 'on_api_requests_total{method="PUT",route="/v1/files",status="201"}' in text
    assert 'route="/v1/files/{file_id}/content"' in text
    assert 'on_api_uploads_total{outcome="stored"}' in text
    assert 'on_api_node_calls_total{call="add",outcome="ok"}' in text
    assert "on_api_database_connections_in_use" in text
    assert "on_api_database_writers_waiting 0.0" in text
    assert "on_api_threads_waiting 0.0" in text
    assert str(file["id"]) not in text
    assert "a name" not in text


def test_too_many_requests_at_once(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings]
) -> None:
    """503 with Retry-After over the limit; health is still answered; all is well when they have
    ended."""
    app = "https://app.example"
    settings = settings_for(new_database(), max_requests=10, cors=CorsSettings(origins=[app]))
    with Server(settings) as server:
        account = server.new_user()
        go_on = threading.Event()

        def slow(number: int) -> Iterator[bytes]:
            yield b"begun"
            go_on.wait(30)
            yield str(number).encode()

        def send(number: int) -> int:
            with server.client(account.key) as client:
                return client.put(f"/v1/files?name={number}", content=slow(number)).status_code

        with ThreadPoolExecutor(10) as threads, account.client as client:
            answers = [threads.submit(send, number) for number in range(10)]
            until(
                lambda: "on_api_requests_in_flight 10.0" in client.get("/metrics").text,
                "ten are under way",
            )
            refused = client.get("/v1/files", headers={"Origin": app})
            assert refused.status_code == 503
            assert refused.headers["access-control-allow-origin"] == app
            assert "Retry-After" in refused.headers["access-control-expose-headers"]
            assert refused.json()["error"]["reason"] == "SERVICE_UNAVAILABLE"
            assert refused.headers["retry-after"] == "1"
            assert client.get("/healthz").status_code == 200
            go_on.set()
            assert [answer.result() for answer in answers] == [201] * 10
            assert client.get("/v1/files").json()["count"] == 10
