"""Extensions that a server may offer to the application beyond ASGI, by `scope["extensions"]` (ASGI
3.0, "Extensions"). Each has a fallback if it isn't offered."""

from __future__ import annotations

from typing import Any

from starlette.types import Scope

BODY_BLOCKS = "on_api.body_blocks"
"""Function that returns a `request_bodies.BlockedBody`, given the `Room` of its blocks."""
WRITE_WHOLE = "on_api.write_whole"
"""Function `write(head, body)` that writes a response rendered before; returns whether it did."""
NODE_ANSWER = "on_api.node_answer"
"""The node's answer to this request, if it has come already: a `NodeAnswer` or a `NodeError`."""


def extension(scope: Scope, name: str) -> Any:
    """Return the extension of that name, or None if the server doesn't offer it."""
    return scope.get("extensions", {}).get(name)


def offer(scope: Scope, name: str, what: object) -> None:
    """Offer an extension to the application."""
    scope.setdefault("extensions", {})[name] = what
