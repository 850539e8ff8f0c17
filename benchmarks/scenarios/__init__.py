"""The scenarios: each is a function from a stage to its figures, registered under its name. A new
one is a few lines in one of the modules here."""

from benchmarks.scenarios import floods, gateway, large, lists, pins, small, whole
from benchmarks.scenarios.registry import SCENARIOS, Variant

__all__ = ["SCENARIOS", "Variant", "floods", "gateway", "large", "lists", "pins", "small", "whole"]
