"""The least work that FastAPI and Pydantic can do: one endpoint that answers the same file, without
a key, a database or middleware. It is the counterpart of on-api's answers for metadata."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from fastapi import FastAPI

from on_api.core.schemas.files import StoredFile

CID = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"
MADE_AT = datetime(2026, 1, 1, tzinfo=UTC)

app = FastAPI(openapi_url=None)


@app.get("/v1/files/{file_id}")
async def get_one_file(file_id: uuid.UUID) -> StoredFile:
    """A file that there is not."""
    return StoredFile(
        id=file_id,
        cid=CID,
        source_cid=None,
        name="file",
        size=8192,
        media_type="application/octet-stream",
        sha256="00" * 32,
        visibility="public",
        meta={},
        created_at=MADE_AT,
        gateway_url=f"http://localhost:8080/ipfs/{CID}",
    )
