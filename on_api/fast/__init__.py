"""Fast lanes: shorter ways to the same answers, for the most frequent requests. Everything works
without them (`ON_API_FAST_LANES=false`), only slower; nothing but `cli` knows of them.

No security bound is here: `on_api.server` bounds what a client may send, and the same services as
on the ordinary way decide what may be answered.
"""
