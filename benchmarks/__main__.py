"""`python -m benchmarks`: runs scenarios, prints the table, writes the JSON."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from sqlalchemy import create_engine, text

from benchmarks import machine
from benchmarks.figures import table
from benchmarks.results import Run
from benchmarks.scenarios import SCENARIOS, Variant
from benchmarks.stage import POSTGRESQL, QUICK, Sizes, Stage
from on_api.tests.testing.postgres import running_postgres


def main(
    names: Annotated[
        list[str] | None,
        typer.Argument(help=f"Scenarios to run ({', '.join(SCENARIOS)}); all by default."),
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(
            help="Database to measure with: `sqlite` or `postgresql`; by default, each one that"
            " matters for the scenario."
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of API processes; by default, each number that matters for the scenario."
            " More than one requires PostgreSQL.",
        ),
    ] = None,
    fast_lanes: Annotated[
        bool,
        typer.Option(
            "--fast-lanes/--no-fast-lanes",
            help="Whether on-api uses its fast lanes (ON_API_FAST_LANES).",
        ),
    ] = True,
    quick: Annotated[
        bool,
        typer.Option(
            help="Use small sizes, to check that everything works rather than to measure."
        ),
    ] = False,
    pairs: Annotated[
        int | None, typer.Option(min=1, help="Number of measurements of each figure.")
    ] = None,
    large: Annotated[int | None, typer.Option(min=1, help="Size of a large file in MiB.")] = None,
    huge: Annotated[
        int | None,
        typer.Option(
            min=1, help="Size in MiB of the file that is transferred while memory is measured."
        ),
    ] = None,
    files: Annotated[
        int | None, typer.Option(min=2000, help="Number of files in the list.")
    ] = None,
    json: Annotated[Path, typer.Option(help="File to write all measurements to.")] = Path(
        "bench.json"
    ),
) -> None:
    """Measure on-api against its own Kubo node, used directly. A scenario fails if any response is
    wrong, since the speed of failed requests means nothing."""
    if unknown := set(names or ()) - SCENARIOS.keys():
        raise typer.BadParameter(f"unknown scenario: {', '.join(sorted(unknown))}")
    given = {
        "pairs": pairs,
        "large": large and large * 2**20,
        "huge": huge and huge * 2**20,
        "files": files,
    }
    sizes = replace(QUICK if quick else Sizes(), **{k: v for k, v in given.items() if v})
    run = Run(machine.describe(), machine.versions(None), quick, machine.load())
    with ExitStack() as stack:
        postgres: str | None = None
        for name in names or SCENARIOS:
            for variant in _variants(name, database, processes):
                if variant.database == POSTGRESQL and postgres is None:
                    postgres = stack.enter_context(_postgres())
                    run.versions = machine.versions(_version_of(postgres))
                url = postgres if variant.database == POSTGRESQL else None
                stage = Stage(sizes, variant.database, url, variant.processes, fast_lanes)
                _play(run, name, stage)
                run.load_after = machine.load()
                run.write(json)
    typer.echo(table(run.figures))
    for name, reason in run.failures.items():
        typer.echo(f"FAILED {name}: {reason}", err=True)
    if run.failures:
        raise typer.Exit(1)


def _variants(name: str, database: str | None, processes: int | None) -> Sequence[Variant]:
    variants = [
        variant
        for variant in SCENARIOS[name][1]
        if database in {None, variant.database} and processes in {None, variant.processes}
    ]
    if not variants and (database or processes):
        # Requested by name, though this variant is not among the scenario's own.
        variants = [Variant(database or POSTGRESQL, processes or 1)]
    return variants


def _play(run: Run, name: str, stage: Stage) -> None:
    on = f"{name} on {stage.database}, {stage.processes}"
    typer.echo(f"{on} ...", err=True)
    try:
        came = [
            replace(figure, database=stage.database, processes=stage.processes)
            for figure in SCENARIOS[name][0](stage)
        ]
    except Exception as error:
        # Whatever the error: the other scenarios go on, and the run fails in the end.
        run.failures[on] = f"{type(error).__name__}: {error}"
        typer.echo(traceback.format_exc(), err=True)
        return
    if came:
        typer.echo(table(came), err=True)
    run.figures += came


def _version_of(url: str) -> str:
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg2://"))
    with engine.connect() as connection:
        return str(connection.scalar(text("SHOW server_version")))


@contextmanager
def _postgres() -> Iterator[str]:
    with (
        TemporaryDirectory(prefix="on-api-bench-") as folder,
        running_postgres(Path(folder)) as server,
    ):
        yield server.url


if __name__ == "__main__":
    typer.run(main)
