"""Quantisation to eight bits. Its effect on the results is measured by the comparison with the model.

For ONNX Runtime weights are quantised with one scale per channel, activations dynamically: no images are needed.
OpenVINO is faster with static ranges of activations, which are measured on images.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from zsad.backends.backend import Float32
from zsad.backends.graph_card import missing_runtime
from zsad.errors import CheckpointError


def quantize_dynamic(source: Path, target: Path) -> None:
    """Write an ONNX graph whose products with constant matrices run in eight bits.

    Raises:
        ConfigError: the extra `onnx` is not installed.
        CheckpointError: the graph cannot be quantised.
    """
    package = _package()
    with _errors():
        package.quantize_dynamic(
            source,
            target,
            per_channel=True,
            weight_type=package.QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=_excluded_nodes(source),
            extra_options={"MatMulConstBOnly": True},
        )


def quantize_static(source: Path, target: Path, images: Sequence[Float32]) -> None:
    """Quantise for OpenVINO, with ranges of activations measured on images (3, H, W); raises as `quantize_dynamic`."""
    package = _package()
    with _errors():
        package.quantize_static(
            source,
            target,
            _reader(package, images),
            per_channel=True,
            activation_type=package.QuantType.QUInt8,
            weight_type=package.QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=_excluded_nodes(source),
            # Products of two activations (attention) keep their precision.
            extra_options={"MatMulConstBOnly": True, "ActivationSymmetric": False},
        )


def _package() -> Any:
    try:
        import onnx  # noqa: F401 - the quantiser needs it
        from onnxruntime import quantization
    except ImportError as error:
        raise missing_runtime("onnx", "onnxruntime.quantization", error) from error
    return quantization


def _excluded_nodes(source: Path) -> list[str]:
    """Return the products with constants that are not matrices, whose quantised form ONNX Runtime refuses to run."""
    import onnx

    graph = onnx.load(source, load_external_data=False).graph
    axes = {constant.name: len(constant.dims) for constant in graph.initializer}
    return [
        node.name
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm") and axes.get(node.input[1], 2) != 2
    ]


def _reader(package: Any, images: Sequence[Float32]) -> Any:
    class Reader(package.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._images = iter(images)

        def get_next(self) -> dict[str, Float32] | None:
            image = next(self._images, None)
            return None if image is None else {"pixels": np.ascontiguousarray(image[None])}

    return Reader()


@contextmanager
def _errors() -> Iterator[None]:
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # messages meant for developers of the quantiser
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # the quantiser's own kinds of error
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"the graph cannot be brought to eight bits ({reason}); leave out --int8"
        ) from error
    finally:
        logging.disable(disabled)
