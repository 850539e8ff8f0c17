"""Clients that others' generators make of our documents: they compile, and do what the documents
promise. Linters of such documents find nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from on_api.core.ipfs.daemon.binary import inherited_environment
from on_api.core.models.revisions import PROJECT
from on_api.tests.conftest import Account, DatabaseMaker, Server
from on_api.tests.testing.deadline import until
from on_api.tests.testing.installed import npm_packages, python_packages
from on_api.tests.testing.programs import needs

pytestmark = [
    pytest.mark.clients,
    needs("node", "npm", packages="nodejs npm"),
    # The first run installs what it needs.
    pytest.mark.timeout(900),
]

OUR_USE = Path(__file__).with_name("generated")
DOCUMENTS = PROJECT / "openapi"
VERSIONS = ["v1", "v2"]
PYTHON_CLIENT = "openapi-python-client==0.26.2"
NODE_PACKAGES = [
    "@stoplight/spectral-cli@6.16.3",
    "@redocly/cli@2.77.0",
    "openapi-typescript@7.13.0",
    "openapi-fetch@0.17.0",
    "orval@8.38.0",
    "@hey-api/openapi-ts@0.95.0",
    "typescript@5.9.3",
    "esbuild@0.28.2",
]
COMPILER = {
    "compilerOptions": {
        "strict": True,
        "target": "es2022",
        "module": "esnext",
        "moduleResolution": "bundler",
        "lib": ["es2023", "dom", "dom.iterable"],
        "types": [],
        "skipLibCheck": True,
        "noEmit": True,
    },
    "include": ["*.ts", "hey_api/**/*.ts"],
}


@pytest.fixture(scope="session")
def new_database(sqlite_database: DatabaseMaker) -> DatabaseMaker:
    """One kind is enough: what is tested here is what the documents say."""
    return sqlite_database


class Workshop:
    """A folder with one document and the generators' programs."""

    def __init__(self, folder: Path, version: str, server: Server, key: str) -> None:
        self.folder = folder
        self.modules = npm_packages("openapi-tools", *NODE_PACKAGES)
        (folder / "node_modules").symlink_to(self.modules)
        shutil.copy(DOCUMENTS / f"{version}.json", folder / "document.json")
        self._version = version
        self._environment = inherited_environment() | {"BASE": server.url, "KEY": key}

    def run(self, *command: str, **environment: str) -> str:
        """What a program of the workshop prints. Fails with it when it fails."""
        local = self.modules / ".bin" / command[0]
        program = [str(local) if local.exists() else command[0], *command[1:]]
        done = subprocess.run(
            program,
            cwd=self.folder,
            env=self._environment | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def use(self, name: str) -> None:
        """Bring what uses the client, for this version."""
        text = (OUR_USE / name).read_text(encoding="utf-8").replace("VERSION", self._version)
        (self.folder / name).write_text(text, encoding="utf-8")

    def steps_in_typescript(self, name: str) -> dict[str, Any]:
        """Compile everything, and do the work."""
        self.use(name)
        (self.folder / "tsconfig.json").write_text(json.dumps(COMPILER), encoding="utf-8")
        self.run("tsc", "-p", "tsconfig.json")
        script = "used.mjs"
        options = ("--bundle", "--platform=node", "--format=esm", f"--outfile={script}")
        self.run("esbuild", name, *options)
        return dict(json.loads(self.run("node", script)))


@pytest.fixture(params=VERSIONS)
def workshop(
    request: pytest.FixtureRequest, tmp_path: Path, server: Server, alice: Account
) -> Workshop:
    """For one version, with a key of Alice's."""
    until(lambda: alice.client.get("/v1/pins").is_success, "the node's addresses are known")
    return Workshop(tmp_path, request.param, server, alice.key)


def check(steps: dict[str, Any], text: str) -> None:
    """The whole work was done."""
    size = len(text)
    assert steps["public"] == [201, "public", size]
    assert steps["private"] == [201, "private", size]
    assert len(steps["list"]) == 2
    assert steps["patch"] == [200, "of.txt", {"a": "b"}]
    assert steps["pin"] == [202, "of"]
    assert steps["pins"] == [True]
    assert steps["content"] == text
    assert steps["delete"] == 204
    assert steps["missing"] == [404, True]


def test_openapi_typescript_and_openapi_fetch(workshop: Workshop) -> None:
    """Types by the one, requests by the other."""
    workshop.run("openapi-typescript", "document.json", "-o", "openapi_typescript.ts")
    check(workshop.steps_in_typescript("use_openapi_fetch.ts"), "from openapi-fetch")


def test_hey_api(workshop: Workshop) -> None:
    """`@hey-api/openapi-ts`."""
    workshop.run("openapi-ts", "-i", "./document.json", "-o", "hey_api")
    check(workshop.steps_in_typescript("use_hey_api.ts"), "from hey-api")


def test_orval(workshop: Workshop, server: Server) -> None:
    """With its client for `fetch`."""
    output = {"target": "./orval.ts", "client": "fetch", "baseUrl": server.url}
    config = {"onApi": {"input": "./document.json", "output": output}}
    (workshop.folder / "orval.config.mjs").write_text(f"export default {json.dumps(config)}")
    workshop.run("orval", "--config", "orval.config.mjs")
    check(workshop.steps_in_typescript("use_orval.ts"), "from orval")


def test_openapi_python_client(workshop: Workshop) -> None:
    """Every operation has a function; the models read what comes."""
    programs = python_packages("openapi-python-client", PYTHON_CLIENT)
    path = os.pathsep.join([str(programs), os.environ.get("PATH", os.defpath)])
    workshop.run(
        *(str(programs / "openapi-python-client"), "generate", "--meta", "none"),
        *("--path", "document.json", "--output-path", "on_api_client"),
        PATH=path,
    )
    made = {file.stem for file in (workshop.folder / "on_api_client/api").glob("*/*.py")}
    document = json.loads((workshop.folder / "document.json").read_text(encoding="utf-8"))
    wanted = {
        operation["operationId"].lower()
        for item in document["paths"].values()
        for operation in item.values()
    }
    assert wanted <= {name.replace("_", "") for name in made}
    workshop.use("use_python_client.py")
    steps = workshop.run(str(programs / "python"), "use_python_client.py")
    check(json.loads(steps), "from openapi-python-client")


def test_spectral_finds_nothing(workshop: Workshop) -> None:
    """Not even a hint."""
    rules = ("-r", str(DOCUMENTS / "spectral.yaml"), "--fail-severity", "hint")
    workshop.run("spectral", "lint", *rules, "document.json")


def test_redocly_finds_nothing(workshop: Workshop) -> None:
    """Neither an error nor a warning."""
    config = str(DOCUMENTS / "redocly.yaml")
    workshop.run("redocly", "lint", "--config", config, "document.json")
