"""Loading: from the name of a model to a detector."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from zsad.backends.backend import Backend, Precision
from zsad.detector import Detector
from zsad.errors import CheckpointError, ConfigError
from zsad.predict.view import Model

if TYPE_CHECKING:
    import torch

    from zsad.calibration.calibration import Calibration
    from zsad.card import BackboneReference
    from zsad.types import Domain

BackendName = Literal["auto", "torch", "onnx", "openvino"]
BACKENDS: tuple[BackendName, ...] = ("auto", "torch", "onnx", "openvino")
BUNDLED_BACKBONE = "zsad-tiny"
DEFAULT_MODEL = "promptmoe-tiny"


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """Arguments of `zsad.load`."""

    model: str | Path
    backbone: str | Path | None = None
    weights: Path | None = None
    device: str = "auto"
    backend: BackendName | None = None
    precision: Precision = "auto"
    threads: int | None = None
    domain: Domain | None = None


def load_model(request: LoadRequest) -> Model:
    """The model that is asked for, in the backend that is asked for, or that suits it and the machine.

    Raises:
        CheckpointError: no such model, a broken one, or one of another backbone.
        BackboneError: the backbone cannot be loaded.
        ConfigError: an unknown backend, one that is not installed or does not run this model, no such device.
    """
    if request.backend not in (None, *BACKENDS):
        raise ConfigError(f"no backend is called {request.backend!r}; known are {', '.join(BACKENDS)}")
    return _load(request).for_domain(request.domain)


def _load(request: LoadRequest) -> Model:
    graph = _find_graph(request)
    if graph is not None and not (request.backend in (None, "torch", "auto") and _is_run(request.model)):
        return _load_graph(graph, request)
    if request.backend in ("onnx", "openvino"):
        raise ConfigError(
            f"backend {request.backend} runs exported graphs, {str(request.model)!r} is none; run "
            f"zsad export {request.model} --to {request.backend} and give the file that it writes"
        )
    if request.backend == "auto":
        return _load_fastest(request)
    return load_checkpoint_or_method(
        request, precision="fp32" if request.precision == "auto" else request.precision
    )


def _find_graph(request: LoadRequest) -> Path | None:
    """Return the exported graph that is asked for, or None."""
    if not Path(request.model).expanduser().exists():
        return None
    from zsad.backends.graph_card import find_graph

    return find_graph(
        request.model, target=request.backend if request.backend in ("onnx", "openvino") else None
    )


def _load_fastest(request: LoadRequest) -> Model:
    from zsad.backends.torch import TorchBackend
    from zsad.export.graph_cache import fastest_backend

    loaded = load_checkpoint_or_method(request, precision=request.precision)
    assert isinstance(loaded.backend, TorchBackend)
    backend = fastest_backend(
        loaded.backend,
        loaded.card,
        name=str(request.model),
        precision=request.precision,
        threads=request.threads,
    )
    return replace(loaded, backend=backend)


def _is_run(model: str | Path) -> bool:
    """Return True if a folder with a graph also holds the checkpoint it was made from."""
    return (Path(model).expanduser() / "model.safetensors").is_file()


def _load_graph(graph: Path, request: LoadRequest) -> Model:
    from zsad.backends.graph_card import SUFFIXES, read_export

    written_for = SUFFIXES[graph.suffix]
    if request.backend == "torch":
        raise ConfigError(
            f"{graph} is an exported graph, which PyTorch does not run; give the model it was made from"
        )
    if request.backbone is not None or request.weights is not None:
        raise ConfigError(f"{graph} holds its backbone; leave out --backbone and --weights")
    if request.device not in ("auto", "cpu"):
        raise ConfigError(
            f"exported graphs run on the processor, not on {request.device!r}; leave the device out, or give the "
            f"model it was made from"
        )
    wanted = request.backend or written_for
    if wanted == "auto":
        wanted = "openvino" if written_for == "openvino" or find_spec("openvino") is not None else "onnx"
    card = read_export(graph)
    backend = _runtime(wanted, graph, card, request)
    return Model(backend, card.model, str(request.model), graph, card.object_name)


def _runtime(wanted: str, graph: Path, card: object, request: LoadRequest) -> Backend:
    from zsad.backends.exported import ExportedBackend

    kind: type[ExportedBackend]
    if wanted == "onnx":
        from zsad.backends.onnx import OnnxBackend as kind
    else:
        from zsad.backends.openvino import OpenVINOBackend as kind
    return kind(graph, card, precision=request.precision, threads=request.threads)  # type: ignore[arg-type]


def untrained_methods() -> list[str]:
    """Names of the methods that find anomalies without training: usable as `load(name, backbone=...)`."""
    from zsad.methods.registry import METHODS

    return sorted(name for name, entry in METHODS.items() if not entry.needs_training)


def load_checkpoint_or_method(request: LoadRequest, *, precision: Precision = "fp32") -> Model:
    """A checkpoint, or a method without training, in PyTorch; raises as `load_model`."""
    from zsad.device import select_device

    device = select_device(request.device)
    untrained = _untrained_method(str(request.model))
    if untrained is not None:
        return _load_untrained(*untrained, request=request, device=device, precision=precision)
    return _load_trained(request, device=device, precision=precision)


def _untrained_method(model: str) -> tuple[str, str | None] | None:
    """(method, its default backbone) of a model name that needs no checkpoint, else None."""
    from zsad.train.checkpoint import holds_run

    if holds_run(Path(model)):
        return None
    for name in untrained_methods():
        if model == f"{name}-tiny":
            return name, BUNDLED_BACKBONE
        if model == name:
            return name, None
    return None


def _load_untrained(
    name: str, default: str | None, *, request: LoadRequest, device: torch.device, precision: Precision
) -> Model:
    from zsad.backends.torch import TorchBackend
    from zsad.clip.weights import load_backbone
    from zsad.methods.registry import build
    from zsad.train.training_card import CardParts, card_of

    wanted = request.backbone or default
    if wanted is None:
        raise CheckpointError(
            f"model {str(request.model)!r} needs a tower: name one with --backbone, or use {request.model}-tiny"
        )
    tower = load_backbone(wanted, weights=request.weights, device=device)
    method = build(name, None, tower).to(device)
    card = card_of(method, CardParts.of(method, tower), created="")
    return Model(TorchBackend(method, precision=precision), card, str(request.model))


def _load_trained(request: LoadRequest, *, device: torch.device, precision: Precision) -> Model:
    from zsad.backends.torch import TorchBackend
    from zsad.clip.config import preset_names
    from zsad.clip.weights import load_backbone
    from zsad.train.checkpoint import build_method, read_card, resolve_model

    model, tower = request.model, None
    if request.backbone is not None or request.weights is not None:
        backbone = read_card(resolve_model(model)).backbone
        given = str(request.backbone or backbone.name)
        known = preset_names()
        # Two presets differ for certain: refused before gigabytes are fetched.
        if given != backbone.name and given in known and backbone.name in known:
            raise _other_backbone(model, backbone, given)
        tower = load_backbone(given, weights=request.weights, device=device)
        if tower.sha256 != backbone.sha256:
            raise _other_backbone(model, backbone, f"{given} (sha256 {tower.sha256[:12]})")
    method, card = build_method(model, backbone=tower, device=device)
    return Model(TorchBackend(method, precision=precision), card, str(model), resolve_model(model))


def _other_backbone(model: str | Path, backbone: BackboneReference, given: str) -> CheckpointError:
    return CheckpointError(
        f"model {str(model)!r} was trained on backbone {backbone.name} (sha256 {backbone.sha256[:12]}), "
        f"not on {given}; leave out --backbone, or use a method without training such as --model clip"
    )


def load(
    model: str | Path = DEFAULT_MODEL,
    *,
    backbone: str | Path | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    calibration: str | Path | Calibration | None = "auto",
    backend: BackendName | None = None,
    precision: Precision = "auto",
    threads: int | None = None,
    domain: Domain | None = None,
) -> Detector:
    """Return a detector, ready for images.

    Args:
        model: a run folder, a checkpoint file, a bundled model ("promptmoe-tiny"), a method that needs no
            training ("clip-tiny" on the bundled backbone, "clip" on any `backbone`), or what `zsad export` wrote.
        backbone: another tower for methods without training, by preset name or path; for a trained model,
            where its own backbone lies.
        weights: file or folder of the backbone's weights, where not bundled or cached.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        calibration: thresholds, or their file; "auto" takes the one beside the model, if any; None or "none": none.
        backend: "torch"; "onnx" or "openvino" for what `zsad export` wrote, without importing PyTorch; "auto" takes
            what is fastest here, at the cost of an export when a model is first used; None: what the model is made for.
        precision: "fp32", "bf16", "fp16"; "auto" is full precision in PyTorch, unless the backend is "auto" and there
            is a GPU, and bf16 in OpenVINO on processors that have it.
        threads: of the runtime of an exported graph; PyTorch's are the process's own.
        domain: "industrial" or "medical" images, for methods that score the two differently (MoECLIP); None: as the
            model's card has it.

    Raises:
        CalibrationError: the calibration is broken, or of another model.
        CheckpointError: no such model, a broken one, or one of another backbone.
        BackboneError: the backbone cannot be loaded.
        ConfigError: the device is not there, or the backend does not run this model.

    Example:
        >>> import numpy, zsad
        >>> detector = zsad.load("promptmoe-tiny", device="cpu")
        >>> prediction = detector.predict(numpy.zeros((480, 640), numpy.uint8))
        >>> prediction.map.shape, 0 <= prediction.score <= 1
        ((480, 640), True)
    """
    path = Path(weights) if weights is not None else None
    request = LoadRequest(model, backbone, path, device, backend, precision, threads, domain)
    return Detector(load_model(request)).use_default(calibration)
