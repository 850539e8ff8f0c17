"""Transfer: imports from other providers, exports, CAR files."""
