"""A version of the API and its OpenAPI document. Knows how versions differ, not which there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts

from on_api.core.error_handlers import ErrorFormat
from on_api.core.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    InProgress,
    OnApiError,
    Unauthorized,
    UnsupportedMediaType,
)

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
    errors: ErrorFormat
    description: str
    foreign_errors: Mapping[str, ErrorFormat] = field(default_factory=dict)
    """Of resources (by path below the prefix) whose contract is somebody else's."""

    def error_formats(self) -> dict[str, ErrorFormat]:
        """By prefix of the path."""
        foreign = {self.prefix + path: wording for path, wording in self.foreign_errors.items()}
        return {self.prefix: self.errors, **foreign}

    def errors_of(self, path: str) -> ErrorFormat:
        """How errors of one path are worded."""
        formats = self.error_formats()
        return formats[max((prefix for prefix in formats if path.startswith(prefix)), key=len)]


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
    for model in (model for form in version.error_formats().values() for model in form.models):
        schemas[model.__name__] = model.model_json_schema(ref_template=REF)
        schemas[model.__name__].pop("$defs", None)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if method in {"post", "put"} and "security" in operation:
                operation.setdefault("parameters", []).append(IDEMPOTENCY_KEY)
                _add(operation["responses"], Conflict, InProgress)
            _describe_errors(operation, version.errors_of(path))
    document["components"]["schemas"] = dict(sorted(schemas.items()))
    return document


def _add(responses: dict[str, Any], *errors: type[OnApiError]) -> None:
    """Add errors to those that an operation tells of already."""
    for error in errors:
        text, status = f"`{error.reason}` {error.summary}", str(error.status)
        there = responses.get(status)
        if there is None:
            responses[status] = {"description": text}
        elif f"`{error.reason}`" not in there["description"]:
            responses[status] = {**there, "description": f"{there['description']} · {text}"}


def _describe_errors(operation: dict[str, Any], form: ErrorFormat) -> None:
    """Give every error the version's body, and every operation the errors that all share."""
    responses = operation["responses"]
    responses.pop("422", None)
    shared: list[type[OnApiError]] = [BadRequest]
    if "security" in operation:
        shared += [Unauthorized, Forbidden]
    if "requestBody" in operation:
        shared.append(UnsupportedMediaType)
    for error in shared:
        responses.setdefault(
            str(error.status), {"description": f"`{error.reason}` {error.summary}"}
        )
    reference = REF.format(model=form.models[0].__name__)
    for status, response in responses.items():
        if status[0] in "45":
            response["content"] = {form.media_type: {"schema": {"$ref": reference}}}
    operation["responses"] = dict(sorted(responses.items()))
