"""Kubo: RPC commands through ipfshttpclient; bytes, pins and frequent queries through our own
clients."""
