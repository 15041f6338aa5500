"""Exporting a model: record, convert, prove, and only then put the files in their place."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from zsad.backends.exported import ExportedBackend
from zsad.backends.graph_card import ExportCard, Proof, Target, card_path, file_sha256
from zsad.backends.onnx import OnnxBackend
from zsad.backends.openvino import OpenVINOBackend
from zsad.backends.torch import TorchBackend
from zsad.errors import ConfigError
from zsad.export.int8 import quantize_dynamic, quantize_static
from zsad.export.onnx import Recorded, write_onnx
from zsad.export.openvino import write_openvino
from zsad.export.parity import ProofImages, compare, require, require_alike
from zsad.files import make_folder, storage_errors, write_text
from zsad.images.preprocess import Preprocess
from zsad.loading import Loaded

_SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}
_COUNT = 20


def export_model(
    loaded: Loaded,
    folder: Path,
    *,
    name: str,
    target: Target,
    int8: bool = False,
    shows: str | None = None,
    images: str | Path | None = None,
    count: int = _COUNT,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Path, ExportCard]:
    """Writes a model as a graph that runs without PyTorch, with its card, if it proves to be the same model.

    Args:
        loaded: in PyTorch, on the processor.
        folder: for the graph and its card.
        name: of the model, for the card.
        target: the runtime.
        int8: bring weights and activations to eight bits; proven by cosines and metrics instead of equality.
        shows: what the images show, for methods whose prompts name it.
        images: a folder of images to prove it on; None draws some.
        count: how many.
        say: told what is being done.

    Returns:
        The graph's path and its card, with the proof.

    Raises:
        ConfigError: the model is not PyTorch's, or an extra is not installed.
        CheckpointError: the model cannot be recorded, or the graph is not the same model; nothing is written.
        StorageError: the disk is full or cannot be written.
    """
    model = loaded.backend
    if not isinstance(model, TorchBackend):
        raise ConfigError(f"{name} is an exported graph already; export the model it was made from")
    preprocess = Preprocess.from_dict(loaded.card.preprocess)
    proof_images = (
        ProofImages.drawn(preprocess, count)
        if images is None
        else ProofImages.of_folder(images, preprocess, count)
    )
    make_folder(folder)
    with storage_errors(folder), tempfile.TemporaryDirectory(prefix=".zsad-", dir=folder) as scratch:
        place = Path(scratch)
        say("recording the graph")
        recorded = write_onnx(model.method, place / "graph.onnx", shows=shows)
        graph = _convert(place, target, int8, proof_images, say)
        card = unproven_card(loaded, graph, recorded, name=name, target=target, int8=int8, shows=shows)
        say(f"comparing it with the model on {proof_images.source}")
        proof = compare(model, _open(graph, card), proof_images, shows=shows, quality=int8)
        (require_alike if int8 else require)(proof)
        card = card.model_copy(
            update={"proof": proof, "calibration": _calibration(loaded, graph.name, folder, int8)}
        )
        for own in card.files:
            (place / own).replace(folder / own)
        write_text(card_path(folder / graph.name), card.model_dump_json(indent=2) + "\n")
    return folder / graph.name, card


def _convert(
    place: Path, target: Target, int8: bool, images: ProofImages, say: Callable[[str], None]
) -> Path:
    """From the recorded graph to the one that is asked for, under its final name."""
    source, graph = place / "graph.onnx", place / f"model{'.int8' if int8 else ''}{_SUFFIX[target]}"
    if int8:
        say("bringing it to eight bits")
        reduced = place / "reduced.onnx"
        if target == "onnx":
            quantize_dynamic(source, reduced)
        else:
            quantize_static(source, reduced, [image.pixels for image in images.images])
        source = reduced
    if target == "onnx":
        shutil.move(source, graph)
    else:
        say("converting it to OpenVINO's form")
        write_openvino(source, graph)
    return graph


def unproven_card(
    loaded: Loaded,
    graph: Path,
    recorded: Recorded,
    *,
    name: str,
    target: Target,
    int8: bool,
    shows: str | None,
) -> ExportCard:
    """The card of a graph that is not proven yet."""
    files = [graph, *([graph.with_suffix(".bin")] if target == "openvino" else [])]
    size = loaded.card.preprocess["image_size"]
    unproven = Proof(
        images=1, source="nothing", score_error=0, map_error=0, cosine=0, score_limit=0, map_limit=0
    )
    return ExportCard(
        name=name,
        target=target,
        precision="int8" if int8 else "fp32",
        model=loaded.card,
        identity=loaded.backend.identity(loaded.card),
        shows=shows,
        image=(size[0], size[1]),
        grid=recorded.grid,
        routing=recorded.routing,
        terms=recorded.terms,
        flops=recorded.flops,
        files={file.name: file_sha256(file) for file in files},
        proof=unproven,
    )


def _open(graph: Path, card: ExportCard) -> ExportedBackend:
    """The graph in its runtime, in full precision as far as the graph has it."""
    kind = OnnxBackend if card.target == "onnx" else OpenVINOBackend
    return kind(graph, card, precision="fp32")


def _calibration(loaded: Loaded, graph: str, folder: Path, int8: bool) -> dict[str, str] | None:
    """Copies the calibration that lies beside the model beside the graph; eight bits need one of their own."""
    from zsad.calibration.calibration import beside

    own = None if loaded.file is None else beside(loaded.file)
    if int8 or own is None or not own.is_file():
        return None
    copy = beside(folder / graph)
    if copy != own:
        shutil.copyfile(own, copy)
    return {"file": copy.name, "sha256": file_sha256(copy)}
