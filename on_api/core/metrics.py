"""Prometheus metrics of one process: counters and gauges, each with its unit in its name.

Labels are few and bounded: routes, methods, statuses, never names or ids of users' objects.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600)


class Metrics:
    """The metrics of one process, in a registry of their own."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "on_api_requests",
            "Requests answered.",
            ["method", "route", "status"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "on_api_request_seconds",
            "From a request's first byte to its answer's last.",
            ["method", "route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight = 0
        """Number of requests in flight; a plain number, since each request changes it twice."""
        self.watch("on_api_requests_in_flight", "Requests under way.", lambda: self.in_flight)
        self.refused = Counter(
            "on_api_requests_refused",
            "Requests refused because too many were under way.",
            registry=registry,
        )
        self.sent_bytes = Counter(
            "on_api_sent_bytes", "Bytes of answers' bodies.", ["route"], registry=registry
        )
        self.uploads = Counter("on_api_uploads", "Uploads ended.", ["outcome"], registry=registry)
        self.uploaded_bytes = Counter(
            "on_api_uploaded_bytes", "Bytes of files stored.", registry=registry
        )
        self.bundles = Counter(
            "on_api_bundles", "Bundles of small files stored under one pin.", registry=registry
        )
        self.bundled_files = Counter(
            "on_api_bundled_files", "Small files stored in bundles.", registry=registry
        )
        self.node_calls = Counter(
            "on_api_node_calls", "Calls to the IPFS node.", ["call", "outcome"], registry=registry
        )
        self.node_seconds = Histogram(
            "on_api_node_call_seconds",
            "Time of a call to the IPFS node.",
            ["call"],
            buckets=_SECONDS,
            registry=registry,
        )

        self.egress_bytes = Counter(
            "on_api_egress_bytes",
            "Bytes of users' content sent, by way; written every few seconds.",
            ["kind"],
            registry=registry,
        )
        self.ingress_bytes = Counter(
            "on_api_ingress_bytes", "Bytes of files received.", ["kind"], registry=registry
        )
        self.traffic_requests = Counter(
            "on_api_traffic_requests",
            "Requests for users' content, by way.",
            ["kind"],
            registry=registry,
        )
        self.egress_refused = Counter(
            "on_api_egress_refused",
            "Answers refused or cut for a budget: an owner's, a key's, the instance's.",
            ["account"],
            registry=registry,
        )
        self.rate_limited = Counter(
            "on_api_rate_limited",
            "Requests refused by a limit: an address's, a key's, of connections.",
            ["limit"],
            registry=registry,
        )
        self.pins_ended = Counter(
            "on_api_pins_ended",
            "Pins that the worker has given an end.",
            ["outcome"],
            registry=registry,
        )
        self.fetches = Gauge(
            "on_api_fetches_under_way", "Pins being fetched from other nodes.", registry=registry
        )
        self.queue_length = Gauge(
            "on_api_pins_queued", "Pins waiting or being worked on.", registry=registry
        )
        self.import_items = Counter(
            "on_api_import_items_ended",
            "Items of imports that were given an end: done, skipped (here before), failed.",
            ["outcome"],
            registry=registry,
        )
        self.unpinned = Counter(
            "on_api_contents_unpinned", "Contents unpinned that nobody held.", registry=registry
        )
        self.collections = Counter(
            "on_api_garbage_collections",
            "Garbage collections: collected, postponed, unsafe, failed.",
            ["outcome"],
            registry=registry,
        )
        self.freed_bytes = Counter(
            "on_api_garbage_freed_bytes", "Bytes freed on the node.", registry=registry
        )
        self.collection_seconds = Histogram(
            "on_api_garbage_collection_seconds",
            "Time of a collection, waiting included.",
            buckets=_SECONDS,
            registry=registry,
        )

    def watch(self, name: str, what: str, ask: Callable[[], float]) -> None:
        """Add a gauge whose value is computed by `ask` at each scrape."""
        Gauge(name, what, registry=self._registry).set_function(ask)

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
