"""Speed of a model against what this machine's matrix products allow."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from zsad.backends.backend import Float32, Precision
from zsad.backends.torch import TorchBackend
from zsad.errors import ZsadError
from zsad.export.onnx_graph import count_flops, write_onnx
from zsad.predict.view import Model

_SHAPE = (1370, 1024, 4096)
"""Of the products measured: the widest of ViT-L/14@336 for one image of 518 x 518 pixels."""


@dataclass(frozen=True, slots=True)
class Peak:
    """The best rate of matrix products found, in operations a second, and what reached it."""

    precision: str
    rate: float
    library: str


@dataclass(frozen=True, slots=True)
class Speed:
    """The time of a backend for an image.

    Attributes:
        backend: its name.
        precision: of its products.
        seconds: of the best pass.
        beside: the rate of a pass, of that which single products kept up just before and just behind it; the median
            of the passes. Other work and the processor's clock change both alike.
    """

    backend: str
    precision: str
    seconds: float
    beside: float


class Products:
    """A repeated measurement of this machine's matrix products, with the threads that are set.

    Args:
        seconds: that each way of multiplying is run for.

    Attributes:
        best: by precision, "fp32" and "bf16": the best product so far.
    """

    def __init__(self, *, seconds: float = 0.4) -> None:
        rows, inner, columns = _SHAPE
        left, right = torch.randn(rows, inner), torch.randn(columns, inner)
        arrays = left.numpy(), np.ascontiguousarray(right.numpy().T)
        halves = left.bfloat16(), right.bfloat16()
        self._seconds = seconds
        self._ways: dict[tuple[str, str], Callable[[], object]] = {
            ("fp32", "torch"): lambda: torch.nn.functional.linear(left, right),
            ("fp32", "numpy"): lambda: arrays[0] @ arrays[1],
            ("bf16", "torch"): lambda: torch.nn.functional.linear(*halves),
        }
        self.best: dict[str, Peak] = {}
        for precision, library in self._ways:
            self._run(precision, library)

    def rate(self, precision: str) -> float:
        """Return the present rate of the best way of multiplying, in operations a second."""
        return self._run(precision, self.best[precision].library)

    def _run(self, precision: str, library: str) -> float:
        product, work = self._ways[precision, library], 2.0 * math.prod(_SHAPE)
        product()
        spans = list(_timed(product, seconds=self._seconds, count=1))
        fastest, known = work / min(spans), self.best.get(precision)
        if known is None or fastest > known.rate:
            self.best[precision] = Peak(precision, fastest, library)
        return work * len(spans) / sum(spans)


def flops_of(backend: TorchBackend) -> float:
    """Count floating-point operations of products and convolutions for an image, without constant text."""
    method, size = backend.method, backend.method.config.image_size
    pixels = torch.zeros(1, 3, size, size, device=backend.device)
    with torch.no_grad():
        method(method.features(pixels))  # text that no image changes is kept from here on
        return count_flops(lambda: method(method.features(pixels)))[1]


def speeds(
    loaded: Model,
    scratch: Path,
    *,
    products: Products,
    flops: float,
    repeats: int,
    threads: int,
    precisions: Sequence[Precision] = ("fp32", "bf16"),
) -> Iterator[Speed | str]:
    """Yield the speed of each available backend, or why one does not run.

    Args:
        loaded: a model in PyTorch, on the processor.
        scratch: an empty folder for graphs.
        products: measured between the passes.
        flops: of an image.
        repeats: passes, after one to warm up.
        threads: of the runtimes; PyTorch's are the process's own.
        precisions: in which PyTorch is asked.
    """
    model = loaded.backend
    assert isinstance(model, TorchBackend)
    size = model.method.config.image_size
    pixels = np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32)
    stopwatch = _Stopwatch(products, flops, repeats)
    for precision in precisions:
        runner = TorchBackend(model.method, precision=precision)
        yield stopwatch("torch", precision, lambda: runner.run(pixels))  # noqa: B023 - used at once
    if find_spec("onnxruntime") is None:
        yield "onnx, openvino: not installed, get them with: pip install 'zsad[openvino]'"
        return
    yield from _graph_speeds(loaded, model, scratch / "model.onnx", pixels, stopwatch, threads)


def _graph_speeds(
    loaded: Model, model: TorchBackend, graph: Path, pixels: Float32, stopwatch: _Stopwatch, threads: int
) -> Iterator[Speed | str]:
    from zsad.backends.onnx import OnnxBackend
    from zsad.backends.openvino import OpenVINOBackend
    from zsad.export.writer import unproven_card

    try:
        recorded = write_onnx(model.method, graph)
    except ZsadError as error:
        yield f"onnx, openvino: {error}"
        return
    card = unproven_card(model, loaded.card, graph, recorded, name="bench")
    backends: list[tuple[type[OnnxBackend | OpenVINOBackend], Precision]] = [(OnnxBackend, "fp32")]
    if find_spec("openvino") is None:
        yield "openvino: not installed, get it with: pip install 'zsad[openvino]'"
    else:
        backends += [(OpenVINOBackend, "fp32"), (OpenVINOBackend, "bf16")]
    for kind, precision in backends:
        try:
            runner = kind(graph, card, precision=precision, threads=threads)
        except ZsadError as error:
            yield f"{kind.name} {precision}: {error}"
            continue
        yield stopwatch(kind.name, precision, lambda: runner.run(pixels))  # noqa: B023 - used at once


@dataclass(frozen=True, slots=True)
class _Stopwatch:
    """A stopwatch of passes of `flops` operations, `repeats` of each backend, with products between them."""

    products: Products
    flops: float
    repeats: int

    def __call__(self, backend: str, precision: Precision, run: Callable[[], object]) -> Speed:
        run()
        spans, beside = [], [self.products.rate(precision)]
        for span in _timed(run, seconds=0.0, count=self.repeats):
            spans.append(span)
            beside.append(self.products.rate(precision))
        shares = [
            self.flops / span / ((before + behind) / 2)
            for span, (before, behind) in zip(spans, pairwise(beside), strict=True)
        ]
        return Speed(backend, precision, min(spans), statistics.median(shares))


def _timed(run: Callable[[], object], *, seconds: float, count: int) -> Iterator[float]:
    """Yield the seconds of at least `count` runs, and of as many as fit into `seconds`."""
    done, spent = 0, 0.0
    while done < count or spent < seconds:
        start = time.perf_counter()
        run()
        span = time.perf_counter() - start
        done, spent = done + 1, spent + span
        yield span
