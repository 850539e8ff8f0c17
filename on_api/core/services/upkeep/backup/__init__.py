"""Backup of a running on-api into a folder, its verification, and its restoration.

A backup is taken in this order: garbage collection is held off, the database is copied, then every
block that the copy's contents need and that the folder lacks. So whatever the copied database names
is in the folder, and what came later is in the next backup.
"""
