"""A method recorded as one ONNX graph: pixels (B, 3, H, W) in, grids, scores, routing and the score's parts out.

The method is run once before it is recorded. Text that no image changes is then kept already (`methods/kept.py`) and
enters the graph as numbers; ONNX Runtime folds what else is constant. Prompts that an image makes stay in the graph,
with the text tower behind them.
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
"""The first with layer norms as one operator; readable by runtimes since 2022."""

INPUT = "pixels"


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a graph gives.

    Attributes:
        grid: shape (L, h, w) of its grids.
        routing: pools of experts.
        terms: parts of the score.
        flops: floating-point operations for an image.
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
    """The whole way from pixels to an output, as a tuple of tensors."""

    def __init__(self, method: Method, shows: str | None) -> None:
        super().__init__()
        self.method = method
        self._words = None if shows is None else (shows,)

    def output(self, pixels: Tensor) -> Output:
        """The method's output."""
        result: Output = self.method.predict(replace(self.method.encode_image(pixels), words=self._words))
        return result

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Grids, scores, routing, terms."""
        output = self.output(pixels)
        return output.logits, output.score, *(output.routing or {}).values(), *(output.terms or {}).values()


def write_onnx(method: Method, path: Path, *, shows: str | None = None) -> Recorded:
    """Records a method into an ONNX file.

    Args:
        method: on the processor, in full precision.
        path: of the file.
        shows: what prompts call the object, for methods that name it; None: an object.

    Raises:
        ConfigError: the method is elsewhere or in half precision, or the extra `onnx` is not installed.
        CheckpointError: the method cannot be recorded.
    """
    weight = next(method.parameters())
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        raise ConfigError(
            f"cannot export a model on {weight.device} in {weight.dtype}; load it with device='cpu'"
        )
    # The recorder leaves all parts in the mode that the whole had before.
    graph, size = _Graph(method, shows).eval(), method.config.image_size
    # One image: nothing in the graph may depend on their number, which is what the proof looks for.
    pixels = torch.zeros(1, 3, size, size)
    with torch.no_grad():
        graph.output(pixels)
        output, flops = counted(lambda: graph.output(pixels))
        layers, height, width = output.logits.shape[1:]
        pools, parts = tuple(output.routing or ()), tuple(output.terms or ())
        recorded = Recorded((layers, height, width), pools, parts, flops)
        raw = path.with_name(path.name + ".raw")
        try:
            _record(graph, pixels, raw, recorded.outputs)
            _fold(raw, path)
        finally:
            raw.unlink(missing_ok=True)
    return recorded


def counted(run: Callable[[], Output]) -> tuple[Output, float]:
    """What `run` gives, and the floating-point operations of its products and convolutions (a multiply-add is two)."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False, custom_mapping=_attention_flops()) as counter:
        output = run()
    return output, float(counter.get_total_flops())


def _attention_flops() -> dict[Any, Any]:
    """The processor's fused attention, which PyTorch's counter does not know in all versions."""
    fused = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)

    def flops(query: Any, key: Any, *others: Any, **settings: Any) -> int:
        batch, heads, asking, width = query
        return int(4 * batch * heads * asking * key[2] * width)

    return {} if fused is None else {fused: flops}


def _record(graph: nn.Module, pixels: Tensor, path: Path, outputs: list[str]) -> None:
    """PyTorch's recorder, which all versions since 2.2 have; newer ones call it by `dynamo=False`."""
    known = inspect.signature(torch.onnx.export).parameters
    own: dict[str, Any] = {"dynamo": False} if "dynamo" in known else {}
    batch = {name: {0: "batch"} for name in (INPUT, *outputs)}
    try:
        with warnings.catch_warnings():
            # Sides and lengths become numbers while recording, as they should; each is remarked upon.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                graph,
                (pixels,),
                str(path),
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=outputs,
                dynamic_axes=batch,
                **own,
            )
    except ImportError as error:
        raise missing_runtime("onnx", "onnx", error) from error
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"the model cannot be recorded as a graph ({reason}); please report it with the model's card"
        ) from error


def _fold(source: Path, target: Path) -> None:
    """Computes once what no pixel changes, with ONNX Runtime's basic rewriting, which adds no operators of its own."""
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
