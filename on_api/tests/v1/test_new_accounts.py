"""What a new account may use, where nobody says otherwise."""

from __future__ import annotations

from collections.abc import Callable

from on_api.core.limit_settings import LimitsSettings
from on_api.core.settings import Settings
from on_api.tests.conftest import PASSWORD, Account, DatabaseMaker, Server

QUOTA, BUDGET = 1000, 10_000


def test_the_operators_defaults(
    new_database: DatabaseMaker, settings_for: Callable[..., Settings]
) -> None:
    """For who registers, and for whom an administrator makes without saying; null is no limit. The
    accounts that are there stay as they are."""
    database = new_database()
    with Server(settings_for(database)) as server:
        admin = server.new_user(admin=True)
    limits = LimitsSettings(new_account_quota=QUOTA, new_account_budget=BUDGET)
    settings = settings_for(database, limits=limits, registration="open")
    with Server(settings) as server, server.client(admin.key) as client:

        def made(path: str, name: str, **given: int | None) -> tuple[int | None, int | None]:
            body = {"username": name, "password": PASSWORD, **given}
            answer = client.post(path, json=body)
            assert answer.status_code == 201, answer.text
            return answer.json()["storage_quota"], answer.json()["egress_budget"]

        assert made("/v1/auth/register", "ada") == (QUOTA, BUDGET)
        assert made("/v2/users", "bob") == (QUOTA, BUDGET)
        assert made("/v1/users", "eve", storage_quota=None) == (None, BUDGET)
        assert made("/v1/users", "dan", egress_budget=5) == (QUOTA, 5)
        me = client.get("/v1/users/me").json()
        assert (me["storage_quota"], me["egress_budget"]) == (None, None)
        token = client.post("/v1/auth/token", data={"username": "ada", "password": PASSWORD}).json()
        with server.client(token["access_token"]) as ada:
            assert ada.put("/v1/files?name=x", content=b"x" * 1001).status_code == 403
            assert ada.put("/v1/files?name=x", content=b"x" * 1000).status_code == 201


def test_by_default_there_is_no_limit(server: Server, admin: Account) -> None:
    """Neither for storage nor for traffic."""
    body = {"username": f"new-{admin.username}", "password": PASSWORD}
    user = admin.client.post("/v1/users", json=body).json()
    assert (user["storage_quota"], user["egress_budget"]) == (None, None)
