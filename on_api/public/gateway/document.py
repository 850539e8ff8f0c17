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
    "The root: a CID of version 0 or 1, in any base encoding.",
    "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e",
)
_PATH = _parameter("path", "path", "The path below the root.", "photos/a.jpg")
_OPTIONS = (
    _parameter(
        "query",
        "format",
        "`raw`: the block itself; `car`: a CAR; see the trustless gateway specification.",
        "raw",
        enum=["raw", "car", "tar", "dag-json", "dag-cbor"],
    ),
    _parameter("query", "filename", "The filename for saving the content in a browser.", "a.jpg"),
    _parameter(
        "query",
        "download",
        "`true`: tell the browser to save the content instead of showing it.",
        "true",
    ),
)

_ERRORS = {
    "400": "`BAD_REQUEST` The path or the requested format is invalid.",
    "401": "`UNAUTHORIZED` The gateway requires a key, or the key is invalid.",
    "403": "`FORBIDDEN` The gateway does not allow this request.",
    "404": "`NOT_FOUND` This gateway does not serve the content.",
    "406": "The node can't provide the content in the requested format.",
    "410": "`GONE` An administrator has put the content on the deny list.",
    "412": "`PRECONDITION_FAILED` The request has `only-if-cached`, and the content is not on the"
    " node.",
    "416": "`RANGE_NOT_SATISFIABLE` The requested range is outside the content.",
    "429": "There were too many requests, or the egress budget is exceeded.",
    "451": "`UNAVAILABLE_FOR_LEGAL_REASONS` An administrator has denied the content for legal"
    " reasons.",
    "500": "`INTERNAL_SERVER_ERROR` An internal error occurred in on-api or in the node.",
    "501": "The node does not support this.",
    "502": "`NODE_ERROR` The node's response could not be parsed.",
    "503": "`SERVICE_UNAVAILABLE` The node or the database can't be reached, or the server is"
    " overloaded.",
    "504": "`NODE_TIMEOUT` The node did not respond in time.",
}


_BESIDE = {
    **{
        f"Access-Control-{name}": header("Allows cross-origin requests from browsers.", example)
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
    "Content-Security-Policy": header(
        "Isolates content from users from the origin of on-api.", "sandbox"
    ),
    "X-Ipfs-Path": header("The requested path.", "/ipfs/bafkqaaa"),
    "X-Ipfs-Roots": header("The CIDs along the path.", "bafkqaaa"),
    "X-Ipfs-DataSize": header("The size of the file in bytes.", "11"),
    "Last-Modified": header(
        "Present if the node knows the modification time.", "Thu, 01 Jan 1970 00:00:01 GMT"
    ),
}
"""Headers that any answer may have."""
_WORDS = {"text/plain": {"schema": {"type": "string"}}}
"""Media type of the gateway's errors: one line of text as from the node, not an object."""
_REDIRECT = {"headers": LOCATION, "content": {"text/html": {"schema": {"type": "string"}}}}


_ANSWERS: dict[str, dict[str, Any]] = {
    "200": binary_answer("The content, with its own media type."),
    "206": binary_answer("The range requested with `Range`."),
    "301": {
        "description": "Redirect to the path of the directory with a trailing slash.",
        **_REDIRECT,
    },
    "302": {
        "description": "Redirect to another gateway, because the egress budget is exceeded.",
        **_REDIRECT,
    },
    "304": {
        "description": "The content has not changed (`If-None-Match`).",
        "headers": UNCHANGED_HEADERS,
    },
    "307": {"description": "Redirect to the normalised path.", **_REDIRECT},
    **{status: {"description": text, "content": _WORDS} for status, text in _ERRORS.items()},
}


def _operation(method: str, name: str, *path: dict[str, Any]) -> dict[str, Any]:
    return {
        "tags": ["gateway"],
        "operationId": name,
        "summary": "Get content by CID" if method == "get" else "Get the headers of content by CID",
        "description": "Returns the response of the node's own IPFS gateway for content that may"
        " be served: files, directory listings, blocks and CARs, with `Range`, `ETag` and"
        " `If-None-Match`.",
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
