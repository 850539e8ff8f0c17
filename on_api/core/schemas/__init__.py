"""What goes over the wire: Pydantic models, `X` for answers, `XCreate`/`XUpdate` for requests. No
rules, no tables."""
