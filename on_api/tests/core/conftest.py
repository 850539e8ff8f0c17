"""Fixtures of the tests of core."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from on_api.core.crypto import aead


@pytest.fixture(scope="module", params=["pycryptodome", "cryptography"])
def each_aead(request: pytest.FixtureRequest) -> Iterator[str]:
    """The whole module, once without the extra `fast` and once with it."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "pycryptodome":
            patch.setattr(aead, "chosen", lambda: aead.PycryptodomeAead)
        assert aead.chosen().library == request.param
        yield request.param
