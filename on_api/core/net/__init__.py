"""Outbound calls: the addresses that may be called, and connections that are checked when they are
made."""
