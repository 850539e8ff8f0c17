"""Fixtures of the tests of fast lanes."""

from __future__ import annotations

from on_api.tests.core.conftest import database, stage

__all__ = ["database", "stage"]
