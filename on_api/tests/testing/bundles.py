"""Making bundles on purpose, and looking at what became of them."""

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
"""So many go alone before the others are gathered."""


@dataclass(frozen=True)
class Member:
    """A small file of somebody, as it was sent and as it was recorded."""

    account: Account
    data: bytes
    file: FileFacts | BaseException

    @property
    def cid(self) -> str:
        """Known without anybody."""
        return build_file(self.data).cid

    @property
    def id(self) -> str:
        """Of the file."""
        assert isinstance(self.file, FileFacts), self.file
        return str(self.file.id)

    def read(self) -> bytes:
        """What on-api gives for it."""
        answer = self.account.client.get(f"/v1/files/{self.id}/content")
        assert answer.status_code == 200, answer.text
        return answer.content

    def delete(self) -> None:
        """The file."""
        assert self.account.client.delete(f"/v1/files/{self.id}").status_code == 204


def beside(settings: Settings, work: Callable[[Services], Awaitable[T]]) -> T:
    """Something done by another process's services."""

    async def run() -> T:
        services = Services.build(settings, connect_node(settings))
        try:
            return await work(services)
        finally:
            await services.close()

    return asyncio.run(run())


async def upload(services: Services, principal: Principal, data: bytes) -> FileFacts:
    """One, as the endpoint does it."""

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
    """Have all of these in one bundle, behind two that go alone; each with its file or error."""
    nobody = server.new_user()
    nobody.client.close()

    async def run(services: Services) -> list[FileFacts | BaseException]:
        everything = [*((nobody, os.urandom(50)) for _ in range(AT_ONCE)), *sent]
        # Before the first begins: so they come in their order.
        asking = [services.authenticator.authenticate(account.key) for account, _ in everything]
        uploads = [
            upload(services, principal, data)
            for principal, (_, data) in zip(asking, everything, strict=True)
        ]
        return list(await asyncio.gather(*uploads, return_exceptions=True))[AT_ONCE:]

    files = beside(settings or server.settings, run)
    return [Member(*each, file) for each, file in zip(sent, files, strict=True)]


def root_of(server: Server, cid: str) -> str:
    """What covers a content."""
    return content(server, cid).pin_root_id


def content(server: Server, cid: str) -> Content:
    """A content's row."""
    with server.services.database.session_scope(write=False) as session:
        return session.scalars(select(Content).where(Content.cid == cid)).one()


def free(settings: Settings) -> None:
    """Without any grace: end what nobody holds, and thin bundles out."""

    async def run(services: Services) -> None:
        unpinner = Unpinner(
            services.database,
            services.keeper,
            services.metrics,
            grace=timedelta(0),
            life=timedelta(seconds=30),
        )
        while await unpinner.step() or await unpinner.thin_out():
            pass

    beside(settings, run)


def pins(settings: Settings) -> dict[str, str]:
    """CID and name of the node's recursive pins."""

    async def run(services: Services) -> dict[str, str]:
        return {pin.cid: pin.name async for pin in services.node.pins()}

    return beside(settings, run)


def collect(settings: Settings) -> str:
    """Garbage; returns the outcome."""

    async def run(services: Services) -> str:
        return (await services.garbage.collect(20)).outcome

    return beside(settings, run)
