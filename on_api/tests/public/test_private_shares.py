"""Links to private files: decrypted on the way where the server can, else the age file itself."""

from __future__ import annotations

import os

import httpx
import pytest

from on_api.core.crypto.age import Decryptor, X25519Identity
from on_api.tests.conftest import Account
from on_api.tests.testing.shares import share

SECRET = "the passphrase of the file, ünïcode"
BROWSER = {"Accept": "text/html,*/*;q=0.8"}


def upload(account: Account, data: bytes, passphrase: str = "", **query: str) -> dict[str, object]:
    """A private file."""
    headers = {b"On-Api-Passphrase": passphrase.encode()} if passphrase else {}
    answer = account.client.put(
        "/v1/files",
        params={"name": "secret.txt", "visibility": "private", **query},
        content=data,
        headers=headers,
    )
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def test_the_owners_file_is_decrypted_on_the_way(alice: Account, anonymous: httpx.Client) -> None:
    """Whole and in parts, counted by the plaintext; a browser's page tells its own size."""
    data = os.urandom(200_000)
    link = share(alice, upload(alice, data), max_downloads=2)
    assert (
        anonymous.get(link.path, headers={"Range": "bytes=70000-70099"}).content
        == (data[70_000:70_100])
    )
    page = anonymous.get(link.path, headers=BROWSER)
    assert "secret.txt" in page.text
    answer = anonymous.get(link.path)
    assert answer.content == data
    assert answer.headers["cache-control"] == "private, no-store"
    assert answer.headers["content-security-policy"].startswith("sandbox")
    assert anonymous.get(link.path, headers={"Range": "bytes=0-9"}).content == data[:10]
    assert [anonymous.get(link.path).status_code for _ in range(2)] == [200, 404]
    assert link.downloads == 2


def test_a_files_passphrase_is_asked_of_whoever_has_the_link(
    alice: Account, anonymous: httpx.Client
) -> None:
    """By the header or the page's form; what is wrong takes no download."""
    data = os.urandom(1000)
    link = share(alice, upload(alice, data, SECRET), max_downloads=2)
    wrong = anonymous.get(link.path, headers={"On-Api-Passphrase": "wrong"})
    assert wrong.status_code == 403
    assert anonymous.get(link.path).status_code == 400
    assert 'name="passphrase"' in anonymous.get(link.path, headers=BROWSER).text
    right = {b"On-Api-Passphrase": SECRET.encode()}
    assert anonymous.get(link.path, headers=right).content == data
    by_form = anonymous.post(link.path, data={"passphrase": SECRET}, headers=BROWSER)
    assert by_form.content == data
    assert by_form.headers["content-disposition"].startswith("attachment")
    assert anonymous.get(link.path, headers=right).status_code == 404


def test_what_the_server_can_not_open_is_shared_as_it_is(
    alice: Account, anonymous: httpx.Client
) -> None:
    """Its recipient opens it; the limit counts the bytes that go out."""
    data = os.urandom(100_000)
    identity = X25519Identity.generate()
    file = upload(alice, data, recipients=str(identity.recipient), owner_access="false")
    link = share(alice, file, max_downloads=1)
    answer = anonymous.get(link.path)
    decryptor = Decryptor([identity])
    assert decryptor.update(answer.content) + decryptor.finish() == data
    assert "secret.txt.age" in answer.headers["content-disposition"]
    assert anonymous.get(link.path).status_code == 404


@pytest.mark.parametrize("accept", ["*/*", "text/html"])
def test_a_deleted_private_file_ends_its_links(
    alice: Account, anonymous: httpx.Client, accept: str
) -> None:
    """As a public one's."""
    file = upload(alice, b"gone")
    link = share(alice, file)
    assert alice.client.delete(f"/v1/files/{file['id']}").status_code == 204
    assert anonymous.get(link.path, headers={"Accept": accept}).status_code == 404
