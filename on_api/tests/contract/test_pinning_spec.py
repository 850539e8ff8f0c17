"""`/pins` of every version is the IPFS Pinning Service API 1.0.0, compared operation by operation.

The YAML beside this file is the specification's own, unchanged (github.com/ipfs/pinning-services-
api-spec, v1.0.0). What a reader of the documents sees must be the same: names, types, limits,
statuses. Words of descriptions are ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from on_api.cli.openapi import documents

SPECIFICATION = Path(__file__).with_name("ipfs-pinning-service-v1.0.0.yaml")

_WORDS = {"description", "title", "summary", "example", "examples"}
_SAYS_NOTHING = [("minItems", 0), ("minProperties", 0)]

# What we say beyond the specification, each allowed by it.
OUR_HEADERS = {("header", "Idempotency-Key")}
OUR_STATUSES = {"403", "408", "413", "415", "429", "500", "503"}
"""Of its `4XX` and `5XX`."""
ALWAYS_SENT = {"details"}
"""Optional in its `Failure`; ours always has it."""

Document = dict[str, Any]


def operations(document: Document, prefix: str) -> Iterator[tuple[str, Document, list[Document]]]:
    """Name, body and all parameters of each operation on pins."""
    for path, methods in document["paths"].items():
        if not path.startswith(f"{prefix}/pins"):
            continue
        shared = methods.get("parameters", [])
        for method, operation in methods.items():
            if method != "parameters":
                name = f"{method.upper()} {path.removeprefix(prefix)}"
                yield name, operation, [*shared, *operation.get("parameters", [])]


def resolved(document: Document, node: Any) -> Any:
    """What a `$ref` refers to."""
    while isinstance(node, dict) and "$ref" in node:
        target: Any = document
        for step in node["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        node = target
    return node


def schema_of(document: Document, schema: Any) -> Any:
    """A schema without references and words, its lists in order."""
    schema = resolved(document, schema)
    plain = {
        key: value
        for key, value in schema.items()
        if key not in _WORDS and (key, value) not in _SAYS_NOTHING
    }
    for key in ("items", "additionalProperties"):
        if isinstance(plain.get(key), dict):
            plain[key] = schema_of(document, plain[key])
    if "properties" in plain:
        plain["properties"] = {
            name: schema_of(document, field) for name, field in plain["properties"].items()
        }
    for key in ("required", "enum"):
        if key in plain:
            plain[key] = sorted(set(plain[key]) - ALWAYS_SENT)
    values = plain.get("additionalProperties")
    if isinstance(values, dict) and values.get("type") == "string":
        # Written one level too deep in the specification: a text has no properties.
        limit = values.pop("maxProperties", None)
        if limit is not None:
            plain["maxProperties"] = limit
    return plain


def content_of(document: Document, node: Document) -> Document:
    """Schemas by media type."""
    return {
        media_type: schema_of(document, body["schema"])
        for media_type, body in node.get("content", {}).items()
    }


def parameters_of(document: Document, given: list[Document]) -> Document:
    """Everything that a client must know of each parameter, defaults written out."""
    found = {}
    for reference in given:
        parameter = resolved(document, reference)
        place, name = parameter["in"], parameter["name"]
        if (place, name) in OUR_HEADERS:
            continue
        style = parameter.get("style", "simple" if place == "path" else "form")
        found[f"{name} in {place}"] = {
            "required": parameter.get("required", False),
            "style": style,
            "explode": parameter.get("explode", style == "form"),
            "schema": schema_of(document, parameter.get("schema", {})),
            "content": content_of(document, parameter),
        }
    return found


def contract_of(document: Document, prefix: str = "") -> dict[str, Document]:
    """What the document promises about pins, in a form that can be compared."""
    contract: dict[str, Document] = {}
    for name, operation, parameters in operations(document, prefix):
        body = operation.get("requestBody", {})
        contract[name] = {
            "id": operation["operationId"],
            "parameters": parameters_of(document, parameters),
            "body": {"required": body.get("required", False), **content_of(document, body)},
            "responses": {
                status: content_of(document, resolved(document, response))
                for status, response in operation["responses"].items()
                if status not in OUR_STATUSES
            },
        }
    return contract


def specification() -> dict[str, Document]:
    """The contract as the specification has it."""
    return contract_of(yaml.safe_load(SPECIFICATION.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", documents())
@pytest.mark.parametrize("operation", specification())
def test_an_operation_is_the_specifications(name: str, operation: str) -> None:
    """Ids, parameters, bodies, statuses, errors."""
    document = json.loads(documents()[name])
    assert (
        contract_of(document, f"/{name.partition('.')[0]}")[operation]
        == (specification()[operation])
    )


@pytest.mark.parametrize("name", documents())
def test_there_are_no_other_operations(name: str) -> None:
    """Five, and nothing of our own among them."""
    document = json.loads(documents()[name])
    ours = contract_of(document, f"/{name.partition('.')[0]}")
    assert set(ours) == set(specification())
    assert len(ours) == 5


@pytest.mark.parametrize("name", documents())
def test_a_bearer_token_opens_them(name: str) -> None:
    """Among the ways of each operation is the specification's one."""
    document = json.loads(documents()[name])
    schemes = document["components"]["securitySchemes"]
    bearers = {key for key, s in schemes.items() if s.get("scheme") == "bearer"}
    for _, operation, _ in operations(document, f"/{name.partition('.')[0]}"):
        assert any(set(way) <= bearers for way in operation["security"])
