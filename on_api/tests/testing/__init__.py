"""Test kit: servers, their surroundings, and helpers that hold or count work."""
