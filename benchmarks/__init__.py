"""How fast on-api is beside the same Kubo, asked directly. `make bench` runs it;
docs/performance.md tells what came of it.

Only ratios taken in one run on one machine count: every figure is taken in pairs, in turn.
"""
