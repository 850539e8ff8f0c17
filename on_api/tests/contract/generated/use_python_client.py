"""The client that openapi-python-client makes, in a process of its own."""

from __future__ import annotations

import importlib
import io
import json
import os
import sys
import uuid
from typing import Any

import on_api_client.models as models
from on_api_client import AuthenticatedClient
from on_api_client.types import File

TEXT = b"from openapi-python-client"
api = AuthenticatedClient(base_url=os.environ["BASE"], token=os.environ["KEY"])


def call(resource: str, operation: str, *path: Any, **options: Any) -> Any:
    """The answer to one operation, its status and what was made of its body."""
    module = importlib.import_module(f"on_api_client.api.{resource}.{operation}")
    return module.sync_detailed(*path, client=api, **options)


steps: dict[str, Any] = {}
ids: list[uuid.UUID] = []
for visibility in (models.Visibility.PUBLIC, models.Visibility.PRIVATE):
    form = models.UploadFilesBody(
        visibility=visibility, file=[File(payload=io.BytesIO(TEXT), file_name="of.txt")]
    )
    up = call("files", "upload_files", body=form)
    steps[visibility.value] = [up.status_code, up.parsed.visibility.value, up.parsed.size]
    ids.append(up.parsed.id)
first, secret = ids
listed = call("files", "list_my_files", limit=2, name="of.txt").parsed
steps["list"] = [str(file.id) for file in listed.items]
meta = models.FileUpdateMeta.from_dict({"a": "b"})
changed = call("files", "change_one_file", first, body=models.FileUpdate(meta=meta))
steps["patch"] = [changed.status_code, changed.parsed.name, changed.parsed.meta.to_dict()]
cid = changed.parsed.cid
pinned = call("pins", "add_pin", body=models.Pin(cid=cid, name="of"))
steps["pin"] = [pinned.status_code, pinned.parsed.pin.name]
wanted = [models.GetPinsStatusItem(word) for word in ("pinned", "queued", "pinning")]
pins = call("pins", "get_pins", status=wanted, cid=[cid]).parsed
steps["pins"] = [pin.requestid == pinned.parsed.requestid for pin in pins.results]
content = call("files", "get_content", secret)
steps["content"] = content.parsed.payload.read().decode()
steps["delete"] = call("files", "delete_one_file", first).status_code
missing = call("files", "get_one_file", first)
steps["missing"] = [missing.status_code, type(missing.parsed).__name__ in {"Failure", "Problem"}]
sys.stdout.write(json.dumps(steps))
