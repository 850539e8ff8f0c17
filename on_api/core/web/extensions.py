"""What a server may offer to the application beyond ASGI, by `scope["extensions"]` (ASGI 3.0,
"Extensions"): each has a fallback where it isn't offered."""

from __future__ import annotations

from typing import Any

from starlette.types import Scope

BODY_BLOCKS = "on_api.body_blocks"
"""A function that makes a `request_bodies.BlockedBody`, given the room where its blocks go."""
WRITE_WHOLE = "on_api.write_whole"
"""A function that writes bytes which were put together before, `write(head, body)`; it returns
whether it did."""
NODE_ANSWER = "on_api.node_answer"
"""What the node has answered to this request already: a `NodeAnswer` or a `NodeError`."""


def extension(scope: Scope, name: str) -> Any:
    """What the server offers under a name; None where it doesn't."""
    return scope.get("extensions", {}).get(name)


def offer(scope: Scope, name: str, what: object) -> None:
    """Offer it to the application."""
    scope.setdefault("extensions", {})[name] = what
