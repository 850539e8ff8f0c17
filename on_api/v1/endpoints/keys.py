"""API keys."""

from __future__ import annotations

from fastapi import APIRouter, Response

from on_api.core.errors import NotFound
from on_api.core.schemas.keys import Key, KeyCreate, KeyCreated, KeyList
from on_api.core.services.accounts.keys import KeyRequest, get_key, keys_of
from on_api.core.web.dependencies import (
    ClientDep,
    KeyId,
    KeysWrite,
    PageQuery,
    ServicesDep,
    SessionDep,
    act_as,
)
from on_api.core.web.routing import ApiRoute, documented

shared_router = APIRouter(prefix="/keys", tags=["keys"], route_class=ApiRoute)
replaced_router = APIRouter(prefix="/keys", tags=["keys"], route_class=ApiRoute)


@shared_router.post("", status_code=201)
def create_key(
    body: KeyCreate,
    principal: KeysWrite,
    session: SessionDep,
    services: ServicesDep,
    client: ClientDep,
    response: Response,
) -> KeyCreated:
    """Create an API key. Its secret is only shown in this response."""
    request = KeyRequest(
        name=body.name,
        scopes=frozenset(body.scopes),
        expires_at=body.expires_at,
        max_uses=body.max_uses,
        max_bytes=body.max_bytes,
        egress_budget=body.egress_budget,
    )
    key, secret = services.keys.create(session, principal, request, act_as(principal, client))
    response.headers["Cache-Control"] = "no-store"
    return KeyCreated(**Key.model_validate(key).model_dump(), key=secret)


@replaced_router.get("")
def list_my_keys(principal: KeysWrite, session: SessionDep, page: PageQuery) -> KeyList:
    """List your valid keys, newest first."""
    count, keys = keys_of(principal.user_id).by_time(session, page)
    return KeyList(count=count, items=[Key.model_validate(key) for key in keys])


@shared_router.get("/{key_id}", responses=documented(NotFound))
def get_one_key(key_id: KeyId, principal: KeysWrite, session: SessionDep) -> Key:
    """Get one of your keys."""
    return Key.model_validate(get_key(session, principal.user_id, key_id))


@shared_router.delete("/{key_id}", status_code=204, responses=documented(NotFound))
def revoke_key(
    key_id: KeyId,
    principal: KeysWrite,
    session: SessionDep,
    services: ServicesDep,
    client: ClientDep,
) -> None:
    """Revoke a key, with immediate effect."""
    services.keys.revoke(session, principal.user_id, key_id, act_as(principal, client))
