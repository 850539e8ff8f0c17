"""Swagger UI and the OpenAPI documents, served whole from here: nothing comes from anywhere
else."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.staticfiles import StaticFiles

from on_api.core.services.upkeep.diagnosis import SWAGGER_FOLDER
from on_api.core.web.head_requests import HeadRoute
from on_api.core.web.openapi import ApiVersion, openapi_document
from on_api.public.gateway.document import GATEWAY_PATHS

STATIC_URL = "/docs/static"

# Swagger UI's own page sets styles and starts itself by an inline script.
_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self' data:; "
    "script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
)


def install_docs(app: FastAPI, versions: Sequence[ApiVersion], release: str) -> None:
    """Add a document and a Swagger UI for each version, and `/docs` for the first."""
    app.mount(STATIC_URL, StaticFiles(directory=SWAGGER_FOLDER), name="docs-static")
    router = APIRouter(include_in_schema=False, route_class=HeadRoute)
    for version in versions:
        _add_version(app, router, version, release)
    router.add_api_route("/docs", _page(versions[0]), methods=["GET"])
    app.router.routes.extend(router.routes)


def _add_version(app: FastAPI, router: APIRouter, version: ApiVersion, release: str) -> None:
    documents: list[JSONResponse] = []

    async def document() -> JSONResponse:
        # Made at the first call and kept: the routes don't change.
        if not documents:
            documents.append(JSONResponse(openapi_document(app, version, release, GATEWAY_PATHS)))
        return documents[0]

    router.add_api_route(f"{version.prefix}/openapi.json", document, methods=["GET"])
    router.add_api_route(f"{version.prefix}/docs", _page(version), methods=["GET"])


def _page(version: ApiVersion) -> Callable[[], Coroutine[Any, Any, HTMLResponse]]:
    async def page() -> HTMLResponse:
        response = get_swagger_ui_html(
            openapi_url=f"{version.prefix}/openapi.json",
            title=f"on-api {version.prefix[1:]}",
            swagger_js_url=f"{STATIC_URL}/swagger-ui-bundle.js",
            swagger_css_url=f"{STATIC_URL}/swagger-ui.css",
            swagger_favicon_url="data:,",
            swagger_ui_parameters={"persistAuthorization": True, "displayRequestDuration": True},
        )
        response.headers["Content-Security-Policy"] = _POLICY
        return response

    return page
