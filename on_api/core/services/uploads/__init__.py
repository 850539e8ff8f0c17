"""Uploads: bytes go from the client to the node, small uploads in bundles, and are recorded when
all of them are stored."""
