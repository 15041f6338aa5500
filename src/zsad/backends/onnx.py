"""ONNX Runtime as a backend: an exported graph on the CPU."""

from __future__ import annotations

from typing import Any

from zsad.backends.backend import Float32, Precision
from zsad.backends.exported import ExportedBackend
from zsad.backends.graph_card import missing_runtime
from zsad.device import describe_software
from zsad.errors import ConfigError


class OnnxBackend(ExportedBackend):
    """An exported graph in ONNX Runtime, in the precision in which it was written."""

    name = "onnx"
    runtime = "ONNX Runtime"
    _session: Any

    def _open(self, precision: Precision) -> str:
        if precision not in ("auto", "fp32"):
            raise ConfigError(
                f"backend onnx runs a graph as it was written ({self.card.precision}), not in {precision}; leave the "
                f"precision out, or use backend openvino"
            )
        if self.graph.suffix != ".onnx":
            raise ConfigError(f"{self.graph} is a graph of OpenVINO; use backend openvino, or export to onnx")
        try:
            import onnxruntime
        except ImportError as error:
            raise missing_runtime("onnx", "onnxruntime", error) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 4  # fatal only: errors are raised as exceptions
        try:
            self._session = onnxruntime.InferenceSession(
                str(self.graph), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime's own kinds of error
            raise self._refused(error) from error
        return self.card.precision

    def _outputs(self, pixels: Float32) -> dict[str, Float32]:
        names = self.card.outputs
        return dict(zip(names, self._session.run(list(names), {"pixels": pixels}), strict=True))

    def environment(self) -> dict[str, str]:
        """Return versions and threads."""
        return describe_software("onnxruntime", hardware=f"cpu ({self.threads} threads)")
