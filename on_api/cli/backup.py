"""`on-api backup`, `on-api verify` and `on-api restore`."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from on_api.cli.age_keys import identities_of, recipients_of
from on_api.cli.context import build_services, command_settings, prepare_home, print_json
from on_api.cli.progress import Progress, ProgressLine, size
from on_api.server.process import end_cleanly_on_signal, load_settings

if TYPE_CHECKING:
    from on_api.core.crypto.age import Identity, Recipient
    from on_api.core.crypto.secrets import SecretCopy
    from on_api.core.services.upkeep.backup.dag_restorer import RestoredDags
    from on_api.core.services.upkeep.backup.damages import Damage
    from on_api.core.services.upkeep.backup.folder import BackupFolder, SavedDatabase
    from on_api.core.services.upkeep.backup.restore_state import RestoreState
    from on_api.core.services.upkeep.backup.runner import BackupReport, Tell
    from on_api.core.services.upkeep.backup.verifying import Verification
    from on_api.core.services.upkeep.fsck.findings import FsckReport
    from on_api.core.settings import Settings

Folder = Annotated[Path, typer.Argument(help="The backup's folder.", metavar="DIR")]
AsJson = Annotated[bool, typer.Option("--json", help="For scripts.")]
IdentityFile = Annotated[
    Path | None,
    typer.Option("--identity", help="File with the age identity that opens the secret."),
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="File with the passphrase of the secret's copy."),
]


def backup(
    folder: Folder,
    recipient: Annotated[
        list[str] | None,
        typer.Option("--recipient", help="age1…: its identity opens the master secret's copy."),
    ] = None,
    passphrase_file: PassphraseFile = None,
    without_secret: Annotated[
        bool, typer.Option("--without-secret", help="Leave the master secret out.")
    ] = False,
    keep: Annotated[
        int | None,
        typer.Option("--keep", help="Copies of the database that stay; else all do.", min=1),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Back up the database and all content into DIR, while on-api runs.

    Copies only what DIR lacks; when it was interrupted, run it again. Nothing else is held up but
    garbage collection. Exit code 1 when content is damaged on the node: the rest is saved.
    """
    settings = command_settings(warns=False)
    recipients = recipients_of(
        settings, recipient or [], passphrase_file, without_secret=without_secret
    )
    end_cleanly_on_signal()
    with _node(settings), _progress() as tell:
        report = asyncio.run(_back_up(settings, folder, recipients, keep, tell))
    if as_json:
        print_json(asdict(report))
    else:
        _print_damages(report.damages, report.damaged)
        typer.echo(
            f"{report.contents} contents; copied {report.copied_blocks} blocks "
            f"({size(report.copied_bytes)}) in {report.seconds:.0f} s; database {report.database}: "
            + ("complete" if report.outcome == "complete" else "NOT complete")
        )
    if report.outcome != "complete":
        raise typer.Exit(1)


