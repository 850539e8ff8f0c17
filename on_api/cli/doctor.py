"""`on-api doctor`: finds known problems and names the cure of each."""

from __future__ import annotations

from typing import Annotated

import typer

from on_api.cli.context import command_settings, print_json


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Look at everything that is known to go wrong. Exit code 1 when something is."""
    from on_api.core.services.upkeep.diagnosis import Severity, diagnose

    findings = diagnose(command_settings(warns=False))
    if as_json:
        print_json([vars(finding) for finding in findings])
    else:
        marks = {Severity.OK: "ok  ", Severity.WARNING: "WARN", Severity.BROKEN: "FAIL"}
        for finding in findings:
            typer.echo(f"{marks[finding.verdict]}  {finding.name}: {finding.details}")
            if finding.cure:
                typer.echo(f"      cure: {finding.cure}")
    if any(finding.verdict is Severity.BROKEN for finding in findings):
        raise typer.Exit(1)
