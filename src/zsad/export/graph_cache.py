"""The fastest backend of this machine for `backend="auto"`, with a cache of the graphs exported for it."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path

from zsad.backends.backend import Backend, Precision
from zsad.backends.graph_card import find_graph, read_export
from zsad.backends.torch import TorchBackend
from zsad.card import Card
from zsad.errors import ZsadError

_PROOF_IMAGES = 2  # enough to detect a wrong graph, few enough not to delay loading


def cache_folder() -> Path:
    """Return the folder of cached graphs."""
    return Path.home() / ".cache" / "zsad" / "graphs"


def fastest_backend(
    backend: TorchBackend, card: Card, *, name: str, precision: Precision, threads: int | None
) -> Backend:
    """Return the fastest backend for a model on this machine.

    On a GPU that is `backend` itself; on a CPU it is OpenVINO, in bf16 if the CPU supports it, provided the extras
    `onnx` and `openvino` are installed. The graph is exported on first use. If that fails, a warning is issued and
    `backend` is returned.

    Args:
        backend: the model in PyTorch, with the precision to use there.
        card: of the model.
        name: of the model, for the graph's card.
        precision: arithmetic of OpenVINO.
        threads: CPU threads of OpenVINO; None means one per core.
    """
    # A graph contains the text for one object name, so models whose prompts name the object stay in PyTorch.
    if backend.device.type != "cpu" or card.config.get("names") == "data":
        return backend
    if find_spec("openvino") is None or find_spec("onnxruntime") is None:
        return backend
    try:
        return _openvino(backend, card, name=name, precision=precision, threads=threads)
    except ZsadError as error:
        warnings.warn(f"PyTorch runs the model, since OpenVINO cannot: {error}", stacklevel=2)
        return backend


def _openvino(
    backend: TorchBackend, card: Card, *, name: str, precision: Precision, threads: int | None
) -> Backend:
    from zsad import __version__
    from zsad.backends.openvino import OpenVINOBackend
    from zsad.export.writer import export_model

    folder = cache_folder() / f"{backend.identity(card)}-{__version__}"
    graph = find_graph(folder, target="openvino")
    if graph is None:
        graph, _ = export_model(backend, card, folder, name=name, target="openvino", count=_PROOF_IMAGES)
    return OpenVINOBackend(graph, read_export(graph), precision=precision, threads=threads)
