"""Alerts and dashboard against what `/metrics` really shows, and the operator's handbook."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from on_api.core.models.revisions import PROJECT
from on_api.core.services.content.maintenance import BACKUP, FSCK, GARBAGE, Turn
from on_api.core.setting_groups import TrafficSettings
from on_api.tests.conftest import DatabaseMaker, Kubo, Server, make_settings
from on_api.tests.testing.deadline import until
from on_api.tests.testing.programs import needs, program

FOLDER = PROJECT / "deploy" / "prometheus"
DASHBOARD = PROJECT / "deploy" / "grafana" / "on-api.json"
HANDBOOK = PROJECT / "docs" / "operations.md"
ADDED_BY_PROMETHEUS = {"job", "instance"}
_SERIES = re.compile(r"\b((?:on_api|process)_\w+|up)\b(?:\{([^}]*)\})?(?!\s*\()")
_LABEL = re.compile(r"(\w+)\s*(?:=~|!=|=)\s*\"")

Shown = dict[str, set[str]]


def rules() -> list[dict[str, Any]]:
    """All alerts."""
    [group] = yaml.safe_load((FOLDER / "rules.yml").read_text(encoding="utf-8"))["groups"]
    return list(group["rules"])


def expressions() -> Iterator[str]:
    """Each query of alerts and dashboard."""
    for rule in rules():
        yield rule["expr"]
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


@pytest.fixture(scope="module")
def shown(
    sqlite_database: DatabaseMaker, kubo: Kubo, tmp_path_factory: pytest.TempPathFactory
) -> Shown:
    """The names of all series that a server in use shows, each with its labels."""
    settings = make_settings(
        tmp_path_factory.mktemp("home"),
        sqlite_database(),
        ipfs=kubo.ipfs,
        fast_lanes=True,
        traffic=TrafficSettings(instance_budget=10**9),
    )
    with Server(settings) as server, server.client() as anybody:
        account = server.new_user()
        with account.client:
            cid = account.upload(b"seen", "a name")["cid"]
        assert anybody.get(f"/ipfs/{cid}").status_code == 200
        for kind in (GARBAGE, FSCK, BACKUP):
            Turn(server.services.database, kind).end({"outcome": "clean", "troubles": 0})
        # The counts are taken soon after the start, and figures are kept for some seconds.
        until(lambda: b"on_api_contents{" in anybody.get("/metrics").content, "counted", 30)
        text = anybody.get("/metrics").text
    found: Shown = {"up": set()}
    for family in text_string_to_metric_families(text):
        ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
        for end in ends.get(family.type, [""]):
            found[family.name + end] = set()
        for sample in family.samples:
            found[sample.name] |= set(sample.labels)
    return found


def test_queries_ask_for_what_there_is(shown: Shown) -> None:
    """Else an alert would be silent for ever, and a panel empty."""
    for expression in expressions():
        asked = _SERIES.findall(expression)
        assert asked, expression
        for name, selectors in asked:
            assert name in shown, f"{expression}: no {name}"
            # A series that nothing has counted yet has no labels.
            labels = set(_LABEL.findall(selectors)) - ADDED_BY_PROMETHEUS
            assert labels <= shown[name] or not shown[name], f"{expression}: labels of {name}"


def test_each_alert_says_what_to_do() -> None:
    """In a section of the handbook of its own, by its name."""
    handbook = HANDBOOK.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", handbook, re.MULTILINE)
    for rule in rules():
        remedy = rule["annotations"]["remedy"]
        assert remedy == f"docs/operations.md#{rule['alert'].lower()}"
        assert rule["alert"] in headings, f"{remedy}: no such section"


def test_the_table_names_every_metric(shown: Shown) -> None:
    """An operator finds each one in the handbook, and none there that is gone."""
    handbook = HANDBOOK.read_text(encoding="utf-8")
    ours = {re.sub("_(bucket|sum|count)$", "", name) for name in shown if "on_api_" in name}
    table = set(re.findall(r"^\| `(on_api_\w+)", handbook, re.MULTILINE))
    assert table == ours


@needs("promtool", packages="prometheus")
def test_prometheus_understands_the_alerts() -> None:
    """And they come and stay away when they should, by Prometheus' own reckoning."""
    for words in (["check", "rules", "rules.yml"], ["test", "rules", "rules_test.yml"]):
        done = subprocess.run(
            [program("promtool"), *words], cwd=FOLDER, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