def verify(
    folder: Folder,
    identity: IdentityFile = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Read and hash everything in a backup, and follow all links of what its databases need.

    Needs no running on-api. With --identity or --passphrase-file the master secret is opened too.
    A damaged block is set aside, and the next backup copies it anew. Exit code 1 when something is
    wrong.
    """
    from on_api.core.services.upkeep.backup.folder import BackupFolder
    from on_api.core.services.upkeep.backup.verifying import verify as verify_folder

    identities = identities_of(load_settings(), identity, passphrase_file)
    opened = BackupFolder.open(folder)
    with opened.locked(alone=False), _progress() as tell:
        found = verify_folder(opened, identities, tell)
    if as_json:
        print_json({"clean": found.clean, **asdict(found)})
    else:
        _print_verification(found, opened)
    if not found.clean:
        raise typer.Exit(1)


def restore(
    folder: Folder,
    identity: IdentityFile = None,
    passphrase_file: PassphraseFile = None,
    secret_file: Annotated[
        Path | None,
        typer.Option("--secret-file", help="File with the master secret, of a backup without it."),
    ] = None,
    database: Annotated[
        str | None, typer.Option("--database", help="Which copy of the database; else the newest.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Restore a backup into an empty ON_API_HOME (and an empty PostgreSQL), and check the result.

    When it was interrupted, run it again: it goes on. `on-api serve` refuses to start meanwhile.
    Exit code 1 when something is missing.
    """
    from on_api.core.services.upkeep.backup.folder import BackupFolder
    from on_api.core.services.upkeep.backup.restore_state import remove_state

    settings = load_settings()
    identities = identities_of(settings, identity, passphrase_file)
    opened = BackupFolder.open(folder)
    end_cleanly_on_signal()
    with opened.locked(alone=False):
        saved, state = _begin_restore(settings, opened, database, identities, secret_file)
        with _node(settings), _progress() as tell:
            dags, report = asyncio.run(_restore(settings, opened, saved, state, tell))
        remove_state(settings.home)
    if as_json:
        from on_api.core.services.upkeep.fsck.runner import as_document

        print_json(
            {
                "database": saved.stamp,
                "content": None if dags is None else asdict(dags),
                "fsck": as_document(report),
            }
        )
    else:
        _print_restored(saved, dags, report)
    if not report.clean:
        raise typer.Exit(1)


async def _back_up(
    settings: Settings,
    folder: Path,
    recipients: Sequence[Recipient] | None,
    keep: int | None,
    tell: Tell,
) -> BackupReport:
    from on_api.core.services.upkeep.backup.runner import Backup

    services = build_services(settings)
    try:
        run = Backup(settings, services.database, services.node, recipients, tell)
        return await run.run(folder, keep)
    finally:
        await services.close()


def _begin_restore(
    settings: Settings,
    folder: BackupFolder,
    stamp: str | None,
    identities: Sequence[Identity],
    secret_file: Path | None,
) -> tuple[SavedDatabase, RestoreState]:
    """Refuse what can't be restored before anything is written; then begin, or go on."""
    from on_api.core.crypto.secrets import SecretCopy
    from on_api.core.errors import StartupError
    from on_api.core.ipfs.daemon.process import check_home
    from on_api.core.services.upkeep.backup import restoring
    from on_api.core.services.upkeep.backup.restore_state import RestoreState, read_state
    from on_api.core.services.upkeep.instance import running_instance

    if running_instance(settings.home) is not None:
        raise StartupError(f"on-api runs in {settings.home}: stop it, and restore into another.")
    state = read_state(settings.home)
    saved = folder.database(stamp if state is None else (stamp or state.stamp))
    if state is None:
        restoring.require_empty(settings)
    elif saved.stamp != state.stamp or str(folder.path.resolve()) != state.backup:
        raise StartupError(
            f"A restore of {state.stamp} of {state.backup} is under way in {settings.home}: go on "
            "with that one, or remove that home."
        )
    secret: SecretCopy | None = None
    if restoring.has_secret_of_its_own(settings):
        restoring.require_secret(saved, SecretCopy.of(settings))
    else:
        secret = _secret(saved, identities, secret_file)
        restoring.require_secret(saved, secret)
    prepare_home(settings.home, restoring=True)
    if settings.manages_node:
        check_home(settings.home)
    if state is None:
        state = RestoreState(uuid.uuid4(), str(folder.path.resolve()), saved.stamp)
        state.write(settings.home)
    if secret is not None:
        secret.put_into(settings.home)
    return saved, state


def _secret(
    saved: SavedDatabase, identities: Sequence[Identity], secret_file: Path | None
) -> SecretCopy:
    from on_api.core.crypto.age import AgeError
    from on_api.core.crypto.secrets import SecretCopy
    from on_api.core.errors import BadRequest

    if secret_file is not None:
        return SecretCopy.of_file(secret_file)
    if not saved.secret.exists():
        raise BadRequest(
            "This backup was made without the master secret: give it by --secret-file, or set "
            "ON_API_SECRET_KEY."
        )
    if not identities:
        raise BadRequest(
            "Give what opens the master secret in this backup: --identity FILE or "
            "--passphrase-file FILE; or the secret itself by --secret-file."
        )
    try:
        return SecretCopy.opened(saved.secret.read_bytes(), identities)
    except AgeError as error:
        raise BadRequest(f"The master secret in the backup can't be opened: {error}") from None


async def _restore(
    settings: Settings,
    folder: BackupFolder,
    saved: SavedDatabase,
    state: RestoreState,
    tell: Tell,
) -> tuple[RestoredDags | None, FsckReport]:
    """Restore what is not there yet, then check all of it."""
    from on_api.core.services.upkeep.backup.dag_restorer import DagRestorer
    from on_api.core.services.upkeep.backup.restoring import RestoredDatabase
    from on_api.core.services.upkeep.backup.saved_rows import SavedRows
    from on_api.core.services.upkeep.node import connect_node

    restored = RestoredDatabase(settings, saved, state)
    dags = None
    if not await asyncio.to_thread(restored.is_in_place):
        tell("preparing the database", 0, 0, 0)
        await asyncio.to_thread(restored.prepare)
        async with connect_node(settings) as node:
            peer_id = await node.peer_id()
            with restored.opened() as database:
                rows = SavedRows(saved.path)
                dags = await DagRestorer(folder, database, rows, node, state.id, tell).run()
        await asyncio.to_thread(
            restored.finish,
            None if settings.manages_node else peer_id,
            lambda what, done, total: tell(what, done, total, 0),
        )
    tell("checking everything", 0, 0, 0)
    services = build_services(settings)
    try:
        return dags, await services.fsck.run(repair=False, walk=True)
    finally:
        await services.close()


@contextmanager
def _node(settings: Settings) -> Iterator[None]:
    """Run the home's node while the block runs, unless somebody does already."""
    from on_api.core.ipfs.daemon.process import ManagedNode
    from on_api.core.ipfs.daemon.repo import rpc_auth_for
    from on_api.core.services.upkeep.instance import running_instance

    if not settings.manages_node or running_instance(settings.home) is not None:
        yield
        return
    auth = rpc_auth_for(settings.home / "ipfs")
    with ManagedNode(settings.home, settings.node, auth, lambda line: typer.echo(line, err=True)):
        yield


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int, int], None]]:
    line = ProgressLine()

    def tell(what: str, done: int, total: int, copied: int) -> None:
        line.show(Progress(what, done, total, copied, None))

    try:
        yield tell
    finally:
        line.end()


