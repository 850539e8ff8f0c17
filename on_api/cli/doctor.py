"""`on-api doctor`: finds known problems and names the cure of each."""

from __future__ import annotations

from typing import Annotated

import typer

from on_api.cli.context import command_settings, print_json


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Check the installation for known problems. Exits with code 1 if it finds one."""
    from on_api.core.services.upkeep.diagnosis import Severity, diagnose

    findings = diagnose(command_settings(warns=False))
    if as_json:
        print_json([vars(finding) for finding in findings])
    else:
        marks = {Severity.OK: "ok  ", Severity.WARNING: "WARN", Severity.BROKEN: "FAIL"}
        for finding in findings:
            typer.echo(f"{marks[finding.verdict]}  {finding.name}: {finding.details}")
            if finding.cure:
                typer.echo(f"      fix: {finding.cure}")
    if any(finding.verdict is Severity.BROKEN for finding in findings):
        raise typer.Exit(1)
