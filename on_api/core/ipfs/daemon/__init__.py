"""The node as a process: its program, its repo, starting and stopping it."""
