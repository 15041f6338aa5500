"""Prometheus metrics of the service."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Counters, gauges and histograms of one service, in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # of the whole process
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "zsad_requests_total",
            "Requests by endpoint and status.",
            ("endpoint", "status"),
            registry=self.registry,
        )
        self.latency = Histogram(
            "zsad_request_seconds",
            "From the head of a request to the end of its answer.",
            ("endpoint",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.images = Counter(
            "zsad_images_total",
            "Images by outcome: a verdict, scored, or why not.",
            ("outcome",),
            registry=self.registry,
        )
        self.scores = Histogram(
            "zsad_score",
            "Image scores: compare with the calibration's to see drift.",
            buckets=[n / 10 for n in range(1, 11)],
            registry=self.registry,
        )
        self.passes = Histogram(
            "zsad_model_seconds", "A pass of the model.", buckets=_SECONDS, registry=self.registry
        )
        self.batches = Histogram(
            "zsad_batch_images",
            "Images a pass of the model.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.registry.register(_ProcessCollector())

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a gauge whose value is read when metrics are asked for."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def describe_model(self, **labels: str) -> None:
        """Add the model as labels of a gauge that is 1."""
        Info("zsad_model", "The model that is served.", registry=self.registry).info(labels)

    def render(self) -> str:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry).decode()


class _ProcessCollector(Collector):
    """Start, processor time and memory of the process, also where there is no /proc."""

    def __init__(self) -> None:
        self._start = time.time()

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Yield the families."""
        yield GaugeMetricFamily(
            "process_start_time_seconds", "Start of the process, Unix time.", value=self._start
        )
        yield CounterMetricFamily("process_cpu_seconds_total", "Processor time.", value=time.process_time())
        yield GaugeMetricFamily("process_resident_memory_bytes", "Memory in use.", value=_resident_bytes())


def _resident_bytes() -> float:
    """Return the memory of this process that is in RAM; NaN where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return float(pages * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, AttributeError, IndexError):
        return math.nan
