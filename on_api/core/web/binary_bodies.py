"""OpenAPI descriptions of bodies that the endpoints read and write as streams themselves."""

from __future__ import annotations

from typing import Any

_BINARY = {"schema": {"type": "string", "format": "binary"}}


def header(description: str, example: str) -> dict[str, Any]:
    """Return the OpenAPI description of a response header."""
    return {"description": description, "schema": {"type": "string"}, "example": example}


CONTENT_HEADERS = {
    "Accept-Ranges": header("`bytes`: range requests are supported.", "bytes"),
    "Content-Disposition": header("The name of the file.", 'inline; filename="a.txt"'),
    "Content-Length": header("The number of bytes in this response.", "11"),
    "Content-Range": header("For 206: the range that this response contains.", "bytes 0-10/11"),
    "Content-Security-Policy": header(
        "Prevents content from users from running scripts in the origin of on-api.", "sandbox"
    ),
    "ETag": header(
        "Changes whenever the content changes.", '"bafkreifzjut3te2nhyekklss27nh3k72ysco7y32"'
    ),
}
UNCHANGED_HEADERS = {"ETag": CONTENT_HEADERS["ETag"]}
"""Headers of a 304."""
LOCATION = {"Location": header("The URL of the redirect.", "https://gateway.example/ipfs/bafkqaaa")}
"""Headers of a redirect."""

# Client generators know the first; the second says that it may be any other type.
_OF_ITS_OWN = {"application/octet-stream": _BINARY, "*/*": {}}
_OBJECT = {"schema": {"type": "object", "additionalProperties": True}}


def binary_answer(description: str, *media_types: str) -> dict[str, Any]:
    """Return the description of a response of bytes with a file's headers; without `media_types` it
    is of any type."""
    contents = {kind: _OBJECT if kind == "application/json" else _BINARY for kind in media_types}
    return {
        "description": description,
        "headers": CONTENT_HEADERS,
        "content": contents or _OF_ITS_OWN,
    }


UPLOAD_FORM: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                # `file` is not `required`: generated clients send required fields first, and all
                # options but `name` and `meta` must come before the file.
                "description": "The form must contain at least one `file`. Every option can also"
                " be a query"
                " parameter, for clients that send the file first: all options except `name`"
                " and `meta` must precede the file.",
                "properties": {
                    "visibility": {"$ref": "#/components/schemas/Visibility"},
                    # Without an example Swagger would fill in the word "string".
                    "name": {
                        "type": "string",
                        "description": "Name to use instead of the filename of the form part.",
                        "example": "",
                    },
                    "meta": {
                        "type": "string",
                        "description": "Metadata as a JSON object.",
                        "example": "",
                    },
                    "recipients": {
                        "type": "string",
                        "description": "For private files: additional recipients who can decrypt"
                        " the file, as comma-separated `age1…` keys.",
                        "example": "",
                    },
                    "owner_access": {
                        "type": "string",
                        "description": "`false`: encrypt to the `recipients` only.",
                        "example": "",
                    },
                    "file": {
                        "type": "array",
                        "items": {"type": "string", "format": "binary"},
                        "description": "One or more files.",
                    },
                },
            }
        }
    },
}
"""Description of the form of an upload, written by hand since the endpoint reads the stream itself.
The options come first, so that Swagger sends them before the file."""

RAW_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/octet-stream": _BINARY,
    },
}
"""Description of the raw body of an upload."""

CAR_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/vnd.ipld.car": _BINARY,
        "application/octet-stream": _BINARY,  # known to client generators
    },
}
"""Description of the raw body of a CAR."""
