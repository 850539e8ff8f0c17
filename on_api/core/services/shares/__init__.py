"""Share links: limits, passwords, revocation."""
