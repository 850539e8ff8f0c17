"""The public compliance suite of the Pinning Service API says that ours is one.

It is npm's `@ipfs-shipyard/pinning-service-compliance`, installed without its scripts into the
cache folder beside Kubo. Each run gets a copy of its own that reads the specification from our file
instead of the internet, and sends requests one after the other instead of one a second.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from on_api.core.ipfs.daemon.binary import inherited_environment
from on_api.tests.conftest import Account, Server
from on_api.tests.contract.test_pinning_spec import SPECIFICATION
from on_api.tests.testing.deadline import until
from on_api.tests.testing.installed import npm_packages
from on_api.tests.testing.programs import needs

PACKAGE, VERSION = "@ipfs-shipyard/pinning-service-compliance", "1.8.1"
CHECKS = 9

pytestmark = [pytest.mark.clients, needs("node", "npm", packages="nodejs npm")]


def change(file: Path, before: str, after: str) -> None:
    """Replace a text that must be there once."""
    text = file.read_text(encoding="utf-8")
    assert text.count(before) == 1, file
    file.write_text(text.replace(before, after), encoding="utf-8")


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A copy of the suite: its folder, where it writes its report too."""
    modules = npm_packages("pinning-service-compliance", f"{PACKAGE}@{VERSION}")
    copy = tmp_path / "suite"
    shutil.copytree(modules / PACKAGE, copy)
    (copy / "node_modules").symlink_to(modules)
    constants = copy / "dist/src/utils/constants.js"
    where = "`https://raw.githubusercontent.com/ipfs/pinning-services-api-spec/${specVersion}/${specFile}`"
    change(constants, where, json.dumps(str(SPECIFICATION)))
    change(copy / "dist/src/utils/getQueue.js", "interval: 1000", "interval: 0")
    return copy


def test_the_compliance_suite_passes(server: Server, alice: Account, suite: Path) -> None:
    """Every check. Its exit code says nothing, its report does."""
    until(lambda: alice.client.get("/v1/pins").is_success, "the node's addresses are known")
    run = ["node", "dist/src/index.js", "-s", f"{server.url}/v1", alice.key]
    done = subprocess.run(
        run,
        cwd=suite,
        env=inherited_environment(),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    report = suite / "dist/docs/127.0.0.1.json"
    assert report.exists(), done.stdout + done.stderr
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found == {"total": CHECKS, "passed": CHECKS, "failed": 0, "success": True}, done.stdout
    every = {"status": "queued,pinning,pinned,failed"}
    assert alice.client.get("/v1/pins", params=every).json()["count"] == 0
