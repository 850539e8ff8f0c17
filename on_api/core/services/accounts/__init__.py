"""Accounts of callers: users, API keys, logins, audit entries, idempotency keys, the master
secret."""
