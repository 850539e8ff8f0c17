"""A version of the API and its OpenAPI document. Knows how versions differ, not which ones
exist."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts

from on_api.core.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    InProgress,
    InternalError,
    OnApiError,
    PayloadTooLarge,
    RateLimited,
    RequestTimeout,
    ServiceUnavailable,
    Unauthorized,
    UnsupportedMediaType,
)
from on_api.core.web.error_handlers import FAILURE, ErrorFormat

IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "If you repeat a request with the same key, it is executed only once, and the"
    " original response is returned again for 24 hours. The response is 409 `IN_PROGRESS` while the"
    " first request is running, and 409 `CONFLICT` if the key was used for a different"
    " request.",
    # No `example` of the parameter: Swagger would send it with every request made there.
    "schema": {
        "type": "string",
        "minLength": 1,
        "maxLength": 255,
        "pattern": "^[!-~]+$",
        "examples": ["5f0c1f3e-monday-report"],
    },
}

TAGS = {
    "auth": "Log in with a password, and register if the operator allows it.",
    "users": "User accounts, their usage and encryption identities, and the export of all their"
    " content.",
    "keys": "API keys with scopes, expiry and limits.",
    "files": "Upload, list, change and download files, public or private.",
    "shares": "Share links to single files, for people without an account.",
    "pins": "The IPFS Pinning Service API 1.0.0.",
    "traffic": "Traffic reports: bytes sent and received, and their cost.",
    "imports": "Import content from other services, with verification.",
    "node": "The IPFS node that on-api uses.",
    "audit": "The audit log: who did what, and when.",
    "gateway": "The public IPFS gateway, which requires no account.",
    "health": "Health checks and metrics for Prometheus.",
}
"""Descriptions of the tags, in the order in which the documents show them."""

_HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-Id": {
        "description": "The ID of the request, which also appears in the server's log.",
        "schema": {"type": "string"},
        "example": "9f86d081884c7d65",
    },
    "X-Content-Type-Options": {
        "description": "`nosniff`: browsers must not guess another media type.",
        "schema": {"type": "string", "enum": ["nosniff"]},
        "example": "nosniff",
    },
    "Cache-Control": {
        "description": "Which caches may store the response, and for how long.",
        "schema": {"type": "string"},
        "example": "private, no-store",
    },
    "Vary": {
        "description": "The request headers that the response depends on.",
        "schema": {"type": "string"},
        "example": "Authorization",
    },
    "Idempotent-Replayed": {
        "description": "`true`: this is the stored response to an earlier request with the same"
        " `Idempotency-Key`.",
        "schema": {"type": "string", "enum": ["true"]},
        "example": "true",
    },
    "Retry-After": {
        "description": "Seconds to wait before retrying the request.",
        "schema": {"type": "integer", "minimum": 0},
        "example": 2,
    },
    "RateLimit": {
        "description": "Where the operator limits requests: of each limit, how many are left (`r`) "
        "and the seconds until all are there again (`t`; with 429, until the next one).",
        "schema": {"type": "string"},
        "example": '"key";r=99;t=1',
    },
    "RateLimit-Policy": {
        "description": "Where the operator limits requests: of each limit, the requests (`q`) in a "
        "window of seconds (`w`).",
        "schema": {"type": "string"},
        "example": '"key";q=100;w=60',
    },
    "WWW-Authenticate": {
        "description": "The authentication scheme to use.",
        "schema": {"type": "string"},
        "example": "Bearer",
    },
}
_RETRIED = {"408", "409", "429", "503", "507"}
"""Status codes that may come with `Retry-After`."""
_VERSIONED = re.compile(r"/v\d+/")
_METHODS = {"get", "head", "post", "put", "patch", "delete"}

KEY_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "description": "A complete API key: `onapi_…`",
}
"""Security scheme for Swagger's *Authorize*: a field for a key, besides the password login."""

REF = "#/components/schemas/{model}"


