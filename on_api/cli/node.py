"""`on-api node`: runs the IPFS node alone, shows its state, and shows the configuration that it
should have."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
from typing import TYPE_CHECKING, Annotated

import typer

from on_api.cli.context import command_settings, show_home
from on_api.core.errors import NodeError, StartupError
from on_api.core.ipfs.daemon.version import TESTED_RANGE
from on_api.core.settings import Settings
from on_api.server import collector
from on_api.server.process import end_cleanly_on_signal, load_settings

if TYPE_CHECKING:
    from on_api.core.services.upkeep.node import NodeDescription

app = typer.Typer(help="Run and inspect the IPFS node.", no_args_is_help=True)


@app.command()
def install() -> None:
    """Find, build or download the Kubo program, and print its path."""
    from on_api.core.ipfs.daemon.binary import kubo_binary

    typer.echo(kubo_binary(load_settings().node, _say))


@app.command()
def run() -> None:
    """Run the IPFS node in the foreground until you press Ctrl-C."""
    from on_api.core.ipfs.daemon.process import ManagedNode
    from on_api.core.ipfs.daemon.repo import rpc_auth_for
    from on_api.core.logging import configure_logging, log_uncaught_errors
    from on_api.core.services.upkeep.instance import published

    settings = load_settings()
    if not settings.manages_node:
        msg = (
            f"ON_API_IPFS__RPC_URL names an external node ({settings.rpc_url}): unset it to"
            " let on-api run a node itself."
        )
        raise StartupError(msg)
    configure_logging(settings.log)
    log_uncaught_errors()
    show_home(settings)
    end_cleanly_on_signal()
    node = ManagedNode(settings.home, settings.node, rpc_auth_for(settings.home / "ipfs"), _say)
    try:
        with node, published(settings, serves=False):
            typer.echo(f"RPC      {settings.rpc_url}")
            typer.echo(f"gateway  {settings.gateway_url}/ipfs/CID")
            typer.echo(f"repo     {node.repo}")
            typer.echo(f"log      {node.log}")
            typer.echo("Press Ctrl-C to stop the node.")
            collector.begin()
            threading.Event().wait()
    except KeyboardInterrupt:
        _say("The node has stopped")


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Show the node's version, peer ID, number of peers and repo size. Exits with code 1 if the
    node can't be reached."""
    settings = command_settings(warns=False)
    description: NodeDescription | None = None
    problem: str | None = None
    try:
        description = asyncio.run(_describe(settings))
    except NodeError as error:
        problem = error.details
    if as_json:
        typer.echo(json.dumps(_as_object(settings, description, problem), indent=2))
    else:
        _print_status(settings, description, problem)
    if description is None:
        raise typer.Exit(1)
    if not description.tested:
        _say(
            f"warning: the node is {description.agent} {description.version};"
            f" on-api was tested with {TESTED_RANGE}"
        )


@app.command()
def adopt() -> None:
    """Accept the node at ON_API_IPFS__RPC_URL as this deployment's node, replacing the previous
    one.

    on-api only uses the node that it was first used with; run this to switch to another one on
    purpose. Afterwards, run `on-api fsck` to check that the node has all content that the database
    expects.
    """
    from on_api.cli.context import account_scope
    from on_api.core.services.accounts.audit import COMMAND_LINE
    from on_api.core.services.upkeep import node_adoption

    settings = command_settings(warns=False)
    if settings.manages_node:
        msg = "on-api runs its own node, in ON_API_HOME: there is no external node to accept."
        raise StartupError(msg)
    peer_id = asyncio.run(_identity(settings))
    with account_scope() as (_, session):
        before = node_adoption.adopt(session, peer_id, COMMAND_LINE)
    if before == peer_id:
        typer.echo(f"{peer_id} is already this deployment's node")
    else:
        instead = "" if before is None else f", replacing {before}"
        typer.echo(
            f"{peer_id} is now this deployment's node{instead}; run `on-api fsck` to check its"
            " content"
        )


@app.command()
def config() -> None:
    """Show, as JSON, the Kubo configuration that on-api needs and how the node's config file
    differs from it.

    The RPC secret is left out. `stale` names the settings that will be written at the next start;
    `differences` lists the settings that break on-api's guarantees until somebody changes them.
    """
    from on_api.core.ipfs.daemon.repo import (
        config_differences,
        gateway_socket,
        read_config,
        rpc_auth_for,
        stale_keys,
        wanted_config,
    )

    settings = command_settings(warns=False)
    repo = settings.home / "ipfs"
    answer: dict[str, object] = {
        "config_file": None,
        "wanted": wanted_config(settings.node, "(secret)", gateway_socket(repo)),
        "stale": None,
        "differences": None,
    }
    if settings.manages_node and (repo / "config").exists():
        actual = read_config(repo)
        answer["config_file"] = str((repo / "config").absolute())
        wanted = wanted_config(settings.node, rpc_auth_for(repo), gateway_socket(repo))
        answer["stale"] = stale_keys(actual, wanted)
        answer["differences"] = config_differences(actual, settings.node)
    typer.echo(json.dumps(answer, indent=2))


async def _describe(settings: Settings) -> NodeDescription:
    from on_api.core.services.upkeep.node import describe_node
    from on_api.core.services.upkeep.node_adoption import asking

    async with asking(settings) as node:
        return await describe_node(node)


async def _identity(settings: Settings) -> str:
    from on_api.core.services.upkeep.node import connect_node

    async with connect_node(settings) as node:
        return await node.peer_id()


def _as_object(
    settings: Settings, description: NodeDescription | None, problem: str | None
) -> dict[str, object]:
    return {
        "reachable": description is not None,
        "problem": problem,
        "rpc_url": settings.rpc_url,
        "gateway_url": settings.base_url,
        "managed": settings.manages_node,
        "node": None if description is None else dataclasses.asdict(description),
    }


def _print_status(
    settings: Settings, description: NodeDescription | None, problem: str | None
) -> None:
    if description is None:
        typer.echo(f"not reachable: {problem}")
    else:
        typer.echo(f"version  {description.agent} {description.version} (tested: {TESTED_RANGE})")
        typer.echo(f"peer id  {description.id}")
        typer.echo(f"peers    {description.peers}")
        typer.echo(f"repo     {_gigabytes(description.repo_size)}")
        typer.echo(f"limit    {_gigabytes(description.repo_limit)}")
    typer.echo(f"RPC      {settings.rpc_url}")
    typer.echo(f"gateway  {settings.base_url}/ipfs/CID")


def _gigabytes(size: int) -> str:
    return f"{size / 10**9:,.3f} GB"


def _say(line: str) -> None:
    typer.echo(line, err=True)
