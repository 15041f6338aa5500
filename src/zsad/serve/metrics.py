"""Counters, gauges and histograms in Prometheus' text format (version 0.0.4), without its client library."""

from __future__ import annotations

import math
import os
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from pathlib import Path

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

Labels = tuple[str, ...]


class Metric:
    """A family of values, told apart by labels.

    Args:
        kind: "counter", "gauge" or "histogram".
        name: of the family.
        text: one line that says what it is.
        labels: names of its labels.
        buckets: upper borders, rising, of a histogram.
    """

    def __init__(
        self, kind: str, name: str, text: str, labels: Sequence[str] = (), buckets: Sequence[float] = ()
    ) -> None:
        self.kind, self.name, self.text = kind, name, text
        self._names, self._buckets = tuple(labels), tuple(buckets)
        self._values: dict[Labels, float] = {}
        self._counts: dict[Labels, list[int]] = {}
        self._lock = threading.Lock()

    def add(self, *labels: str, amount: float = 1.0) -> None:
        """Counts up; by any amount for a gauge."""
        with self._lock:
            self._values[labels] = self._values.get(labels, 0.0) + amount

    def observe(self, value: float, *labels: str) -> None:
        """Puts a value into a histogram."""
        with self._lock:
            counts = self._counts.setdefault(labels, [0] * (len(self._buckets) + 1))
            counts[bisect_left(self._buckets, value)] += 1
            self._values[labels] = self._values.get(labels, 0.0) + value

    def set(self, value: float, *labels: str) -> None:
        """Sets a gauge."""
        with self._lock:
            self._values[labels] = value

    def value(self, *labels: str) -> float:
        """What a counter or gauge stands at; of a histogram the sum."""
        return self._values.get(labels, 0.0)

    def lines(self) -> list[str]:
        """The family as text."""
        with self._lock:
            values = dict(self._values)
            counts = {labels: list(held) for labels, held in self._counts.items()}
        lines = [f"# HELP {self.name} {_escaped(self.text, quotes=False)}", f"# TYPE {self.name} {self.kind}"]
        for labels, value in values.items():
            pairs = list(zip(self._names, labels, strict=True))
            if self.kind != "histogram":
                lines.append(f"{self.name}{_braces(pairs)} {_number(value)}")
                continue
            total = 0
            for border, count in zip((*self._buckets, math.inf), counts[labels], strict=True):
                total += count
                lines.append(f"{self.name}_bucket{_braces([*pairs, ('le', _number(border))])} {total}")
            lines += [
                f"{self.name}_sum{_braces(pairs)} {_number(value)}",
                f"{self.name}_count{_braces(pairs)} {total}",
            ]
        return lines


class Metrics:
    """All that the service counts."""

    def __init__(self) -> None:
        self.requests = Metric(
            "counter", "zsad_requests_total", "Requests by endpoint and status.", ("endpoint", "status")
        )
        self.latency = Metric(
            "histogram",
            "zsad_request_seconds",
            "From the head of a request to the end of its answer.",
            ("endpoint",),
            SECONDS,
        )
        self.images = Metric(
            "counter", "zsad_images_total", "Images by outcome: a verdict, scored, or why not.", ("outcome",)
        )
        self.scores = Metric(
            "histogram",
            "zsad_score",
            "Image scores: compare with the calibration's to see drift.",
            (),
            tuple(n / 10 for n in range(1, 11)),
        )
        self.passes = Metric("histogram", "zsad_model_seconds", "A pass of the model.", (), SECONDS)
        self.batches = Metric(
            "histogram", "zsad_batch_images", "Images a pass of the model.", (), (1, 2, 4, 8, 16, 32, 64)
        )
        self._families = [
            self.requests,
            self.latency,
            self.images,
            self.scores,
            self.passes,
            self.batches,
        ]
        self._read: list[tuple[Metric, Callable[[], float]]] = []
        self.watch("process_start_time_seconds", "Start of the process, Unix time.", time.time().__float__)
        self.watch("process_cpu_seconds_total", "Processor time.", time.process_time, kind="counter")
        self.watch("process_resident_memory_bytes", "Memory in use.", resident_bytes)

    def watch(self, name: str, text: str, read: Callable[[], float], *, kind: str = "gauge") -> None:
        """A value that is read when asked for."""
        self._read.append((Metric(kind, name, text), read))

    def state(self, name: str, text: str, labels: dict[str, str]) -> None:
        """A fact that is told by labels: a gauge of 1."""
        family = Metric("gauge", name, text, tuple(labels))
        family.set(1.0, *labels.values())
        self._families.append(family)

    def render(self) -> str:
        """All families as text."""
        for family, read in self._read:
            family.set(read())
        families = [*self._families, *(family for family, _ in self._read)]
        return "".join(f"{line}\n" for family in families for line in family.lines())


def resident_bytes() -> float:
    """Memory of this process that is in RAM; NaN where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return float(pages * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, AttributeError, IndexError):
        return math.nan


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else f"{value:.10g}"


def _braces(pairs: Sequence[tuple[str, str]]) -> str:
    inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs)
    return f"{{{inside}}}" if inside else ""


def _escaped(text: str, *, quotes: bool = True) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text
