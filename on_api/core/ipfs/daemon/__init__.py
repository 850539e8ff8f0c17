"""The node as a process: its program, its repo, its start and its end."""
