"""Kubo: its RPC by ipfshttpclient for commands, and by our own client for bytes and for pins."""
