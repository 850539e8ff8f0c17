"""Pins: their records, and the rows of the jobs that carry them out."""
