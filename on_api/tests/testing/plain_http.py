"""TLS context for httpx, for addresses that speak no TLS."""

from __future__ import annotations

import ssl

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Context that trusts no certificate. Without it each client, and each call without a client, loads
all certification authorities: 25 ms of processor time, several times a test."""
