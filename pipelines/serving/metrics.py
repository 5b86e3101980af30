"""What the server tells Prometheus. Each process of the server counts for itself."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_BYTES = tuple(4.0**i for i in range(6, 15))


class Metrics:
    """Counters of one server process."""

    def __init__(self) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter("ghn_requests", "Requests by status", ["status"], registry=self.registry)
        self.seconds = self._histogram("ghn_request_seconds", "From the last byte of a request to its answer", _SECONDS)
        self.predict_seconds = self._histogram(
            "ghn_predict_seconds", "Of the hypernetwork, each architecture", _SECONDS
        )
        self.bytes = self._histogram("ghn_parameters_bytes", "Of predicted files", _BYTES)
        self.stored = Counter("ghn_stored_answers", "Answers that went to the store", registry=self.registry)
        self.busy = Gauge("ghn_requests_in_work", "Requests in work", registry=self.registry)
        self.waiting = Gauge("ghn_requests_waiting", "Requests waiting for their turn", registry=self.registry)
        self.model = Gauge("ghn_model", "The served weights (always 1)", ["weights_sha256"], registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self.registry)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)
