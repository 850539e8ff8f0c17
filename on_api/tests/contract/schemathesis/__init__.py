"""What Schemathesis is told: its settings, and hooks that its own program reads."""
