"""What Schemathesis leaves out, and what it looks at besides. Read by its program, in its own
virtual environment."""

from __future__ import annotations

import os
from typing import Any

import schemathesis
from hypothesis import Phase, settings

OWN = os.environ["USER_ID"]
"""The account that the run speaks with: it learns its id from lists."""
READING = {"GET", "HEAD"}
FRAMING = {"connection", "content-length", "content-type", "date", "server", "transfer-encoding"}
"""Headers that are HTTP's own, or are documented as the media type."""

# Hypothesis' search for requests that are accepted more often fails now and then with an
# `IndexError` of its own (6.170.17), which ends the run.
settings.register_profile("untargeted", phases=(Phase.explicit, Phase.generate))
settings.load_profile("untargeted")


@schemathesis.hook  # type: ignore[untyped-decorator]  # it isn't installed where types are checked
def filter_case(_context: Any, case: Any) -> bool:
    """Leave out what would end the run: to delete or deactivate its account, to take its rights
    away, or to change its password, which ends the login. (The login is in no list of keys.)"""
    ids = (case.path_parameters or {}).values()
    return case.method in READING or OWN not in map(str, ids)


@schemathesis.check  # type: ignore[untyped-decorator]  # it isn't installed where types are checked
def no_undocumented_header(_context: Any, response: Any, case: Any) -> None:
    """Every header of an answer is described with its status."""
    documented = case.operation.responses.find_by_status_code(response.status_code)
    if documented is None:
        return  # another check's business, or a method that isn't there
    known = {name.lower() for name in documented.definition.get("headers", {})} | FRAMING
    unknown = {name.lower() for name in response.headers} - known
    if unknown and case.method.lower() == case.operation.method.lower():
        raise AssertionError(f"not documented for {response.status_code}: {sorted(unknown)}")
