"""The scenarios: each a function from a stage to its figures, registered under its name. A new one
is a few lines in one of the modules here."""

from benchmarks.scenarios import gateway, large, lists, pins, small, whole
from benchmarks.scenarios.registry import SCENARIOS, Variant

__all__ = ["SCENARIOS", "Variant", "gateway", "large", "lists", "pins", "small", "whole"]
