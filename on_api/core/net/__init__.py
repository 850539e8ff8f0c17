"""Outbound calls: which addresses may be called, and connections that are checked when made."""
