"""Formats of IPFS: CIDs, DAGs, UnixFS, CARs, bundles, multiaddrs, paths."""
