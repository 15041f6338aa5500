"""Export of a model: trace, convert, compare with the model, and only then move the files to their place."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from zsad.backends.backend import Backend
from zsad.backends.exported import ExportedBackend
from zsad.backends.graph_card import ExportCard, Proof, Target, card_path
from zsad.backends.onnx import OnnxBackend
from zsad.backends.openvino import OpenVINOBackend
from zsad.backends.torch import TorchBackend
from zsad.card import Card
from zsad.errors import ConfigError
from zsad.export.int8 import quantize_dynamic, quantize_static
from zsad.export.onnx_graph import TracedGraph, write_onnx
from zsad.export.openvino_graph import write_openvino
from zsad.export.parity import ProofImages, compare, require, require_alike
from zsad.files import file_sha256, scratch_folder, storage_errors, write_text
from zsad.images.picture import Preprocess
from zsad.predict.view import calibration_beside

_SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}


def export_model(
    backend: Backend,
    card: Card,
    folder: Path,
    *,
    name: str,
    target: Target,
    int8: bool = False,
    object_name: str | None = None,
    images: str | Path | None = None,
    count: int = 20,
    calibration: Path | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> tuple[Path, ExportCard]:
    """Write a model as a graph that runs without PyTorch, with its card, if the graph reproduces the model.

    Args:
        backend: the model in PyTorch, on the CPU.
        card: of the model.
        folder: for the graph and its card.
        name: of the model, for the card.
        target: the runtime.
        int8: quantise weights and activations to eight bits; compared by cosines and metrics instead of equality.
        object_name: what the images show, for methods whose prompts name it.
        images: a folder of images to compare on; None draws synthetic ones.
        count: number of images to compare on.
        calibration: file that is copied beside a graph in full precision, if it exists.
        progress: called with a description of each step.

    Returns:
        The graph's path and its card, with the result of the comparison.

    Raises:
        ConfigError: the model is not in PyTorch, or an extra is not installed.
        CheckpointError: the model cannot be traced, or the graph differs from it; nothing is written.
        StorageError: the disk is full or cannot be written.
    """
    if not isinstance(backend, TorchBackend):
        raise ConfigError(f"{name} is an exported graph already; export the model it was made from")
    preprocess = Preprocess.from_dict(card.preprocess)
    proof_images = (
        ProofImages.drawn(preprocess, count)
        if images is None
        else ProofImages.of_folder(images, preprocess, count)
    )
    with scratch_folder(folder) as scratch, storage_errors(folder):
        progress("recording the graph")
        traced = write_onnx(backend.method, scratch / "graph.onnx", object_name=object_name)
        graph = _convert(scratch, target, int8, proof_images, progress)
        export = unproven_card(
            backend, card, graph, traced, name=name, target=target, int8=int8, object_name=object_name
        )
        progress(f"comparing it with the model on {proof_images.source}")
        proof = compare(backend, _open(graph, export), proof_images, object_name=object_name, quality=int8)
        (require_alike if int8 else require)(proof)
        copied = None if int8 else _copy_calibration(calibration, folder / graph.name)
        export = export.model_copy(update={"proof": proof, "calibration": copied})
        for file in export.files:
            (scratch / file).replace(folder / file)
        content = export.model_dump_json(indent=2, by_alias=True)
        write_text(card_path(folder / graph.name), content + "\n")
    return folder / graph.name, export


def _convert(
    scratch: Path, target: Target, int8: bool, images: ProofImages, progress: Callable[[str], None]
) -> Path:
    """Convert the traced graph to the requested format, under its final name."""
    source, graph = scratch / "graph.onnx", scratch / f"model{'.int8' if int8 else ''}{_SUFFIX[target]}"
    if int8:
        progress("bringing it to eight bits")
        quantized = scratch / "quantized.onnx"
        if target == "onnx":
            quantize_dynamic(source, quantized)
        else:
            quantize_static(source, quantized, [image.pixels for image in images.images])
        source = quantized
    if target == "onnx":
        shutil.move(source, graph)
    else:
        progress("converting it to OpenVINO's form")
        write_openvino(source, graph)
    return graph


def unproven_card(
    backend: TorchBackend,
    card: Card,
    graph: Path,
    traced: TracedGraph,
    *,
    name: str,
    target: Target = "onnx",
    int8: bool = False,
    object_name: str | None = None,
) -> ExportCard:
    """Return the card of a graph that has not been compared with its model yet; arguments as `export_model`."""
    files = [graph, *([graph.with_suffix(".bin")] if target == "openvino" else [])]
    size = card.preprocess["image_size"]
    unproven = Proof(
        images=1, source="nothing", score_error=0, map_error=0, cosine=0, score_limit=0, map_limit=0
    )
    return ExportCard(
        name=name,
        target=target,
        precision="int8" if int8 else "fp32",
        model=card,
        identity=backend.identity(card),
        object_name=object_name,
        image=(size[0], size[1]),
        grid=traced.grid,
        routing=traced.routing,
        terms=traced.terms,
        flops=traced.flops,
        files={file.name: file_sha256(file) for file in files},
        proof=unproven,
    )


def _open(graph: Path, card: ExportCard) -> ExportedBackend:
    """Open a graph in its runtime, in full precision (but for layers in eight bits)."""
    runtime = OnnxBackend if card.target == "onnx" else OpenVINOBackend
    return runtime(graph, card, precision="fp32")


def _copy_calibration(source: Path | None, graph: Path) -> dict[str, str] | None:
    """Copy a calibration beside a graph; return its name and sha256."""
    if source is None or not source.is_file():
        return None
    copy = calibration_beside(graph)
    if copy != source:
        shutil.copyfile(source, copy)
    return {"file": copy.name, "sha256": file_sha256(copy)}
