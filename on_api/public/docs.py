"""Swagger UI and the OpenAPI documents. All their files are served from here, none by another
site."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.routing import Route
from starlette.staticfiles import StaticFiles

from on_api.core.services.upkeep.diagnosis import SWAGGER_FOLDER
from on_api.core.web.openapi import ApiVersion, openapi_document
from on_api.public.gateway.document import GATEWAY_PATHS

STATIC_URL = "/docs/static"

# Swagger UI's page sets inline styles and starts itself by an inline script.
_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self' data:; "
    "script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
)


def install_docs(app: FastAPI, versions: Sequence[ApiVersion], release: str) -> None:
    """Add a document and a Swagger UI for each version, and `/docs` for the first version."""
    app.mount(STATIC_URL, StaticFiles(directory=SWAGGER_FOLDER), name="docs-static")
    for version in versions:
        _add_version(app, version, release)
    app.router.routes.append(Route("/docs", _page(versions[0])))


def _add_version(app: FastAPI, version: ApiVersion, release: str) -> None:
    documents: list[JSONResponse] = []

    async def document(_request: Request) -> JSONResponse:
        # Built at the first request and kept: the routes don't change.
        if not documents:
            documents.append(JSONResponse(openapi_document(app, version, release, GATEWAY_PATHS)))
        return documents[0]

    app.router.routes += [
        Route(f"{version.prefix}/openapi.json", document),
        Route(f"{version.prefix}/docs", _page(version)),
    ]


def _page(version: ApiVersion) -> Callable[[Request], Coroutine[Any, Any, HTMLResponse]]:
    async def page(_request: Request) -> HTMLResponse:
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
