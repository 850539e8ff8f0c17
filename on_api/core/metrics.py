"""Prometheus metrics of one process: counters and gauges, each with its unit in its name.

Labels are few and bounded: routes, methods, statuses, never names or ids of users' objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST
# Else each counter has a twin `_created`, a third of all series, which nothing here reads. The
# library has one switch for the process, and on-api is all that the process measures.
disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client gives it no types

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600)


class Metrics:
    """The metrics of one process, in a registry of their own; on Linux also its processor time,
    memory, open files and start."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "on_api_requests",
            "Requests answered.",
            ["method", "route", "status"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "on_api_request_seconds",
            "Duration of a request, from its first byte to the last byte of its response.",
            ["method", "route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight = 0
        """Number of requests in flight; a plain number, since each request changes it twice."""
        self.watch("on_api_requests_in_flight", "Requests in progress.", lambda: self.in_flight)
        self.refused = Counter(
            "on_api_requests_refused",
            "Requests refused because too many were in progress.",
            registry=registry,
        )
        self.sent_bytes = Counter(
            "on_api_sent_bytes", "Bytes of response bodies.", ["route"], registry=registry
        )
        self.uploads = Counter(
            "on_api_uploads", "Uploads finished.", ["outcome"], registry=registry
        )
        self.uploaded_bytes = Counter(
            "on_api_uploaded_bytes", "Bytes of files stored.", registry=registry
        )
        self.bundles = Counter(
            "on_api_bundles", "Bundles of small files stored under one pin.", registry=registry
        )
        self.bundled_files = Counter(
            "on_api_bundled_files", "Small files stored as part of bundles.", registry=registry
        )
        self.node_calls = Counter(
            "on_api_node_calls", "Calls to the IPFS node.", ["call", "outcome"], registry=registry
        )
        self.node_seconds = Histogram(
            "on_api_node_call_seconds",
            "Duration of a call to the IPFS node.",
            ["call"],
            buckets=_SECONDS,
            registry=registry,
        )

        self.egress_bytes = Counter(
            "on_api_egress_bytes",
            "Bytes of users' content sent, by route; updated every few seconds.",
            ["kind"],
            registry=registry,
        )
        self.ingress_bytes = Counter(
            "on_api_ingress_bytes", "Bytes of files received.", ["kind"], registry=registry
        )
        self.traffic_requests = Counter(
            "on_api_traffic_requests",
            "Requests for users' content, by route.",
            ["kind"],
            registry=registry,
        )
        self.egress_refused = Counter(
            "on_api_egress_refused",
            "Responses refused or cut off because of a budget: an owner's, a key's or the"
            " instance's.",
            ["account"],
            registry=registry,
        )
        self.rate_limited = Counter(
            "on_api_rate_limited",
            "Requests refused because of a limit: by address, by key, or for connections.",
            ["limit"],
            registry=registry,
        )
        self.pins_ended = Counter(
            "on_api_pins_ended",
            "Pins that the worker has finished.",
            ["outcome"],
            registry=registry,
        )
        self.fetches = Gauge(
            "on_api_fetches_under_way", "Pins being fetched from other nodes.", registry=registry
        )
        self.import_items = Counter(
            "on_api_import_items_ended",
            "Items of imports finished: done, skipped (already stored) or failed.",
            ["outcome"],
            registry=registry,
        )
        self.unpinned = Counter(
            "on_api_contents_unpinned", "Unreferenced contents unpinned.", registry=registry
        )
        self.collections = Counter(
            "on_api_garbage_collections",
            "Runs of garbage collection: collected, postponed, unsafe, failed.",
            ["outcome"],
            registry=registry,
        )
        self.freed_bytes = Counter(
            "on_api_garbage_freed_bytes",
            "Bytes freed on the node by garbage collection.",
            registry=registry,
        )
        self.collection_seconds = Histogram(
            "on_api_garbage_collection_seconds",
            "Duration of a garbage collection, including the wait for uploads.",
            buckets=_SECONDS,
            registry=registry,
        )

    def watch(self, name: str, what: str, ask: Callable[[], float]) -> None:
        """Add a gauge whose value is computed by `ask` at each scrape."""
        Gauge(name, what, registry=self._registry).set_function(ask)

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


def gauge(name: str, what: str, value: float | None) -> Metric:
    """Return a gauge that was read elsewhere; without a sample if `value` is None."""
    found = GaugeMetricFamily(name, what)
    if value is not None:
        found.add_metric([], value)
    return found


def gauges(name: str, what: str, label: str, values: Mapping[str, float]) -> Metric:
    """Return a gauge with a sample for each value of one label."""
    found = GaugeMetricFamily(name, what, labels=[label])
    for of, value in values.items():
        found.add_metric([of], value)
    return found


def as_text(found: Iterable[Metric]) -> bytes:
    """Return metrics in Prometheus' text format."""
    return generate_latest(_Found(found))


class _Found(Collector):
    def __init__(self, found: Iterable[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterable[Metric]:
        return self._found
