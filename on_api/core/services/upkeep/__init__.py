"""Upkeep of the installation: garbage collection, fsck, the node, readiness, diagnosis, and the
processes beside this one."""
