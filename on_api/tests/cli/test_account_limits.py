"""`on-api users set`: what an account may use, changed beside a server that runs."""

from __future__ import annotations

import json

from on_api.tests.conftest import Kubo
from on_api.tests.testing.deadline import until
from on_api.tests.testing.processes import Home, beside


def test_limits_are_set_at_once_and_audited(home: Home, kubo: Kubo) -> None:
    """The server refuses by a new quota and a new budget, and serves when they are gone; each
    change is in the audit log, as the command line's."""
    key = home.init()
    home.extra = beside(kubo)
    name = "admin"
    with home.serving(), home.client(key) as client:
        file = client.put("/v1/files?name=x", content=b"x" * 5000).json()
        path = f"/v1/files/{file['id']}/content"
        assert client.get(path).status_code == 200

        def put() -> int:
            return client.put("/v1/files?name=y", content=b"y" * 2000).status_code

        done = home.run("users", "set", name, "--quota", "6kB", "--budget", "5000")
        assert (done.returncode, done.stdout) == (0, f"Updated {name}\n"), done.stderr
        until(lambda: put() == 403, "the quota holds")
        until(lambda: client.get(path).status_code == 429, "the budget holds")
        [user] = json.loads(home.run("users", "list", "--json").stdout)
        assert (user["quota"], user["budget"]) == (6000, 5000)
        done = home.run("users", "set", name, "--quota", "none", "--budget", "1TiB")
        assert done.returncode == 0, done.stderr
        until(lambda: put() == 201, "there is no quota")
        until(lambda: client.get(path).status_code == 200, "the budget is larger")
        me = client.get("/v1/users/me").json()
        assert (me["storage_quota"], me["egress_budget"]) == (None, 2**40)
        entries = client.get("/v1/audit").json()["items"]
        changes = [entry for entry in entries if entry["action"] == "user.change"]
        assert [entry["details"]["fields"] for entry in changes] == [
            ["egress_budget", "storage_quota"]
        ] * 2
        assert {entry["actor_id"] for entry in changes} == {None}


def test_rights_and_mistakes(home: Home, kubo: Kubo) -> None:
    """An administrator is made and unmade, but for the last one; nonsense changes nothing and says
    what is right."""
    home.init()
    home.extra = {**beside(kubo), "ON_API_LIMITS__NEW_ACCOUNT_QUOTA": "1000"}
    password = "correct horse\n" * 2
    made = home.run("users", "create", "ada", "--budget", "1.5GB", stdin=password)
    assert made.returncode == 0, made.stderr
    assert home.run("users", "create", "bob", "--quota", "none", stdin=password).returncode == 0
    for arguments, words in (
        (["ada"], "Nothing to change"),
        (["ada", "--quota", "10 apples"], "is no size"),
        (["ada", "--quota", "1.5"], "is no whole number of bytes"),
        (["ada", "--admin", "--budget", "5000PiB"], "more than 2^62"),
        (["nobody", "--quota", "1GB"], "There is no user nobody"),
        (["admin", "--no-admin"], "the last active administrator"),
    ):
        done = home.run("users", "set", *arguments)
        assert (done.returncode, words in done.stderr) == (1, True), done.stderr
        assert done.stderr.count("\n") == 1
    listed = {
        user["username"]: user for user in json.loads(home.run("users", "list", "--json").stdout)
    }
    assert (listed["ada"]["quota"], listed["ada"]["budget"]) == (1000, 1_500_000_000)
    assert (listed["bob"]["quota"], listed["bob"]["budget"]) == (None, None)
    assert listed["ada"]["admin"] is False
    assert home.run("users", "set", "ada", "--admin").returncode == 0
    assert home.run("users", "set", "admin", "--no-admin").returncode == 0
    listed = {
        user["username"]: user for user in json.loads(home.run("users", "list", "--json").stdout)
    }
    assert (listed["ada"]["admin"], listed["admin"]["admin"]) == (True, False)