def _print_damages(damages: Sequence[Damage], number: int) -> None:
    for damage in damages:
        typer.echo(f"DAMAGED  {damage.cid}: {'; '.join(damage.troubles)}")
        for reference in damage.references:
            typer.echo(f"         {reference}")
    if number > len(damages):
        typer.echo(f"and {number - len(damages)} more damaged contents")


def _print_verification(found: Verification, folder: BackupFolder) -> None:
    for trouble in [*found.damaged_blocks, *found.troubles]:
        typer.echo(f"WRONG    {trouble}")
    _print_damages(found.damages, found.damaged)
    typer.echo(
        f"{folder.path}: {len(found.databases)} databases, {found.secrets} copies of the master "
        f"secret, {found.contents} contents, {found.blocks} blocks ({size(found.bytes)}) read: "
        + ("clean" if found.clean else "NOT clean")
    )


def _print_restored(saved: SavedDatabase, dags: RestoredDags | None, report: FsckReport) -> None:
    from on_api.cli.fsck import print_report

    if dags is not None:
        _print_damages(dags.damages, dags.lost)
        typer.echo(
            f"restored {saved.stamp}: {dags.contents} contents, {dags.blocks} blocks "
            f"({size(dags.bytes)}), {dags.lost} lost"
        )
    print_report(report)
