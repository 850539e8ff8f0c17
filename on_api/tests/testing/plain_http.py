"""What httpx is given for addresses that speak no TLS."""

from __future__ import annotations

import ssl

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""It trusts nobody. Without it each client, and each call without one, reads all of the world's
certification authorities: 25 ms of processor time, several times a test."""
