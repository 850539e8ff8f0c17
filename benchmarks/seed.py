"""`python -m benchmarks.seed URL`: fills a migrated PostgreSQL with a large instance."""

from __future__ import annotations

from typing import Annotated

import typer

from on_api.tests.scale.seeding import Scale, seed


def main(
    url: Annotated[
        str, typer.Argument(help="`postgresql://…` URL of a migrated database with one user.")
    ],
    files: Annotated[int, typer.Option(min=1000)] = Scale.files,
    users: Annotated[int, typer.Option(min=10)] = Scale.users,
    traffic: Annotated[int, typer.Option(min=0, help="Number of traffic rows.")] = Scale.traffic,
) -> None:
    """Create files, users, pins and everything that belongs to them, as `seeding.py` describes."""
    seed(url, Scale(files, users, traffic), report=typer.echo)


if __name__ == "__main__":
    typer.run(main)
