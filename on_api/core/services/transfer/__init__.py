"""Moving in and out: imports from other providers, exports, CAR files."""
