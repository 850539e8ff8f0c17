"""Uploads: bytes from the client to the node, small ones together, recorded when all of them lie
there."""