@dataclass(frozen=True, slots=True)
class ApiVersion:
    """One version: its prefix, its routes, its format of errors."""

    prefix: str
    router: APIRouter
    errors: ErrorFormat
    description: str
    foreign_errors: Mapping[str, ErrorFormat] = field(default_factory=dict)
    """Error formats of resources (by path below the prefix) whose contract is defined elsewhere."""

    def error_formats(self) -> dict[str, ErrorFormat]:
        """Return the error formats by prefix of the path."""
        foreign = {self.prefix + path: wording for path, wording in self.foreign_errors.items()}
        return {self.prefix: self.errors, **foreign}

    def errors_of(self, path: str) -> ErrorFormat:
        """Return the error format of one path."""
        formats = self.error_formats()
        return formats[max((prefix for prefix in formats if path.startswith(prefix)), key=len)]


def openapi_document(
    app: FastAPI, version: ApiVersion, release: str, beside: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of one version, including paths outside of all versions.

    `beside` has the path items of resources that are no routes of the framework.
    """
    document = get_openapi(
        title="on-api",
        version=release,
        description=version.description,
        contact={"name": "The operator of this server"},
        license_info={"name": "MIT", "identifier": "MIT"},
        tags=[{"name": name, "description": about} for name, about in TAGS.items()],
        servers=[{"url": "/", "description": "This server."}],
        routes=[
            route
            for route in iter_route_contexts(app.routes)
            if (route.path or "").startswith(f"{version.prefix}/")
            or not _VERSIONED.match(route.path or "")
        ],
    )
    document["paths"] = _without_patterns(document["paths"]) | deepcopy(dict(beside))
    components = document.setdefault("components", {})
    components["headers"] = dict(_HEADERS)
    components.setdefault("securitySchemes", {})["Key"] = KEY_SCHEME
    schemas = components.setdefault("schemas", {})
    for model in (model for form in version.error_formats().values() for model in form.models):
        schemas[model.__name__] = model.model_json_schema(ref_template=REF)
        schemas[model.__name__].pop("$defs", None)
    for path, method, operation in _operations(document):
        is_ours = path.startswith(f"{version.prefix}/")
        repeats = method in {"post", "put"} and "security" in operation
        if repeats:
            operation.setdefault("parameters", []).append(IDEMPOTENCY_KEY)
        _describe_errors(operation, version.errors_of(path) if is_ours else FAILURE, repeats)
        _describe_headers(operation, repeats, is_ours)
        _offer_key(operation)
        _share_headers(operation, components["headers"])
    for node in _nodes(document):
        _write_whole_numbers(node)
    _rename(document, "Body_log_in_", "LoginForm")
    _rename(document, "Body_download_share_", "ShareForm")
    schemas = components["schemas"]
    used = _used_schemas(document)
    components["schemas"] = {name: schemas[name] for name in sorted(schemas) if name in used}
    return document


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method in _METHODS:
                yield path, method, operation


def _without_patterns(paths: dict[str, Any]) -> dict[str, Any]:
    """Return paths as OpenAPI writes them: `{token}`, not `{token:path}`."""
    return {re.sub(r"{(\w+):\w+}", r"{\1}", path): item for path, item in paths.items()}


def _add(responses: dict[str, Any], *errors: type[OnApiError]) -> None:
    """Add errors to those that an operation documents already."""
    for error in errors:
        text, status = f"`{error.reason}` {error.summary}", str(error.status)
        there = responses.get(status)
        if there is None:
            responses[status] = {"description": text}
        elif f"`{error.reason}`" not in there["description"]:
            responses[status] = {**there, "description": f"{there['description']} · {text}"}


def _describe_errors(operation: dict[str, Any], form: ErrorFormat, repeats: bool) -> None:
    """Give every error the version's body, and every operation the errors that all share."""
    responses = operation["responses"]
    responses.pop("422", None)
    shared: list[type[OnApiError]] = [BadRequest, InternalError, ServiceUnavailable]
    if operation.get("security"):
        shared += [Unauthorized, Forbidden]
    if "requestBody" in operation:
        shared += [PayloadTooLarge, UnsupportedMediaType, RequestTimeout]
    if _may_be_limited(operation):
        if "429" in responses:
            _add(responses, RateLimited)
        else:
            shared.append(RateLimited)
    if repeats:
        _add(responses, Conflict, InProgress)
    own = [
        each["content"] for code, each in responses.items() if code[0] in "45" and "content" in each
    ]
    alike = own[0] if len(own) > 1 and all(each == own[0] for each in own) else None
    for error in shared:
        described = {"description": f"`{error.reason}` {error.summary}"}
        if alike is not None:  # an operation with another error format than its version
            described["content"] = alike
        responses.setdefault(str(error.status), described)
    reference = REF.format(model=form.models[0].__name__)
    for status, response in responses.items():
        if status[0] in "45" and "content" not in response:
            response["content"] = {form.media_type: {"schema": {"$ref": reference}}}
    operation["responses"] = dict(sorted(responses.items()))


def _may_be_limited(operation: dict[str, Any]) -> bool:
    """Return whether the operator may limit an operation's rate by `ON_API_LIMITS__…`: any but
    those for watchers. The gateway has limits and a description of its own."""
    return not {"health", "gateway"} & set(operation["tags"])


def _describe_headers(operation: dict[str, Any], repeats: bool, versioned: bool) -> None:
    """Add the headers that on-api gives to all answers to those that an operation names itself.
    Outside the versions, errors have caching headers as well."""
    for status, response in operation["responses"].items():
        names = ["X-Request-Id", "X-Content-Type-Options"]
        if status[0] in "23" or not versioned:
            names += ["Cache-Control", "Vary"]
        if repeats and status.startswith("2"):
            names.append("Idempotent-Replayed")
        if status in _RETRIED:
            names.append("Retry-After")
        if _may_be_limited(operation) and (status[0] in "23" or status == "429"):
            names += ["RateLimit", "RateLimit-Policy"]
        if status == "401":
            names.append("WWW-Authenticate")
        headers = response.setdefault("headers", {})
        for name in names:
            headers.setdefault(name, {"$ref": f"#/components/headers/{name}"})


def _share_headers(operation: dict[str, Any], shared: dict[str, Any]) -> None:
    """Describe each header once; answers refer to the shared description."""
    for response in operation["responses"].values():
        headers = response["headers"] = dict(response["headers"])
        for name, described in headers.items():
            if "$ref" not in described and shared.setdefault(name, described) == described:
                headers[name] = {"$ref": f"#/components/headers/{name}"}


def _offer_key(operation: dict[str, Any]) -> None:
    """Offer an API key wherever the password login is offered, without scopes, which only OAuth2
    defines. An operation without authentication gets an empty list."""
    needs = operation.setdefault("security", [])
    if any("Password" in need for need in needs):
        needs.append({"Key": []})


def _write_whole_numbers(schema: dict[str, Any]) -> None:
    """Write whole bounds as integers: the framework makes floats of them, which clients read as
    another number for 2^62."""
    for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        bound = schema.get(name)
        if isinstance(bound, float) and bound.is_integer():
            schema[name] = int(bound)


def _rename(document: dict[str, Any], start: str, name: str) -> None:
    """Rename a schema that the framework has named after its function and path."""
    schemas = document["components"]["schemas"]
    found = next((known for known in schemas if known.startswith(start)), None)
    if found is None:
        return
    schemas[name] = schemas.pop(found) | {"title": name}
    for node in _nodes(document):
        if node.get("$ref") == REF.format(model=found):
            node["$ref"] = REF.format(model=name)


def _used_schemas(document: dict[str, Any]) -> set[str]:
    """Return the names of schemas that an operation refers to, directly or through others."""
    schemas = document["components"]["schemas"]
    used: set[str] = set()
    waiting = [document["paths"]]
    while waiting:
        for node in _nodes(waiting.pop()):
            name = str(node.get("$ref", "")).rpartition("/")[2]
            if name in schemas and name not in used:
                used.add(name)
                waiting.append(schemas[name])
    return used


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield every object in a document."""
    if isinstance(tree, dict):
        yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)
