"""The business rules, one package per domain. They take a session and ports, return models and
raise `OnApiError`.

They may `flush()` but never `commit()`: a transaction is committed at the edge, by `session_scope`.
"""
