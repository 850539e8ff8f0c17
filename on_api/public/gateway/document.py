"""OpenAPI description of the gateway, which is no route of the framework."""

from __future__ import annotations

from typing import Any

from on_api.core.web.binary_bodies import LOCATION, UNCHANGED_HEADERS, binary_answer, header


def _parameter(
    location: str, name: str, description: str, example: str, **schema: Any
) -> dict[str, Any]:
    return {
        "name": name,
        "in": location,
        "required": location == "path",
        "description": description,
        # No `example` of the parameter: Swagger UI would send it with every request tried out.
        "schema": {"type": "string", **schema, "examples": [example]},
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
    "400": "`BAD_REQUEST` The path or the form asked for is not valid.",
    "401": "`UNAUTHORIZED` The gateway is open to keys alone, or the key is not valid.",
    "403": "`FORBIDDEN` The gateway is closed to this request.",
    "404": "`NOT_FOUND` Not served here.",
    "406": "The node can't give it in the form that was asked for.",
    "410": "`GONE` An administrator has denied it.",
    "412": "`PRECONDITION_FAILED` `only-if-cached`, and it isn't here.",
    "416": "`RANGE_NOT_SATISFIABLE` The range is not in it.",
    "429": "Too many requests, or the budget is used up.",
    "451": "`UNAVAILABLE_FOR_LEGAL_REASONS` An administrator has denied it for legal reasons.",
    "500": "`INTERNAL_SERVER_ERROR` Something went wrong on our side, or the node's.",
    "501": "The node doesn't know how to do that.",
    "502": "`NODE_ERROR` The node answered what was not understood.",
    "503": "`SERVICE_UNAVAILABLE` The node or the database can't be reached, or all is busy.",
    "504": "`NODE_TIMEOUT` The node took too long.",
}


_BESIDE = {
    **{
        f"Access-Control-{name}": header("For browsers' programs from elsewhere.", example)
        for name, example in (
            ("Allow-Headers", "Content-Type, Range"),
            ("Allow-Methods", "GET, HEAD, OPTIONS"),
            ("Allow-Origin", "*"),
            ("Expose-Headers", "Content-Length, Content-Range"),
        )
    },
    **{
        name: {"$ref": f"#/components/headers/{name}"} for name in ("RateLimit", "RateLimit-Policy")
    },
    "Content-Security-Policy": header("Users' bytes get no origin of ours.", "sandbox"),
    "X-Ipfs-Path": header("The path that was asked for.", "/ipfs/bafkqaaa"),
    "X-Ipfs-Roots": header("The CIDs along it.", "bafkqaaa"),
    "X-Ipfs-DataSize": header("Bytes of the file.", "11"),
    "Last-Modified": header("Where the node knows.", "Thu, 01 Jan 1970 00:00:01 GMT"),
}
"""Headers that any answer may have."""
_WORDS = {"text/plain": {"schema": {"type": "string"}}}
"""Media type of the gateway's errors: one line of text as from the node, not an object."""
_REDIRECT = {"headers": LOCATION, "content": {"text/html": {"schema": {"type": "string"}}}}


_ANSWERS: dict[str, dict[str, Any]] = {
    "200": binary_answer("The content, by its own media type."),
    "206": binary_answer("The part asked for by `Range`."),
    "301": {"description": "A directory's path ends in a slash.", **_REDIRECT},
    "302": {"description": "To another gateway: the budget is used up.", **_REDIRECT},
    "304": {"description": "You have it already (`If-None-Match`).", "headers": UNCHANGED_HEADERS},
    "307": {"description": "To the same path, tidied.", **_REDIRECT},
    **{status: {"description": text, "content": _WORDS} for status, text in _ERRORS.items()},
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
            status: {**answer, "headers": {**answer.get("headers", {}), **_BESIDE}}
            for status, answer in _ANSWERS.items()
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
