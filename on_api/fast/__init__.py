"""Fast lanes: other ways to the same answers, for what is asked most. The house stands without them
(`ON_API_FAST_LANES=false`), only slower; nothing but `cli` knows of them.

No security bound is here: what a client may send is bounded by `on_api.server`, and what may be
answered is decided by the services that the ordinary way asks.
"""
