"""Our HTTP client for the node: connections are reused, small answers need no task."""
