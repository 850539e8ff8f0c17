"""Accounts of those who ask: users, API keys, log-ins, audit entries, idempotency keys, the master
secret."""
