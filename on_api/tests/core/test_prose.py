"""Docstrings that say what they are about: their first word is a verb or a noun."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from on_api.tests.core.test_layout import PACKAGE

RIDDLES = frozenset(
    {"Of", "What", "Whoever", "Whether", "Who", "Whom", "Whose", "Which", "Where", "When", "How"}
    | {"As", "Is", "Are", "Was", "Has", "Its", "Their", "Those", "They", "It", "Them", "That"}
    | {"Like", "By", "In", "With", "To", "For", "At", "On", "From"}
)
"""First words that leave the subject out."""

MODULES = [
    path for path in sorted(PACKAGE.rglob("*.py")) if "tests" not in path.relative_to(PACKAGE).parts
]


def docstrings_of(path: Path) -> Iterator[tuple[int, str]]:
    """Each string that stands alone, and its line: also those below attributes and constants."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        body = getattr(node, "body", None)
        for each in body if isinstance(body, list) else ():
            text = each.value if isinstance(each, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                yield each.lineno, text.value.strip()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_docstring_names_its_subject(path: Path) -> None:
    """Not "Of a block that …", "What nobody …", "The same, but …"."""
    riddles = [
        f"line {line}: {text[:60]}"
        for line, text in docstrings_of(path)
        if text.split(maxsplit=1)[0].strip(".,:;") in RIDDLES or text.startswith("The same")
    ]
    assert riddles == []
