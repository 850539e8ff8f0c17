"""Share links as their owners create them, and their rows in the database."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import update

from on_api.core.models import PasswordThrottle, Share
from on_api.core.models.database import utc_now
from on_api.tests.conftest import Account, Server


@dataclass(frozen=True)
class Link:
    """A share with its secret."""

    id: str
    path: str
    """Path of its URL: the tests' servers don't serve at the URL's own origin."""
    owner: Account

    @property
    def token(self) -> str:
        """The secret token, which must not appear anywhere."""
        return self.path.removeprefix("/s/")

    @property
    def downloads(self) -> int:
        """Number of downloads, as the owner sees it."""
        return int(self.owner.client.get(f"/v1/shares/{self.id}").json()["downloads"])


def share(owner: Account, file: dict[str, Any], **options: object) -> Link:
    """Create a link to a file."""
    answer = owner.client.post("/v1/shares", json={"file_id": file["id"], **options})
    assert answer.status_code == 201, answer.text
    made = answer.json()
    return Link(made["id"], urlsplit(made["url"]).path, owner)


def sent_bytes(server: Server, link: Link) -> int:
    """Return the bytes that the database has counted against the limit."""
    with server.services.database.session_scope(write=False) as session:
        return session.get_one(Share, uuid.UUID(link.id)).sent_bytes


def let_pass(server: Server, link: Link, seconds: float) -> None:
    """Move the expiry and the pause of a link so much nearer, as if the time had passed."""
    with server.services.database.session_scope() as session:
        row = session.get_one(Share, uuid.UUID(link.id))
        earlier = timedelta(seconds=seconds)
        if row.expires_at is not None:
            expires_at = row.expires_at - earlier
            session.execute(update(Share).where(Share.id == row.id).values(expires_at=expires_at))
        for pause in session.query(PasswordThrottle).filter_by(subject=f"share:{link.id}"):
            if pause.blocked_until is not None:
                pause.blocked_until -= earlier


def in_an_hour() -> str:
    """Return a moment an hour from now, for `expires_at`."""
    return (utc_now() + timedelta(hours=1)).isoformat()
