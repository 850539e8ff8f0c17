"""What the public gateway may serve, and answers that it keeps in memory."""
