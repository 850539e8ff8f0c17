"""The gateway as the documents describe it: it is no route of the framework."""

from __future__ import annotations

from typing import Any

from on_api.core.binary_bodies import binary_answer


def _parameter(
    place: str, name: str, description: str, example: str, **schema: Any
) -> dict[str, Any]:
    return {
        "name": name,
        "in": place,
        "required": place == "path",
        "description": description,
        "schema": {"type": "string", **schema},
        "example": example,
    }


_CID = _parameter(
    "path",
    "cid",
    "The root: a CID of version 0 or 1, in any base.",
    "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e",
)
_PATH = _parameter("path", "path", "The way below the root.", "photos/a.jpg")
_OPTIONS = (
    _parameter(
        "query",
        "format",
        "`raw`: the block itself; `car`: a CAR; as the trustless gateway says.",
        "raw",
        enum=["raw", "car", "tar", "dag-json", "dag-cbor"],
    ),
    _parameter("query", "filename", "The name under which a browser saves it.", "a.jpg"),
    _parameter("query", "download", "`true`: ask the browser to save it.", "true"),
)

_ERRORS = {
    "403": "`FORBIDDEN` The gateway is closed to this request.",
    "404": "`NOT_FOUND` Not served here.",
    "406": "The node can't give it in the form that was asked for.",
    "410": "`GONE` An administrator has denied it.",
    "412": "`PRECONDITION_FAILED` `only-if-cached`, and it isn't here.",
    "416": "`RANGE_NOT_SATISFIABLE` The range is not in it.",
    "429": "Too many requests, or the budget is used up.",
    "501": "The node doesn't know how to do that.",
    "502": "`NODE_ERROR` The node answered what was not understood.",
    "504": "`NODE_TIMEOUT` The node took too long.",
}


def _operation(method: str, name: str, *path: dict[str, Any]) -> dict[str, Any]:
    return {
        "tags": ["gateway"],
        "operationId": name,
        "summary": "Content by its CID" if method == "get" else "The headers of content by its CID",
        "description": "What the node's own IPFS gateway answers, for content that may be served: "
        "files, directory listings, blocks and CARs, with `Range`, `ETag` and `If-None-Match`.",
        "security": [{}, {"Key": []}],
        "parameters": [*path, *_OPTIONS],
        "responses": {
            "200": binary_answer("The content, by its own media type."),
            "206": binary_answer("The part asked for by `Range`."),
            "301": {"description": "A directory's path ends in a slash."},
            "302": {"description": "To the directory, or to another gateway."},
            "304": {"description": "You have it already (`If-None-Match`)."},
            "307": {"description": "To another gateway: the budget is used up."},
            **{status: {"description": text} for status, text in _ERRORS.items()},
        },
    }


GATEWAY_PATHS = {
    "/ipfs/{cid}": {
        "get": _operation("get", "getIpfs", _CID),
        "head": _operation("head", "headIpfs", _CID),
    },
    "/ipfs/{cid}/{path}": {
        "get": _operation("get", "getIpfsPath", _CID, _PATH),
        "head": _operation("head", "headIpfsPath", _CID, _PATH),
    },
}
