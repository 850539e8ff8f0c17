"""`on-api openapi`: writes the OpenAPI documents to files."""

from __future__ import annotations

import json
from importlib.metadata import version as release_of
from pathlib import Path
from typing import Annotated

import typer


def openapi(
    folder: Annotated[Path, typer.Argument(help="Folder for v1.json and v2.json.")] = Path(
        "openapi"
    ),
) -> None:
    """Write the OpenAPI document of every version. Neither a database nor a node is needed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in documents().items():
        (folder / name).write_text(text, encoding="utf-8")
        typer.echo(folder / name)


def documents() -> dict[str, str]:
    """Return the text of each document by file name, as committed in the repository."""
    from pydantic import SecretStr

    from on_api.core.settings import Settings
    from on_api.core.web.openapi import openapi_document
    from on_api.main import VERSIONS, create_app
    from on_api.public.gateway.document import GATEWAY_PATHS

    # The documents depend on no setting; the secret is given because nothing starts without one.
    app = create_app(Settings(secret_key=SecretStr("placeholder for the document, never used")))
    return {
        f"{version.prefix[1:]}.json": json.dumps(
            openapi_document(app, version, release_of("on-api"), GATEWAY_PATHS),
            ensure_ascii=False,
            indent=2,
        )
        + "\n"
        for version in VERSIONS
    }
