"""Schemas of requests and answers: Pydantic models, `X` for answers, `XCreate`/`XUpdate` for
requests. No rules, no tables."""
