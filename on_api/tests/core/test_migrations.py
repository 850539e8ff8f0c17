"""The database's structure: what operators do with Alembic, on both databases, with and without a
connection."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text

from on_api.core.errors import StartupError
from on_api.core.models import Base, Database, migrations
from on_api.core.models.revisions import (
    PROJECT,
    check_revision,
    known_revisions,
    needed_revision,
    present_revision,
)
from on_api.core.settings import Settings
from on_api.tests.conftest import DatabaseMaker

ALEMBIC = Path(sys.executable).parent / "alembic"


def alembic(url: str, *arguments: str, project: Path = PROJECT) -> subprocess.CompletedProcess[str]:
    """Run the command line as an operator does, from the project's root."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("ON_API_")}
    done = subprocess.run(
        [ALEMBIC, *arguments],
        cwd=project,
        env={**inherited, "ON_API_DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done


def structure(url: str) -> dict[str, object]:
    """Tables, columns and indexes as the database tells them."""
    engine = create_engine(Settings(_env_file=None, database_url=url).sqlalchemy_url)
    with engine.connect() as connection:
        found = inspect(connection)
        told: dict[str, object] = {
            table: (
                sorted(
                    (c["name"], str(c["type"]), c["nullable"]) for c in found.get_columns(table)
                ),
                sorted(
                    (i["name"] or "", tuple(i["column_names"])) for i in found.get_indexes(table)
                ),
                sorted(k["name"] or "" for k in found.get_foreign_keys(table)),
            )
            for table in found.get_table_names()
        }
    engine.dispose()
    return told


def test_up_down_up(new_database: DatabaseMaker) -> None:
    """Down to nothing and back leaves the same structure; models and revisions agree."""
    url = new_database()
    before = structure(url)
    assert set(Base.metadata.tables) < set(before)
    alembic(url, "downgrade", "base")
    assert set(structure(url)) == {"alembic_version"}
    alembic(url, "upgrade", "head")
    assert structure(url) == before
    alembic(url, "check")
    alembic(url, "downgrade", "-1")
    alembic(url, "upgrade", "head")
    assert structure(url) == before


def test_offline_sql_makes_the_same_structure(new_database: DatabaseMaker) -> None:
    """`upgrade head --sql` needs no database; run by hand it gives what `upgrade head` gives."""
    url = new_database()
    expected = structure(url)
    sql = alembic(url, "upgrade", "head", "--sql").stdout
    alembic(url, "downgrade", "base")
    engine = create_engine(Settings(_env_file=None, database_url=url).sqlalchemy_url)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
        statements = [s for s in sql.split(";") if s.strip()]
        for statement in statements:
            if statement.strip() not in {"BEGIN", "COMMIT"}:
                connection.exec_driver_sql(statement)
    engine.dispose()
    assert structure(url) == expected
    assert "DROP TABLE" in alembic(url, "downgrade", "head:base", "--sql").stdout


def test_autogenerate(new_database: DatabaseMaker, tmp_path: Path) -> None:
    """Nothing changed: an empty revision. A new column: just that."""
    copy = tmp_path / "project"
    shutil.copytree(PROJECT / "alembic", copy / "alembic")
    shutil.copytree(PROJECT / "on_api", copy / "on_api")
    shutil.copy(PROJECT / "alembic.ini", copy)
    url = new_database()

    def revise(name: str) -> str:
        alembic(url, "revision", "--autogenerate", "-m", name, project=copy)
        [path] = (copy / "alembic" / "versions").glob(f"*_{name}.py")
        body = path.read_text().partition("def upgrade")[2]
        path.unlink()
        return body

    assert "op." not in revise("nothing").replace("op.f", "")
    model = copy / "on_api" / "core" / "models" / "file.py"
    column = "    colour: Mapped[str | None] = mapped_column(String(10))\n    meta: Mapped"
    model.write_text(model.read_text().replace("    meta: Mapped", column, 1))
    assert revise("colour").count("op.add_column") == 1


def test_a_migration_does_not_queue_everyone_behind_it(new_database: DatabaseMaker) -> None:
    """On PostgreSQL it gives up a table that it can't have, rather than block all who come after
    it."""
    url = new_database()
    if not url.startswith("postgresql"):
        pytest.skip("SQLite has one writer and no lock time-out on tables")
    engine = create_engine(Settings(_env_file=None, database_url=url).sqlalchemy_url)
    environment = {**os.environ, "ON_API_DATABASE_URL": url}
    with engine.connect() as holder:
        holder.execute(text("LOCK TABLE files IN ACCESS SHARE MODE"))
        done = subprocess.run(
            [ALEMBIC, "downgrade", "base"],
            cwd=PROJECT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    engine.dispose()
    assert done.returncode != 0
    assert "lock timeout" in done.stderr
    assert "files" in structure(url)


def test_what_is_said_of_a_database_that_does_not_fit(new_database: DatabaseMaker) -> None:
    """Behind, empty, of the future: each with its cure."""
    url = new_database()
    database = Database(Settings(_env_file=None, database_url=url))
    try:
        for statement, cure in (
            ("UPDATE alembic_version SET version_num = 'f00'", "newer"),
            ("DELETE FROM alembic_version", "on-api db upgrade"),
        ):
            with database.engine.begin() as connection:
                connection.exec_driver_sql(statement)
            with (
                database.engine.connect() as connection,
                pytest.raises(StartupError, match=cure),
            ):
                check_revision(connection)
    finally:
        database.dispose()


def test_what_is_read_without_alembic_is_what_it_says(new_database: DatabaseMaker) -> None:
    """Every start asks for the two revisions, and doesn't import Alembic for that."""
    scripts = ScriptDirectory.from_config(Config(PROJECT / "alembic.ini"))
    assert needed_revision() == scripts.get_current_head()
    assert known_revisions() == [s.revision for s in scripts.walk_revisions()][::-1]
    database = Database(Settings(_env_file=None, database_url=new_database()))
    try:
        with database.engine.connect() as connection:
            said = MigrationContext.configure(connection).get_current_revision()
            assert present_revision(connection) == said == needed_revision()
        with database.engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE alembic_version")
        with database.engine.connect() as connection:
            assert present_revision(connection) is None
    finally:
        database.dispose()


def test_several_processes_migrate_at_once(new_database: DatabaseMaker) -> None:
    """Both end well and the structure is there once."""
    url = new_database()
    expected = structure(url)
    alembic(url, "downgrade", "base")
    failures: list[BaseException] = []

    def upgrade() -> None:
        database = Database(Settings(_env_file=None, database_url=url))
        try:
            migrations.upgrade(database)
        except BaseException as error:
            failures.append(error)
        finally:
            database.dispose()

    if not url.startswith("postgresql"):
        pytest.skip("one machine, one home, one process: the home's lock keeps others out")
    threads = [threading.Thread(target=upgrade) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert structure(url) == expected
