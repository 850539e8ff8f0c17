"""Streams of bytes: blocks of a bounded pool, and pipelines of steps that run in threads."""
