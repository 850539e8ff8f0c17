"""Logging in with a password, and registering where the operator allows it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from fastapi.security import OAuth2PasswordRequestForm

from on_api.core.dependencies import ClientDep, ServicesDep
from on_api.core.errors import Conflict, Forbidden, TooManyRequests, Unauthorized
from on_api.core.routing import ApiRoute, documented
from on_api.core.schemas.auth import BEARER, Registration, Token
from on_api.core.schemas.users import User
from on_api.core.services.keys import parse_scopes

router = APIRouter(prefix="/auth", tags=["auth"], route_class=ApiRoute)


@router.post("/token", responses=documented(Unauthorized, TooManyRequests))
def log_in(
    form: Annotated[OAuth2PasswordRequestForm, Depends()],
    services: ServicesDep,
    client: ClientDep,
    response: Response,
) -> Token:
    """Exchange username and password for a short-lived key (OAuth2 password grant).

    `scope` narrows it; without it the key may do all that the user may.
    """
    token, lifetime = services.login.log_in(
        form.username, form.password, parse_scopes(form.scopes), client
    )
    response.headers["Cache-Control"] = "no-store"
    return Token(access_token=token, token_type=BEARER, expires_in=lifetime)


@router.post("/register", status_code=201, responses=documented(Forbidden, Conflict))
def register(body: Registration, services: ServicesDep, client: ClientDep) -> User:
    """Make an account for yourself, where the operator has opened registration."""
    if services.settings.registration != "open":
        raise Forbidden("Registration is closed here; ask the operator for an account.")
    password_hash = services.users.hash_password(body.password)
    with services.database.session_scope() as session:
        user = services.users.create(session, body.username, password_hash, client)
        return User.model_validate(user)
