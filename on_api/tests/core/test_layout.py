"""The house as its user fixed it, and the habits that keep it clean."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from on_api.core.models.revisions import PROJECT

PACKAGE = PROJECT / "on_api"
TOP_LEVEL = {
    # given
    "pyproject.toml", "poetry.lock", "alembic.ini", "alembic", "on_api", "README.md",
    ".env.example",
    # ours
    "Makefile", ".ci", ".gitignore", ".importlinter", "openapi", "docs", "ARCHITECTURE.md",
    "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "benchmarks", "deploy",
}  # fmt: skip


MOST_LINES = 420
IS_PRIVATE = re.compile("_[a-z]")
OF_OTHERS = {"_fields", "_make", "_replace", "_asdict", "_mapping"}
"""Names that are public all the same: those of named tuples and of rows."""


def modules(*below: str) -> Iterator[tuple[Path, ast.Module]]:
    """Every module of the package outside the tests, or those below some folders."""
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE)
        if inside.parts[0] != "tests" and (not below or str(inside).startswith(below)):
            yield inside, ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.Module) -> Iterator[str]:
    """What a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not ours"
            yield node.module or ""


@pytest.mark.parametrize(
    "path",
    [
        "core/models/database.py", "core/schemas/users.py", "core/settings.py", "v1/api.py",
        "v1/endpoints/__init__.py", "v2/api.py", "v2/endpoints/__init__.py", "tests/v1/__init__.py",
        "main.py",
    ],
)  # fmt: skip
def test_what_must_be_where(path: str) -> None:
    """The layout that was asked for."""
    assert (PACKAGE / path).is_file()


def test_only_agreed_names_at_the_top() -> None:
    """Little is added beside what was given."""
    listed = subprocess.run(
        ["git", "ls-files"],  # noqa: S607 (wherever git is)
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert {name.split("/")[0] for name in listed.stdout.splitlines()} <= TOP_LEVEL


def test_every_folder_with_python_is_a_package() -> None:
    """But not `alembic/`, which would shadow the library."""
    for path in PACKAGE.rglob("*.py"):
        assert (path.parent / "__init__.py").is_file(), path
    assert not (PROJECT / "alembic" / "__init__.py").exists()


def test_imports_are_absolute_and_versions_know_their_order() -> None:
    """v2 is built from v1; nothing but main knows v2."""
    of_v2 = {name for _, tree in modules("v2/") for name in imports(tree)}
    assert any(name.startswith("on_api.v1.endpoints.") for name in of_v2)
    for path, tree in modules():
        if path.parts[0] not in {"v2", "main.py"}:
            assert not any(name.startswith("on_api.v2") for name in imports(tree)), path


def test_nobody_commits_but_session_scope() -> None:
    """A commit anywhere else would be a second transaction that nobody sees."""
    for path, tree in modules("core/services", "v1", "v2", "public", "worker", "cli"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                assert node.attr not in {"commit", "rollback"}, f"{path}:{node.lineno}"


def test_tests_reach_into_no_underscores() -> None:
    """What a test has to hold or to count is part of what it tests, or of the kit."""
    for path in sorted((PACKAGE / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Attribute) or not IS_PRIVATE.match(node.attr):
                continue
            owner = node.value
            name = owner.id if isinstance(owner, ast.Name) else ""
            is_own = name in {"self", "cls"} or node.attr in OF_OTHERS
            assert is_own, f"{path}:{node.lineno}: {node.attr}"


def test_every_module_can_be_held_in_a_head() -> None:
    """About 400 lines; what is longer has two ideas in it."""
    for path, _ in modules():
        lines = (PACKAGE / path).read_text(encoding="utf-8").count("\n")
        assert lines <= MOST_LINES, f"{path}: {lines} lines"


def test_every_module_and_public_function_says_what_it_is() -> None:
    """A docstring each; no `utils`."""
    for path, tree in modules():
        assert "utils" not in path.stem, path
        if path.name != "__init__.py" or tree.body:
            assert ast.get_docstring(tree), path
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path}: {node.name}"
                members = node.body
            elif isinstance(node, ast.Module):
                members = node.body
            else:
                continue
            for member in members:
                if isinstance(
                    member, ast.FunctionDef | ast.AsyncFunctionDef
                ) and not member.name.startswith("_"):
                    assert ast.get_docstring(member), f"{path}: {member.name}"


def listed_modules() -> dict[str, set[str]]:
    """What ARCHITECTURE.md lists: by folder, the modules that stand behind the last colon of what
    is said of it, or on a line of their own."""
    text = (PROJECT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    tree = text.split("\non_api/\n")[1].split("\n  tests/")[0]
    listed: dict[str, set[str]] = {"": set()}
    above: list[tuple[int, str]] = []
    words: set[str] = set()
    for line in tree.splitlines():
        name = line.split()[0]
        indent = len(line) - len(line.lstrip())
        if name.endswith(".py"):
            listed[""].add(name.removesuffix(".py"))
            continue
        if indent < 20:  # what is said of a folder begins further right
            above = [(left, folder) for left, folder in above if left < indent]
            above.append((indent, name.rstrip("/")))
            words = listed["/".join(folder for _, folder in above)] = set()
        words |= set(line.rpartition(":")[2].split())
    return listed


def test_the_map_is_true() -> None:
    """Every folder and module is in ARCHITECTURE.md, and nothing that isn't there."""
    there: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        inside = path.relative_to(PACKAGE)
        if inside.parts[0] != "tests":
            folder = "" if str(inside.parent) == "." else str(inside.parent)
            there.setdefault(folder, set()).update({inside.stem} - {"__init__"})
    assert listed_modules() == there
