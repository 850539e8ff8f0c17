"""Endpoints of accounts: everyone sees and changes their own, administrators manage all.

Passwords are hashed by dependencies (`_hash_…`), which run before the endpoint opens its
transaction: a hash takes up to a second, and may wait for its turn much longer. So the endpoints
behind them check once more whether the caller may do what was asked for.

`shared_router` has what v2 shares unchanged, `replaced_router` what v2 does otherwise. The
endpoints' docstrings are shown to clients, in the OpenAPI documents.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from on_api.core.errors import Conflict, NotFound, TooManyRequests
from on_api.core.schemas.files import FileList, StoredFile
from on_api.core.schemas.users import (
    MeUpdate,
    PasswordChange,
    Usage,
    User,
    UserCreate,
    UserList,
    UserUpdate,
)
from on_api.core.services.accounts.keys import require_administrator, require_in_force
from on_api.core.services.accounts.scrypt_pool import Asker
from on_api.core.services.accounts.users import all_users, get_user
from on_api.core.services.files.files import FileFilter, files_of
from on_api.core.services.traffic.usage import usage_of
from on_api.core.web.dependencies import (
    Admin,
    ClientDep,
    CurrentUser,
    KeysWrite,
    PageQuery,
    ServicesDep,
    SessionDep,
    UserId,
    act_as,
)
from on_api.core.web.routing import ApiRoute, documented

shared_router = APIRouter(prefix="/users", tags=["users"], route_class=ApiRoute)
replaced_router = APIRouter(prefix="/users", tags=["users"], route_class=ApiRoute)


@shared_router.get("/me")
def get_me(principal: CurrentUser, session: SessionDep) -> User:
    """Get your account."""
    return User.model_validate(get_user(session, principal.user_id))


@shared_router.patch("/me", responses=documented(Conflict))
def change_me(
    body: MeUpdate,
    principal: KeysWrite,
    session: SessionDep,
    services: ServicesDep,
    client: ClientDep,
) -> User:
    """Change your account. To change the password, use `POST /users/me/password`."""
    user = services.users.rename(
        session, principal.user_id, body.username, act_as(principal, client)
    )
    return User.model_validate(user)


async def _hash_both_passwords(
    body: PasswordChange, principal: KeysWrite, services: ServicesDep, client: ClientDep
) -> tuple[str, str]:
    """Check the current password and hash the new one. Returns the stored hash that the current one
    was checked against, and the hash of the new one. Raises `Unauthorized` for a wrong password."""
    asker = Asker.user(principal.user_id, client.client)
    old = await services.login.check_password(asker, principal.user_id, body.current_password)
    return old, await services.login.hash_password(body.new_password, asker)


@shared_router.post("/me/password", status_code=204, responses=documented(TooManyRequests))
def change_my_password(
    hashes: Annotated[tuple[str, str], Depends(_hash_both_passwords)],
    principal: KeysWrite,
    session: SessionDep,
    services: ServicesDep,
    client: ClientDep,
) -> None:
    """Change your password. All login sessions end, including this one; API keys stay valid."""
    require_in_force(session, principal.key_id)  # it may have ended while the hash was waited for
    old, new = hashes
    actor = act_as(principal, client)
    # `verified`: refused if the stored hash isn't the one that was checked against any more.
    services.users.change(session, principal.user_id, {"password_hash": new}, actor, verified=old)


@shared_router.get("/me/usage")
def get_my_usage(principal: CurrentUser, session: SessionDep) -> Usage:
    """Get your storage usage, and your traffic in the current month."""
    return Usage.model_validate(usage_of(session, get_user(session, principal.user_id)))


async def _hash_password_of_new_user(
    body: UserCreate, principal: Admin, services: ServicesDep, client: ClientDep
) -> str:
    """Return the hash of the password of an account to be made."""
    asker = Asker.user(principal.user_id, client.client)
    return await services.login.hash_password(body.password, asker)


@shared_router.post("", status_code=201, responses=documented(Conflict, TooManyRequests))
def create_user(
    body: UserCreate,
    password_hash: Annotated[str, Depends(_hash_password_of_new_user)],
    principal: Admin,
    session: SessionDep,
    services: ServicesDep,
    client: ClientDep,
) -> User:
    """Create an account."""
    require_administrator(session, principal)  # may have ended during the wait for the hash
    user = services.users.create(
        session,
        body.username,
        password_hash,
        act_as(principal, client),
        is_admin=body.is_admin,
        limits=body.model_dump(include={"storage_quota", "egress_budget"}, exclude_unset=True),
    )
    return User.model_validate(user)


@replaced_router.get("")
def list_all_users(_principal: Admin, session: SessionDep, page: PageQuery) -> UserList:
    """List all accounts, newest first."""
    count, users = all_users().by_time(session, page)
    return UserList(count=count, items=[User.model_validate(user) for user in users])


@shared_router.get("/{user_id}", responses=documented(NotFound))
def get_one_user(user_id: UserId, _principal: Admin, session: SessionDep) -> User:
    """Get an account."""
    return User.model_validate(get_user(session, user_id))


@shared_router.get("/{user_id}/usage", responses=documented(NotFound))
def get_usage_of_user(user_id: UserId, _principal: Admin, session: SessionDep) -> Usage:
    """Get a user's storage usage, and their traffic in the current month."""
    return Usage.model_validate(usage_of(session, get_user(session, user_id)))


async def _hash_password_if_given(
    body: UserUpdate, principal: Admin, services: ServicesDep, client: ClientDep
) -> str | None:
    """Return the hash of the new password; None if the request leaves the password as it is."""
    if "password" not in body.model_fields_set:
        return None
    asker = Asker.user(principal.user_id, client.client)
    return await services.login.hash_password(body.password, asker)


@shared_router.patch("/{user_id}", responses=documented(NotFound, Conflict, TooManyRequests))
def change_user(
    user_id: UserId,
    body: UserUpdate,
    password_hash: Annotated[str | None, Depends(_hash_password_if_given)],
    principal: Admin,
    session: SessionDep,
    services: ServicesDep,
    client: ClientDep,
) -> User:
    """Change a user's quota, budget, permissions or password, or deactivate the account."""
    require_administrator(session, principal)  # may have ended during the wait for the hash
    changes: dict[str, Any] = body.model_dump(exclude_unset=True, exclude={"password"})
    if password_hash is not None:
        changes["password_hash"] = password_hash
    user = services.users.change(session, user_id, changes, act_as(principal, client))
    return User.model_validate(user)


@shared_router.delete("/{user_id}", status_code=202, responses=documented(NotFound, Conflict))
def delete_user(
    user_id: UserId,
    principal: Admin,
    session: SessionDep,
    services: ServicesDep,
    client: ClientDep,
) -> None:
    """Delete an account. It is inaccessible as soon as the response is sent; its files are removed
    in the background."""
    services.users.delete(session, user_id, act_as(principal, client))


@replaced_router.get("/{user_id}/files", responses=documented(NotFound))
def list_files_of_user(
    user_id: UserId,
    _principal: Admin,
    session: SessionDep,
    services: ServicesDep,
    page: PageQuery,
) -> FileList:
    """List the files of any user, newest first."""
    get_user(session, user_id)  # raises `NotFound`
    count, rows = files_of(session, user_id, FileFilter()).by_time(session, page)
    items = [StoredFile.of(row, services.settings.base_url) for row in rows]
    return FileList(count=count, items=items)
