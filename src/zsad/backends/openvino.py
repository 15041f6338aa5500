"""OpenVINO as a backend: an exported graph on the CPU, in bf16 if the CPU supports it."""

from __future__ import annotations

from typing import Any

import numpy as np

from zsad.backends.backend import Float32, Precision
from zsad.backends.exported import ExportedBackend
from zsad.backends.graph_card import missing_runtime
from zsad.device import describe_software
from zsad.errors import ConfigError

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def import_openvino() -> Any:
    """Import the package; ConfigError with the install command if that fails."""
    try:
        import openvino
    except ImportError as error:
        raise missing_runtime("openvino", "openvino", error) from error
    return openvino


class OpenVINOBackend(ExportedBackend):
    """An exported graph in OpenVINO, which runs image by image; it also reads ONNX graphs."""

    name = "openvino"
    runtime = "OpenVINO"
    _compiled: Any

    def _open(self, precision: Precision) -> str:
        core = import_openvino().Core()
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "auto":
            precision = "bf16" if "BF16" in capabilities else "fp32"
        if precision != "fp32" and precision.upper() not in capabilities:
            raise ConfigError(f"this processor has no {precision} arithmetic; use precision fp32 or auto")
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.threads,
        }
        try:
            model = core.read_model(str(self.graph))
            # Fixed shapes are faster; and with a dynamic batch some fused sums are wrong for more than one image.
            model.reshape({"pixels": [1, 3, *self.card.image]})
            self._compiled = core.compile_model(model, "CPU", settings)
        except Exception as error:  # the runtime's own kinds of error
            raise self._refused(error) from error
        return "int8" if self.card.precision == "int8" else precision

    def _outputs(self, pixels: Float32) -> dict[str, Float32]:
        rows = [self._one(pixels[index : index + 1]) for index in range(len(pixels))]
        return {name: np.concatenate([row[name] for row in rows]) for name in self.card.outputs}

    def _one(self, pixels: Float32) -> dict[str, Float32]:
        """Return copies of the outputs for one image (1, 3, H, W), since the runtime reuses its buffers."""
        outputs = self._compiled({"pixels": pixels})
        return {name: np.array(outputs[name], dtype=np.float32) for name in self.card.outputs}

    def environment(self) -> dict[str, str]:
        """Return versions, precision and threads."""
        return describe_software("openvino", hardware=f"cpu ({self.threads} threads, {self.precision})")
