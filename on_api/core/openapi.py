"""A version of the API and its OpenAPI document. Knows how versions differ, not which there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel

from on_api.core.error_handlers import Renderer
from on_api.core.errors import BadRequest, Forbidden, OnApiError, Unauthorized

IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Repeat a request with the same key and it is done once: the same answer comes "
    "again, for 24 hours. 409 `IN_PROGRESS` while it runs, 409 `CONFLICT` for another request.",
    "schema": {"type": "string", "maxLength": 255},
}

REF = "#/components/schemas/{model}"


@dataclass(frozen=True, slots=True)
class ApiVersion:
    """One version: where it is mounted, its routes, how it words errors."""

    prefix: str
    router: APIRouter
    render_error: Renderer
    error_models: tuple[type[BaseModel], ...]
    """The error body's model first, then those it is made of."""
    error_media_type: str
    description: str


def openapi_document(app: FastAPI, version: ApiVersion, release: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of one version."""
    document = get_openapi(
        title="on-api",
        version=release,
        description=version.description,
        routes=[
            route
            for route in iter_route_contexts(app.routes)
            if (route.path or "").startswith(f"{version.prefix}/")
        ],
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for model in version.error_models:
        schemas[model.__name__] = model.model_json_schema(ref_template=REF)
        schemas[model.__name__].pop("$defs", None)
    for path in document["paths"].values():
        for method, operation in path.items():
            _describe_errors(operation, version)
            if method in {"post", "put"} and "security" in operation:
                operation.setdefault("parameters", []).append(IDEMPOTENCY_KEY)
    document["components"]["schemas"] = dict(sorted(schemas.items()))
    return document


def _describe_errors(operation: dict[str, Any], version: ApiVersion) -> None:
    """Give every error the version's body, and every operation the errors that all share."""
    responses = operation["responses"]
    responses.pop("422", None)
    shared: list[type[OnApiError]] = [BadRequest]
    if "security" in operation:
        shared += [Unauthorized, Forbidden]
    for error in shared:
        responses.setdefault(
            str(error.status), {"description": f"`{error.reason}` {error.summary}"}
        )
    reference = REF.format(model=version.error_models[0].__name__)
    for status, response in responses.items():
        if status.isdigit() and int(status) >= 400:
            response["content"] = {version.error_media_type: {"schema": {"$ref": reference}}}
    operation["responses"] = dict(sorted(responses.items()))
