"""Helpers for several domains: events, wake-ups of the worker, pages of lists, requests gathered
into one transaction, renewal of leases, rate limits."""
