"""Your encryption identities: listed, rotated, imported, exported."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from on_api.core.errors import Conflict, Forbidden, SecretUnavailable, TooManyRequests
from on_api.core.schemas.identities import (
    ExportedIdentities,
    Identity,
    IdentityExport,
    IdentityImport,
    IdentityItems,
)
from on_api.core.services.accounts.keys import require_in_force
from on_api.core.services.accounts.scrypt_pool import Asker
from on_api.core.services.accounts.users import require_password
from on_api.core.services.files.identities import identities_of
from on_api.core.web.dependencies import (
    ClientDep,
    FilesRead,
    KeysWrite,
    ServicesDep,
    SessionDep,
    act_as,
)
from on_api.core.web.routing import ApiRoute, documented

shared_router = APIRouter(prefix="/users/me", tags=["users"], route_class=ApiRoute)


@shared_router.get("/identities")
def list_my_identities(principal: FilesRead, session: SessionDep) -> IdentityItems:
    """List your identities, newest first, without their secret keys. The first identity is created
    when it is needed."""
    found = identities_of(session, principal.user_id)
    return IdentityItems(items=[Identity.model_validate(row) for row in found])


@shared_router.post("/identity/rotate", responses=documented(Conflict, SecretUnavailable))
def rotate_my_identity(
    principal: KeysWrite, session: SessionDep, services: ServicesDep, client: ClientDep
) -> Identity:
    """Create a new identity for future files. Existing files stay encrypted to their present
    identities."""
    row = services.identities.rotate(session, principal.user_id, act_as(principal, client))
    return Identity.model_validate(row)


@shared_router.post("/identity/import", responses=documented(Conflict, SecretUnavailable))
def import_identity(
    body: IdentityImport,
    principal: KeysWrite,
    session: SessionDep,
    services: ServicesDep,
    client: ClientDep,
) -> Identity:
    """Import an identity that you already have (`age-keygen`); an identity that was imported before
    is not added again. The server stores its secret key in encrypted form."""
    row = services.identities.add(
        session,
        principal.user_id,
        body.identity.get_secret_value(),
        act_as(principal, client),
        active=body.active,
    )
    return Identity.model_validate(row)


async def _password_given_again(
    body: IdentityExport, principal: KeysWrite, services: ServicesDep, client: ClientDep
) -> str:
    if not principal.from_login:
        raise Forbidden("This requires a login with your password; an API key is not sufficient.")
    asker = Asker.user(principal.user_id, client.client)
    return await services.login.check_password(asker, principal.user_id, body.password)


@shared_router.post(
    "/identity/export",
    responses=documented(Forbidden, TooManyRequests, SecretUnavailable),
)
def export_my_identities(
    verified: Annotated[str, Depends(_password_given_again)],
    response: Response,
    principal: KeysWrite,
    session: SessionDep,
    services: ServicesDep,
    client: ClientDep,
) -> ExportedIdentities:
    """Export your identities with their secret keys for `age`. Anyone who has the secret keys can
    read your private files without on-api.

    This requires the access token from a password login instead of an API key, and the password
    must be sent again.
    """
    require_in_force(session, principal.key_id)  # it may have ended while the password was checked
    require_password(session, principal.user_id, verified)
    response.headers["Cache-Control"] = "no-store"
    found = services.identities.export(session, principal.user_id, act_as(principal, client))
    return ExportedIdentities.of(found)
