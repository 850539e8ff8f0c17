"""Logging in with a password, and registering where the operator allows it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from fastapi.security import OAuth2PasswordRequestForm

from on_api.core.errors import Conflict, Forbidden, TooManyRequests, Unauthorized
from on_api.core.schemas.auth import BEARER, Registration, Token
from on_api.core.schemas.users import User
from on_api.core.services.accounts.keys import parse_scopes
from on_api.core.services.accounts.scrypt_pool import Asker
from on_api.core.web.dependencies import ClientDep, ServicesDep, SessionDep
from on_api.core.web.routing import ApiRoute, documented

shared_router = APIRouter(prefix="/auth", tags=["auth"], route_class=ApiRoute)


@shared_router.post("/token", responses=documented(Unauthorized, TooManyRequests))
async def log_in(
    form: Annotated[OAuth2PasswordRequestForm, Depends()],
    services: ServicesDep,
    client: ClientDep,
    response: Response,
) -> Token:
    """Exchange a username and password for a short-lived access token (OAuth2 password grant).

    `scope` restricts the token; by default, it has every scope that the user may have.
    """
    token, lifetime = await services.login.log_in(
        form.username, form.password, parse_scopes(form.scopes), client
    )
    response.headers["Cache-Control"] = "no-store"
    return Token(access_token=token, token_type=BEARER, expires_in=lifetime)


async def _hash_password(body: Registration, services: ServicesDep, client: ClientDep) -> str:
    if services.settings.registration != "open":
        raise Forbidden("Registration is closed on this server; ask the operator for an account.")
    return await services.login.hash_password(body.password, Asker.stranger(client.client))


@shared_router.post(
    "/register", status_code=201, responses=documented(Forbidden, Conflict, TooManyRequests)
)
def register(
    body: Registration,
    password_hash: Annotated[str, Depends(_hash_password)],
    session: SessionDep,
    services: ServicesDep,
    client: ClientDep,
) -> User:
    """Register an account, if the operator allows it."""
    user = services.users.create(session, body.username, password_hash, client)
    return User.model_validate(user)
