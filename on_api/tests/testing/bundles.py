"""Making bundles on purpose, and inspecting what became of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from sqlalchemy import select

from on_api.core.ipfs.formats.unixfs import build_file
from on_api.core.models import Content
from on_api.core.services.accounts.access import Principal
from on_api.core.services.container import Services
from on_api.core.services.content.reservations import Announced
from on_api.core.services.files.files import FileFacts
from on_api.core.services.upkeep.node import connect_node
from on_api.core.services.uploads.uploads import IncomingFile
from on_api.core.settings import Settings
from on_api.tests.conftest import Account, Server
from on_api.worker.unpinning import Unpinner

T = TypeVar("T")
AT_ONCE = 2
"""Uploads that go alone before the others are gathered into a bundle."""


@dataclass(frozen=True)
class Member:
    """A small file of a user, as it was sent and as it was recorded."""

    account: Account
    data: bytes
    file: FileFacts | BaseException

    @property
    def cid(self) -> str:
        """CID, computed from the bytes."""
        return build_file(self.data).cid

    @property
    def id(self) -> str:
        """The file's id."""
        assert isinstance(self.file, FileFacts), self.file
        return str(self.file.id)

    def read(self) -> bytes:
        """Return the content that on-api serves."""
        answer = self.account.client.get(f"/v1/files/{self.id}/content")
        assert answer.status_code == 200, answer.text
        return answer.content

    def delete(self) -> None:
        """Delete the file."""
        assert self.account.client.delete(f"/v1/files/{self.id}").status_code == 204


def beside(settings: Settings, work: Callable[[Services], Awaitable[T]]) -> T:
    """Run `work` with services of its own, as another process would."""

    async def run() -> T:
        services = Services.build(settings, connect_node(settings))
        try:
            return await work(services)
        finally:
            await services.close()

    return asyncio.run(run())


async def upload(services: Services, principal: Principal, data: bytes) -> FileFacts:
    """Upload one file, as the endpoint does."""

    async def body() -> AsyncIterator[bytes]:
        yield data

    async def files() -> AsyncIterator[IncomingFile]:
        yield IncomingFile("small", None, {}, body())

    size = Announced(len(data), len(data))
    [file] = await services.uploads.store(principal, files(), size)
    return file


def bundle(
    server: Server, sent: Sequence[tuple[Account, bytes]], settings: Settings | None = None
) -> list[Member]:
    """Upload all of these into one bundle, behind two uploads that go alone. Return each with its
    file or error."""
    nobody = server.new_user()
    nobody.client.close()

    async def run(services: Services) -> list[FileFacts | BaseException]:
        everything = [*((nobody, os.urandom(50)) for _ in range(AT_ONCE)), *sent]
        # Authenticated before the first upload begins, so that they arrive in order.
        asking = [services.authenticator.authenticate(account.key) for account, _ in everything]
        uploads = [
            upload(services, principal, data)
            for principal, (_, data) in zip(asking, everything, strict=True)
        ]
        return list(await asyncio.gather(*uploads, return_exceptions=True))[AT_ONCE:]

    files = beside(settings or server.settings, run)
    return [Member(*each, file) for each, file in zip(sent, files, strict=True)]


def root_of(server: Server, cid: str) -> str:
    """Return the root that covers a content."""
    return content(server, cid).pin_root_id


def content(server: Server, cid: str) -> Content:
    """Return a content's row."""
    with server.services.database.session_scope(write=False) as session:
        return session.scalars(select(Content).where(Content.cid == cid)).one()


def free(settings: Settings) -> None:
    """Unpin unreferenced contents, without any grace, and dissolve thin bundles."""

    async def run(services: Services) -> None:
        unpinner = Unpinner(
            services.database,
            services.reconciler,
            services.metrics,
            grace=timedelta(0),
            life=timedelta(seconds=30),
        )
        while await unpinner.step() or await unpinner.thin_out():
            pass

    beside(settings, run)


def pins(settings: Settings) -> dict[str, str]:
    """Return the names of the node's recursive pins, by CID."""

    async def run(services: Services) -> dict[str, str]:
        return {pin.cid: pin.name async for pin in services.node.pins()}

    return beside(settings, run)


def collect(settings: Settings) -> str:
    """Collect garbage, and return the outcome."""

    async def run(services: Services) -> str:
        return (await services.garbage.collect(20)).outcome

    return beside(settings, run)
