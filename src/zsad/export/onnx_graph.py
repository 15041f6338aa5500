"""Tracing of a method into one ONNX graph: pixels (B, 3, H, W) in; grids, scores, routing and score terms out.

The method runs once before it is traced, so that text features that no image changes are cached and enter the graph as
constants; ONNX Runtime folds the other constants. Prompts that depend on the image stay in the graph, together with the
text encoder.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zsad.backends.graph_card import missing_runtime
from zsad.errors import CheckpointError, ConfigError
from zsad.methods.base import Method, Output

OPSET = 17
"""The first opset with layer normalisation as one operator; supported by runtimes since 2022."""

INPUT = "pixels"


@dataclass(frozen=True, slots=True)
class TracedGraph:
    """Outputs and cost of a graph.

    Attributes:
        grid: shape (L, h, w) of its grids.
        routing: names of the pools of experts.
        terms: names of the score terms.
        flops: floating-point operations per image.
    """

    grid: tuple[int, int, int]
    routing: tuple[str, ...]
    terms: tuple[str, ...]
    flops: float

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs, in order."""
        return [
            "logits",
            "score",
            *(f"routing.{name}" for name in self.routing),
            *(f"terms.{name}" for name in self.terms),
        ]


class _Graph(nn.Module):
    """A method from pixels to its output as a tuple of tensors, the form that the tracer accepts."""

    def __init__(self, method: Method, object_name: str | None) -> None:
        super().__init__()
        self.method = method
        self._object_names = None if object_name is None else (object_name,)

    def output(self, pixels: Tensor) -> Output:
        """Return the method's output."""
        result: Output = self.method.predict(
            replace(self.method.encode_image(pixels), object_names=self._object_names)
        )
        return result

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return grids, scores, routing and terms."""
        output = self.output(pixels)
        return output.logits, output.score, *(output.routing or {}).values(), *(output.terms or {}).values()


def write_onnx(method: Method, path: Path, *, object_name: str | None = None) -> TracedGraph:
    """Trace a method and write it as an ONNX file.

    Args:
        method: on the CPU, in full precision.
        path: of the file.
        object_name: name of the object, for methods whose prompts contain it; None means "object".

    Raises:
        ConfigError: the method is not on the CPU or not in full precision, or the extra `onnx` is not installed.
        CheckpointError: the method cannot be traced.
    """
    weight = next(method.parameters())
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        raise ConfigError(
            f"cannot export a model on {weight.device} in {weight.dtype}; load it with device='cpu'"
        )
    # The tracer restores the mode that the outer module had, hence eval().
    graph, size = _Graph(method, object_name).eval(), method.config.image_size
    # One image: the comparison with the model uses other batch sizes, which shows if the graph depends on it.
    pixels = torch.zeros(1, 3, size, size)
    with torch.no_grad():
        graph.output(pixels)
        output, flops = count_flops(lambda: graph.output(pixels))
        layers, height, width = output.logits.shape[1:]
        pools, parts = tuple(output.routing or ()), tuple(output.terms or ())
        traced = TracedGraph((layers, height, width), pools, parts, flops)
        raw = path.with_name(path.name + ".raw")
        try:
            _trace(graph, pixels, raw, traced.outputs)
            _fold(raw, path)
        finally:
            raw.unlink(missing_ok=True)
    return traced


def count_flops(run: Callable[[], Output]) -> tuple[Output, float]:
    """Call `run`; return its result and the FLOPs of its matrix products and convolutions (a multiply-add is two)."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False, custom_mapping=_attention_flops()) as counter:
        output = run()
    return output, float(counter.get_total_flops())


def _attention_flops() -> dict[Any, Any]:
    """Return a formula for the fused attention of the CPU, which some versions of PyTorch do not count."""
    fused = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)

    def flops(query: Any, key: Any, *others: Any, **settings: Any) -> int:
        batch, heads, queries, width = query
        return int(4 * batch * heads * queries * key[2] * width)

    return {} if fused is None else {fused: flops}


def _trace(graph: nn.Module, pixels: Tensor, path: Path, outputs: list[str]) -> None:
    """Write a graph with PyTorch's tracing exporter, which newer versions select by `dynamo=False`."""
    known = inspect.signature(torch.onnx.export).parameters
    legacy: dict[str, Any] = {"dynamo": False} if "dynamo" in known else {}
    batch = {name: {0: "batch"} for name in (INPUT, *outputs)}
    try:
        with warnings.catch_warnings():
            # Each shape that becomes a constant, as intended, causes a warning.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                graph,
                (pixels,),
                str(path),
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=outputs,
                dynamic_axes=batch,
                **legacy,
            )
    except ImportError as error:
        raise missing_runtime("onnx", "onnx", error) from error
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"the model cannot be recorded as a graph ({reason}); please report it with the model's card"
        ) from error


def _fold(source: Path, target: Path) -> None:
    """Fold constants with ONNX Runtime's basic optimisations, which add no operators of its own."""
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_runtime("onnx", "onnxruntime", error) from error
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    try:
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own kinds of error
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"ONNX Runtime does not take the recorded graph ({reason}); update it"
        ) from error
