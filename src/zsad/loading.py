"""Which model a name means, and loading it into a backend."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from zsad.backends.backend import Backend, Precision
from zsad.backends.graph_card import SUFFIXES, find_graph, read_export
from zsad.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import torch

    from zsad.card import BackboneReference, Card

BackendName = Literal["auto", "torch", "onnx", "openvino"]
BACKENDS: tuple[BackendName, ...] = ("auto", "torch", "onnx", "openvino")
BUNDLED_BACKBONE = "zsad-tiny"


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for; as the arguments of `zsad.load`."""

    model: str | Path
    backbone: str | Path | None = None
    weights: Path | None = None
    device: str = "auto"
    backend: BackendName | None = None
    precision: Precision = "auto"
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, ready to run.

    Attributes:
        backend: that runs it.
        card: what it is.
        file: its weights or graph, beside which a calibration may lie; None for a method without training.
        shows: what prompts inside a graph call the object.
    """

    backend: Backend
    card: Card
    file: Path | None = None
    shows: str | None = None


def load_model(request: Request) -> Loaded:
    """The model that is asked for, in the backend that is asked for, or that suits it and the machine.

    Raises:
        CheckpointError: no such model, a broken one, or one of another backbone.
        BackboneError: the backbone cannot be loaded.
        ConfigError: an unknown backend, one that is not installed or does not run this model, no such device.
    """
    if request.backend not in (None, *BACKENDS):
        raise ConfigError(f"no backend is called {request.backend!r}; known are {', '.join(BACKENDS)}")
    graph = find_graph(
        request.model, target=request.backend if request.backend in ("onnx", "openvino") else None
    )
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


def _load_fastest(request: Request) -> Loaded:
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
    """Whether a folder with a graph also holds the checkpoint it was made from."""
    return (Path(model).expanduser() / "model.safetensors").is_file()


def _load_graph(graph: Path, request: Request) -> Loaded:
    own = SUFFIXES[graph.suffix]
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
    wanted = request.backend or own
    if wanted == "auto":
        wanted = "openvino" if own == "openvino" or find_spec("openvino") is not None else "onnx"
    card = read_export(graph)
    backend = _runtime(wanted, graph, card, request)
    return Loaded(backend, card.model, graph, card.object_name)


def _runtime(wanted: str, graph: Path, card: object, request: Request) -> Backend:
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


def load_checkpoint_or_method(request: Request, *, precision: Precision = "fp32") -> Loaded:
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
    name: str, default: str | None, *, request: Request, device: torch.device, precision: Precision
) -> Loaded:
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
    return Loaded(TorchBackend(method, precision=precision), card)


def _load_trained(request: Request, *, device: torch.device, precision: Precision) -> Loaded:
    from zsad.backends.torch import TorchBackend
    from zsad.clip.presets import preset_names
    from zsad.clip.weights import load_backbone
    from zsad.train.checkpoint import build_method, read_card, resolve_model

    model, tower = request.model, None
    if request.backbone is not None or request.weights is not None:
        own = read_card(resolve_model(model)).backbone
        given = str(request.backbone or own.name)
        known = preset_names()
        # Two presets differ for certain: refused before gigabytes are fetched.
        if given != own.name and given in known and own.name in known:
            raise _other_backbone(model, own, given)
        tower = load_backbone(given, weights=request.weights, device=device)
        if tower.sha256 != own.sha256:
            raise _other_backbone(model, own, f"{given} (sha256 {tower.sha256[:12]})")
    method, card = build_method(model, backbone=tower, device=device)
    return Loaded(TorchBackend(method, precision=precision), card, resolve_model(model))


def _other_backbone(model: str | Path, own: BackboneReference, given: str) -> CheckpointError:
    return CheckpointError(
        f"model {str(model)!r} was trained on backbone {own.name} (sha256 {own.sha256[:12]}), not on {given}; "
        "leave out --backbone, or use a method without training such as --model clip"
    )
