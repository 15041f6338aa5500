"""OpenVINO as a backend: an exported graph on the processor, in bf16 where the processor has it."""

from __future__ import annotations

from typing import Any

import numpy as np

from zsad.backends.base import Float32, Precision
from zsad.backends.exported import ExportedBackend
from zsad.backends.graph_card import missing_runtime
from zsad.device import describe_software
from zsad.errors import ConfigError

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def import_openvino() -> Any:
    """The package, or a ConfigError that says how to get it."""
    try:
        import openvino
    except ImportError as error:
        raise missing_runtime("openvino", "openvino", error) from error
    return openvino


class OpenVINOBackend(ExportedBackend):
    """A graph in OpenVINO, image by image; it reads ONNX graphs, too."""

    name = "openvino"
    runtime = "OpenVINO"
    _compiled: Any

    def _open(self, precision: Precision) -> str:
        core = import_openvino().Core()
        can = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        wanted = ("bf16" if "BF16" in can else "fp32") if precision == "auto" else precision
        if wanted != "fp32" and wanted.upper() not in can:
            raise ConfigError(f"this processor has no {wanted} arithmetic; use precision fp32 or auto")
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[wanted],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.threads,
        }
        try:
            model = core.read_model(str(self.graph))
            # Shapes that are fixed are faster; and with an open batch some fused sums are wrong beyond one image.
            model.reshape({"pixels": [1, 3, *self.card.image]})
            self._compiled = core.compile_model(model, "CPU", settings)
        except Exception as error:  # the runtime raises bare errors of its own
            raise self._refused(error) from error
        return "int8" if self.card.precision == "int8" else wanted

    def _outputs(self, pixels: Float32) -> dict[str, Float32]:
        rows = [self._one(pixels[index : index + 1]) for index in range(len(pixels))]
        return {name: np.concatenate([row[name] for row in rows]) for name in self.card.outputs}

    def _one(self, pixels: Float32) -> dict[str, Float32]:
        """The outputs for one image (1, 3, H, W), copied: the runtime uses its own memory again."""
        found = self._compiled({"pixels": pixels})
        return {name: np.array(found[name], dtype=np.float32) for name in self.card.outputs}

    def environment(self) -> dict[str, str]:
        """Versions, precision and threads."""
        return describe_software("openvino", hardware=f"cpu ({self.threads} threads, {self.precision})")
