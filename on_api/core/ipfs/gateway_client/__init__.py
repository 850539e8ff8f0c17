"""Our HTTP client for the node: one connection per call, kept for later calls; small answers need
no task."""
