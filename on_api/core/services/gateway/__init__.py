"""The public gateway: what it may serve, and the answers that it caches."""
