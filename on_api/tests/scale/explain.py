"""What every statement costs, taken where it is executed: a `Recorder` on an engine explains each
one on its own connection, in its own transaction, right before it runs.

Counted are rows and pages, never time. Knows nothing of what is asked for, or why.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, event

_EXPLAINED = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")
_SAVEPOINT = "before_explaining"


@dataclass(frozen=True)
class Cost:
    """One statement of one step. `rows` were looked at on tables and indexes, in `pages` of 8 KiB;
    `read_whole`: the tables that it went through from one end to the other."""

    step: str
    statement: str
    rows: int
    pages: int
    milliseconds: float
    read_whole: frozenset[str]
    plan: Any = field(repr=False, compare=False)


class Recorder:
    """The costs of what an engine executes within `step`."""

    def __init__(self, engine: Engine) -> None:
        self.costs: list[Cost] = []
        self._step: str | None = None
        self._is_postgresql = engine.dialect.name == "postgresql"
        event.listen(engine, "before_cursor_execute", self._explain)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Have costs recorded under a name."""
        self._step = name
        try:
            yield
        finally:
            self._step = None

    def _explain(
        self,
        _connection: object,
        cursor: Any,
        statement: str,
        parameters: Any,
        _context: object,
        _executemany: bool,
    ) -> None:
        step = self._step
        if step is None or not statement.lstrip().upper().startswith(_EXPLAINED):
            return
        if isinstance(parameters, list):
            parameters = parameters[0]
        explaining = cursor.connection.cursor()
        explain = self._postgresql if self._is_postgresql else self._sqlite
        self.costs.append(explain(explaining, step, statement, parameters))
        explaining.close()

    def _postgresql(self, cursor: Any, step: str, statement: str, parameters: Any) -> Cost:
        # What it does is taken back, to be done for good afterwards.
        cursor.execute(f"SAVEPOINT {_SAVEPOINT}")
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters)
        answer = cursor.fetchone()[0]
        cursor.execute(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}")
        document = (json.loads(answer) if isinstance(answer, str) else answer)[0]
        plan = document["Plan"]
        nodes = list(_nodes(plan))
        return Cost(
            step=step,
            statement=normalised(statement),
            rows=sum(_rows(node) for node in nodes),
            pages=plan["Shared Hit Blocks"] + plan["Shared Read Blocks"],
            milliseconds=document["Execution Time"],
            read_whole=frozenset(
                node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"
            ),
            plan=plan,
        )

    def _sqlite(self, cursor: Any, step: str, statement: str, parameters: Any) -> Cost:
        """SQLite tells only how it would go about it."""
        cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
        lines = [row[3] for row in cursor.fetchall()]
        # Neither the order of an index until there is enough, nor an index of what is worked on.
        stops = "LIMIT" in statement
        lines = [line for line in lines if "ix_pins_leased" not in line]
        found = (re.match(r"SCAN (\w+)(?! USING .*INDEX)", line) for line in lines)
        indexed = (re.match(r"SCAN (\w+) USING .*INDEX", line) for line in lines)
        names = [match[1] for match in found if match and " USING " not in match.string]
        names += [match[1] for match in indexed if match and not stops]
        read = frozenset(re.sub(r"_\d+$", "", name) for name in names)
        return Cost(step, normalised(statement), 0, 0, 0.0, read, lines)


def normalised(statement: str) -> str:
    """One text for what differs in the number of its values only."""
    statement = re.sub(r"%\(\w+?\)s(::\w+)?", "?", statement)
    statement = re.sub(r"\?(, \?)+", "?, …", statement)
    statement = re.sub(r"\((\?|\(\?, …\))(, …)?(, \((\?|\?, …)\))*\)", "(…)", statement)
    return " ".join(statement.split())


def outline(plan: Any, depth: int = 0) -> str:
    """A plan for people: a line a node."""
    if isinstance(plan, list):
        return "\n".join(plan)
    where = plan.get("Index Name") or plan.get("Relation Name") or ""
    line = (
        f"{'  ' * depth}{plan['Node Type']} {where}: {plan['Actual Rows']:g} rows"
        f" x {plan['Actual Loops']}, removed {plan.get('Rows Removed by Filter', 0)},"
        f" {plan['Shared Hit Blocks'] + plan['Shared Read Blocks']} pages"
    )
    return "\n".join([line, *(outline(child, depth + 1) for child in plan.get("Plans", ()))])


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def _rows(node: dict[str, Any]) -> int:
    if node["Node Type"] == "ModifyTable" or not ("Relation Name" in node or "Index Name" in node):
        return 0
    removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    return int((node["Actual Rows"] + removed) * node["Actual Loops"])
