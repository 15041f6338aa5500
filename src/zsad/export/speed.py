"""How fast a model runs here, against what this machine's matrix products allow: a claim that anyone can check."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from zsad.errors import ZsadError
from zsad.export.onnx import counted, write_onnx
from zsad.infer.backends.base import Float32, Precision
from zsad.infer.backends.torch import TorchBackend
from zsad.infer.models import Loaded

_SHAPE = (1370, 1024, 4096)
"""Of the products measured: the widest of ViT-L/14@336 for one image of 518 x 518 pixels."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds of one run: by the clock on the wall, and of the processor, of which other work takes nothing."""

    wall: float
    processor: float


@dataclass(frozen=True, slots=True)
class Peak:
    """The best rate of matrix products found, in operations a second, and what reached it.

    Attributes:
        precision: of the products.
        rate: by the wall's clock.
        processor_rate: a second of processor time.
        library: that reached `rate`.
    """

    precision: str
    rate: float
    processor_rate: float
    library: str


@dataclass(frozen=True, slots=True)
class Speed:
    """What a backend takes for an image: the best of some passes."""

    backend: str
    precision: str
    best: Clock


def flops_of(backend: TorchBackend) -> float:
    """Floating-point operations of products and convolutions for an image, constant text left out."""
    method, size = backend.method, backend.method.config.image_size
    pixels = torch.zeros(1, 3, size, size, device=backend.device)
    with torch.no_grad():
        method(method.features(pixels))  # text that no image changes is kept from here on
        return counted(lambda: method(method.features(pixels)))[1]


def peaks(known: Mapping[str, Peak] | None = None, *, seconds: float = 0.4) -> dict[str, Peak]:
    """The machine's best matrix products, in fp32 and in bf16, with the threads that are set.

    Args:
        known: found before; kept where they are better.
        seconds: to spend on each way of multiplying.
    """
    rows, inner, columns = _SHAPE
    left, right = torch.randn(rows, inner), torch.randn(columns, inner)
    arrays = left.numpy(), np.ascontiguousarray(right.numpy().T)
    halves = left.bfloat16(), right.bfloat16()
    ways: list[tuple[str, str, Callable[[], object]]] = [
        ("fp32", "torch", lambda: torch.nn.functional.linear(left, right)),
        ("fp32", "numpy", lambda: arrays[0] @ arrays[1]),
        ("bf16", "torch", lambda: torch.nn.functional.linear(*halves)),
    ]
    best = dict(known or {})
    for precision, library, product in ways:
        clock = _best(product, seconds=seconds, count=1)
        found = [2 * rows * inner * columns / span for span in (clock.wall, clock.processor)]
        old = best.get(precision, Peak(precision, 0.0, 0.0, library))
        name = library if found[0] > old.rate else old.library
        best[precision] = Peak(precision, max(found[0], old.rate), max(found[1], old.processor_rate), name)
    return best


def speeds(
    loaded: Loaded,
    scratch: Path,
    *,
    repeats: int,
    threads: int,
    precisions: Sequence[Precision] = ("fp32", "bf16"),
) -> Iterator[Speed | str]:
    """Yields what each available backend takes for an image, or why one does not run.

    Args:
        loaded: a model in PyTorch, on the processor.
        scratch: an empty folder for graphs.
        repeats: passes, after one to warm up.
        threads: of the runtimes; PyTorch's are the process's own.
        precisions: in which PyTorch is asked.
    """
    model = loaded.backend
    assert isinstance(model, TorchBackend)
    size = model.method.config.image_size
    pixels = np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32)
    for precision in precisions:
        runner = TorchBackend(model.method, precision=precision)
        yield Speed("torch", precision, _best(lambda: runner.run(pixels), count=repeats))  # noqa: B023 - used at once
    if find_spec("onnxruntime") is None:
        yield "onnx, openvino: not installed, get them with: pip install 'zsad[openvino]'"
        return
    yield from _graph_speeds(loaded, model, scratch / "model.onnx", pixels, repeats, threads)


def _graph_speeds(
    loaded: Loaded, model: TorchBackend, graph: Path, pixels: Float32, repeats: int, threads: int
) -> Iterator[Speed | str]:
    from zsad.export.writer import unproven_card
    from zsad.infer.backends.onnx import OnnxBackend
    from zsad.infer.backends.openvino import OpenVINOBackend

    try:
        recorded = write_onnx(model.method, graph)
    except ZsadError as error:
        yield f"onnx, openvino: {error}"
        return
    card = unproven_card(loaded, graph, recorded, name="bench", target="onnx", int8=False, shows=None)
    wanted: list[tuple[type[OnnxBackend | OpenVINOBackend], Precision]] = [(OnnxBackend, "fp32")]
    if find_spec("openvino") is None:
        yield "openvino: not installed, get it with: pip install 'zsad[openvino]'"
    else:
        wanted += [(OpenVINOBackend, "fp32"), (OpenVINOBackend, "bf16")]
    for kind, precision in wanted:
        try:
            runner = kind(graph, card, precision=precision, threads=threads)
        except ZsadError as error:
            yield f"{kind.name} {precision}: {error}"
            continue
        yield Speed(kind.name, precision, _best(lambda: runner.run(pixels), count=repeats))  # noqa: B023 - used at once


def _best(run: Callable[[], object], *, seconds: float = 0.0, count: int) -> Clock:
    """The least seconds of at least `count` runs, and of as many as fit into `seconds`, after one to warm up."""
    run()
    clocks = list[Clock]()
    while len(clocks) < count or sum(clock.wall for clock in clocks) < seconds:
        wall, processor = time.perf_counter(), time.process_time()
        run()
        clocks.append(Clock(time.perf_counter() - wall, max(time.process_time() - processor, 1e-9)))
    return Clock(min(clock.wall for clock in clocks), min(clock.processor for clock in clocks))
