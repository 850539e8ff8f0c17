"""Benchmarks of on-api beside the same Kubo, asked directly. `make bench` runs them;
docs/performance.md reports the results.

Only ratios taken in one run on one machine count, so figures are taken in pairs, in turn.
"""
