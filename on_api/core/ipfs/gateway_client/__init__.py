"""Our HTTP client for the node: one connection a call, small answers without a task."""
