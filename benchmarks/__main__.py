"""`python -m benchmarks`: choose, run, print the table, write the JSON."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from benchmarks.figures import Figure, table, write_json
from benchmarks.scenarios import SCENARIOS
from benchmarks.stage import POSTGRESQL, QUICK, SQLITE, Sizes, Stage
from on_api.tests.postgres import running_postgres


def main(
    names: Annotated[
        list[str] | None, typer.Argument(help=f"Of {', '.join(SCENARIOS)}; all by default.")
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(help="`sqlite` or `postgresql` for all; by default both where it matters."),
    ] = None,
    quick: Annotated[bool, typer.Option(help="Small sizes: only to see that all works.")] = False,
    pairs: Annotated[int | None, typer.Option(min=1, help="Measurements of each.")] = None,
    large: Annotated[int | None, typer.Option(min=1, help="MiB of a large file.")] = None,
    huge: Annotated[int | None, typer.Option(min=1, help="MiB up and down for memory.")] = None,
    files: Annotated[int | None, typer.Option(min=2000, help="Files in the list.")] = None,
    json: Annotated[Path, typer.Option(help="Where to write every measurement.")] = Path(
        "bench.json"
    ),
) -> None:
    """Measure on-api beside its own Kubo, asked directly."""
    given = {
        "pairs": pairs,
        "large": large and large * 2**20,
        "huge": huge and huge * 2**20,
        "files": files,
    }
    sizes = replace(QUICK if quick else Sizes(), **{k: v for k, v in given.items() if v})
    figures: list[Figure] = []
    with ExitStack() as stack:
        postgres: str | None = None
        for name in names or SCENARIOS:
            run, defaults = SCENARIOS[name]
            for kind in (database,) if database else defaults:
                if kind == POSTGRESQL and postgres is None:
                    postgres = stack.enter_context(_postgres())
                typer.echo(f"{name} on {kind} ...", err=True)
                stage = Stage(sizes, kind, None if kind == SQLITE else postgres)
                came = [replace(figure, database=kind) for figure in run(stage)]
                typer.echo(table(came), err=True)
                figures += came
                write_json(figures, json)
    typer.echo(table(figures))


@contextmanager
def _postgres() -> Iterator[str]:
    with (
        TemporaryDirectory(prefix="on-api-bench-") as folder,
        running_postgres(Path(folder)) as server,
    ):
        yield server.url


if __name__ == "__main__":
    typer.run(main)
