"""`backend="auto"`: what is fastest on this machine, with the graphs that this needs kept for the next time."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path

from zsad.backends.base import Precision
from zsad.backends.graph_card import find_graph, read_export
from zsad.backends.torch import TorchBackend
from zsad.errors import ZsadError
from zsad.loading import Loaded, Request, load_checkpoint_or_method

_COUNT = 2
"""Images of the proof of a graph that is made unasked: enough to find a wrong one, few enough not to wait for."""


def cache_folder() -> Path:
    """Where graphs are kept that were made unasked."""
    return Path.home() / ".cache" / "zsad" / "graphs"


def load_fastest(request: Request) -> Loaded:
    """A checkpoint, or a method without training, in what is fastest here.

    On a GPU that is PyTorch in bf16, or fp16 where it lacks that; on a processor OpenVINO where it is installed, in
    bf16 where the processor has it; otherwise PyTorch. A graph that cannot be made or kept is no error: PyTorch takes
    its place, with a warning.
    """
    loaded = load_checkpoint_or_method(request, precision=request.precision)
    backend = loaded.backend
    on_processor = isinstance(backend, TorchBackend) and backend.device.type == "cpu"
    # A graph holds the text of one object's name; who names objects as they come is better served without.
    on_processor = on_processor and loaded.card.config.get("names") != "data"
    if not on_processor or find_spec("openvino") is None or find_spec("onnxruntime") is None:
        return loaded
    try:
        return _in_openvino(loaded, request, precision=request.precision)
    except ZsadError as error:
        warnings.warn(f"PyTorch runs the model, since OpenVINO cannot: {error}", stacklevel=2)
        return loaded


def _in_openvino(loaded: Loaded, request: Request, *, precision: Precision) -> Loaded:
    from zsad import __version__
    from zsad.backends.openvino import OpenVINOBackend
    from zsad.export.writer import export_model

    identity = loaded.backend.identity(loaded.card)
    folder = cache_folder() / f"{identity}-{__version__}"
    graph = find_graph(folder, target="openvino")
    if graph is None:
        graph, _ = export_model(loaded, folder, name=str(request.model), target="openvino", count=_COUNT)
    card = read_export(graph)
    backend = OpenVINOBackend(graph, card, precision=precision, threads=request.threads)
    return Loaded(backend, loaded.card, loaded.file)
