"""What the service tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.responses import Response

_NAME = "speechtrain_"
_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # s


class Metrics:
    """Counts requests, audio and the model's time.

    Args:
        waiting: returns how many requests wait.
        held: returns how many bytes requests hold.
        streams: returns how many live streams are open.
    """

    def __init__(self, *, waiting: Callable[[], int], held: Callable[[], int], streams: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(f"{_NAME}requests", "Requests by their status", ["status"], registry=self.registry)
        self.latency = Histogram(
            f"{_NAME}latency_seconds", "From a request's last byte to its answer", buckets=_BUCKETS, registry=self.registry
        )
        self.audio = Counter(f"{_NAME}audio_seconds", "Audio that was transcribed", registry=self.registry)
        self.busy = Counter(
            f"{_NAME}model_seconds", "Time that the model worked; over audio_seconds it is the real-time factor", registry=self.registry
        )
        self.batch = Histogram(f"{_NAME}batch_size", "Requests computed together", buckets=(1, 2, 4, 8, 16), registry=self.registry)
        self.lag = Histogram(
            f"{_NAME}stream_lag_seconds", "From a packet of a live stream to its results", buckets=_BUCKETS, registry=self.registry
        )
        Gauge(f"{_NAME}queue_length", "Requests that wait", registry=self.registry).set_function(waiting)
        Gauge(f"{_NAME}held_bytes", "Bodies and decoded audio", registry=self.registry).set_function(held)
        Gauge(f"{_NAME}open_streams", "Live streams", registry=self.registry).set_function(streams)

    def value(self, name: str) -> float:
        """Return the value of a metric by its name without the prefix."""
        return self.registry.get_sample_value(f"{_NAME}{name}") or 0.0

    def page(self) -> Response:
        """Return all metrics in Prometheus' text form."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)
