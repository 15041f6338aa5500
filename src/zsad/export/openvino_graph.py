"""Conversion to OpenVINO's format: an .xml with the structure and a .bin with the weights, in full precision."""

from __future__ import annotations

from pathlib import Path

from zsad.backends.openvino import import_openvino
from zsad.errors import CheckpointError


def write_openvino(onnx: Path, path: Path) -> None:
    """Convert an ONNX file to `path`, an .xml, with the weights beside it as .bin.

    Raises:
        ConfigError: the extra `openvino` is not installed.
        CheckpointError: OpenVINO cannot convert the graph.
    """
    openvino = import_openvino()
    try:
        openvino.save_model(openvino.convert_model(str(onnx)), str(path), compress_to_fp16=False)
    except Exception as error:  # the converter has its own kinds of error
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"OpenVINO does not take the recorded graph ({reason}); update it") from error
