"""Checkpoints: one safetensors file with the adapter's tensors, and a JSON card that says what they are.

The card lies in the file's metadata, so that a checkpoint is a single file, and beside it as `card.json` for
reading. Nothing here ever unpickles.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

import zsad
from zsad.card import FORMAT, Card
from zsad.errors import CheckpointError, ConfigError
from zsad.files import parse_document, write_bytes, write_text
from zsad.methods.base import Method

if TYPE_CHECKING:
    from zsad.clip.weights import Backbone

MODEL_FILE = "model.safetensors"
CARD_FILE = "card.json"
STATE_FILE = "state.safetensors"
_ASSETS = Path(__file__).resolve().parent.parent / "assets"
_CARD_KEY = "card"


def save_checkpoint(path: Path, method: Method, card: Card, *, half: bool = False) -> Path:
    """Write the adapter of `method` with its card, and `card.json` beside it; both atomically.

    Args:
        path: the file, or a folder in which `model.safetensors` is written.
        method: whose `adapter_state()` is stored.
        card: its description.
        half: store floating tensors as fp16, half the size; tensors beyond fp16's range stay as they are.

    Returns:
        The path of the file.

    Raises:
        CheckpointError: the card is of another method.
        StorageError: the disk is full or cannot be written.
    """
    if card.method != method.name:
        raise CheckpointError(
            f"the card is of method {card.method!r}, the method to save is {method.name!r}; use its own card"
        )
    path = path if path.suffix == ".safetensors" else path / MODEL_FILE
    tensors = {name: _stored(tensor, half=half) for name, tensor in method.adapter_state().items()}
    # What is no text, as names of folders may be, is told as question marks.
    content = json.dumps(card.model_dump(mode="json"), indent=2, ensure_ascii=False)
    text = content.encode("utf-8", "replace").decode()
    write_text(path.parent / CARD_FILE, text + "\n")
    write_bytes(path, save(tensors, metadata={_CARD_KEY: text}))
    return path


def _stored(tensor: Tensor, *, half: bool) -> Tensor:
    tensor = tensor.detach().to("cpu").contiguous()
    if half and tensor.is_floating_point() and tensor.numel():
        half = bool(tensor.abs().max() < torch.finfo(torch.float16).max)
        return tensor.half() if half else tensor.clone()
    # A tensor may be a view of, or tied to, another one: the file format refuses shared storage.
    return tensor.clone()


def read_card(path: str | Path) -> Card:
    """Read the card in a checkpoint's metadata, without its tensors.

    Raises:
        CheckpointError: missing, truncated, not safetensors, without a card, or with one of a newer format.
    """
    metadata, _ = read_safetensors(Path(path), tensors=False)
    return _card_in(metadata, path)


def _card_in(metadata: Mapping[str, str], path: str | Path) -> Card:
    text = metadata.get(_CARD_KEY)
    if text is None:
        raise CheckpointError(
            f"{path} is a safetensors file without a zsad card, so no zsad model (bare CLIP weights?); "
            f"give a {MODEL_FILE} written by training"
        )
    try:
        values = parse_document(text)
    except ValueError as error:
        raise CheckpointError(
            f"the card of {path} is not JSON ({error}); fetch or train the model again"
        ) from error
    written = values.get("format") if isinstance(values, dict) else None
    if isinstance(written, int) and written > FORMAT:
        raise CheckpointError(
            f"{path} has format {written} (of zsad {values.get('zsad')}), this zsad {zsad.__version__} "
            f"reads up to {FORMAT}; upgrade with: pip install -U zsad"
        )
    try:
        return Card.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise CheckpointError(
            f"the card of {path} cannot be used: {where}: {first['msg']}; fetch or train the model again"
        ) from error


def read_safetensors(path: Path, *, tensors: bool = True) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read metadata and, unless `tensors` is off, tensors (copied into memory) of a safetensors file.

    Raises:
        CheckpointError: missing, a folder, truncated, text, a pickle or otherwise not safetensors.
    """
    if not path.is_file():
        what = "is a folder, not a checkpoint file" if path.is_dir() else "does not exist"
        raise CheckpointError(f"{path} {what}; give the path of a {MODEL_FILE}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = file.keys() if tensors else ()
            return dict(file.metadata() or {}), {name: file.get_tensor(name).clone() for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(_why_unreadable(path, error)) from error


def _why_unreadable(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as stream:
            head = stream.read(64)
    except OSError as reason:
        return f"{path} cannot be read: {reason.strerror or reason}; check its permissions"
    if not head:
        return f"{path} is empty; fetch or train the model again"
    # The length of a safetensors header may begin with a pickle's first byte; its brace follows at once.
    if head.startswith((b"PK", b"\x80")) and head[8:9] != b"{":
        return f"{path} is a pickled PyTorch file (.pt), which zsad never reads; give a safetensors file"
    if head.startswith(b"version https://git-lfs"):
        return f"{path} is a pointer of Git LFS, not the file itself; fetch it with: git lfs pull"
    detail = " ".join(str(error).split())
    return f"{path} is no safetensors file, or is truncated ({detail}); fetch or train the model again"


def load_checkpoint(path: str | Path, method: Method, *, backbone_sha256: str | None = None) -> Card:
    """Load a checkpoint's tensors and colour scale into `method` and return the card.

    Args:
        path: the file.
        method: built with the card's configuration.
        backbone_sha256: hash of the backbone that `method` stands on; None skips the comparison.

    Raises:
        CheckpointError: broken file, another method or backbone, tensors that do not fit or are not finite.
    """
    metadata, tensors = read_safetensors(Path(path))
    card = _card_in(metadata, path)
    if card.method != method.name:
        raise CheckpointError(
            f"{path} holds a model of method {card.method!r}, not of {method.name!r}; build that method"
        )
    if backbone_sha256 is not None:
        _check_backbone(card, path, backbone_sha256)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"tensor {name!r} of {path} holds NaN or infinity; fetch or train the model again"
            )
    try:
        method.load_adapter(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    method.map_scale = card.map_spec.scale
    return card


def _check_backbone(card: Card, path: str | Path, sha256: str) -> None:
    if card.backbone.sha256 != sha256:
        raise CheckpointError(
            f"{path} was trained on backbone {card.backbone.name} with sha256 {card.backbone.sha256}, but "
            f"the backbone given has sha256 {sha256}; use the backbone it was trained on"
        )


def bundled_models() -> list[str]:
    """Return the names of the models shipped with the package."""
    return sorted(file.parent.name for file in _ASSETS.glob(f"*/{CARD_FILE}") if is_bundled(file.parent.name))


def is_bundled(name: str) -> bool:
    """Return True for the name of a model shipped with the package; no file is opened."""
    folder = _ASSETS / name
    files = (folder / MODEL_FILE).is_file() and (folder / CARD_FILE).is_file()
    # A backbone lies among the models; it alone has a config.
    return files and folder.parent == _ASSETS and not (folder / "config.json").exists()


def resolve_model(spec: str | Path) -> Path:
    """Return the checkpoint file that `spec` means: a file, a run or model folder, a `card.json`, or a bundled name.

    Raises:
        CheckpointError: there is none; the message lists what there is and the nearest names.
    """
    path = Path(spec).expanduser()
    if path.is_file():
        model = path.parent / MODEL_FILE
        return model if path.name == CARD_FILE and model.is_file() else path
    if holds_run(path):
        return _in_folder(path)
    # Results are often kept in a folder of the model's name: that is not what is meant.
    if is_bundled(str(spec)):
        return _ASSETS / str(spec) / MODEL_FILE
    if path.is_dir():
        return _in_folder(path)
    bundled = bundled_models()
    near = difflib.get_close_matches(str(spec), bundled, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    listed = ", ".join(bundled) or "none"
    raise CheckpointError(
        f"no model {str(spec)!r}: {hint}it is no file, no folder and no bundled model (bundled: {listed}); "
        f"give the folder of a training run or a {MODEL_FILE}"
    )


def holds_run(path: Path) -> bool:
    """Return True for a file, and for the folder of a training run, finished or not."""
    return path.is_file() or (path / MODEL_FILE).is_file() or (path / STATE_FILE).is_file()


def _in_folder(folder: Path) -> Path:
    if (folder / MODEL_FILE).is_file():
        return folder / MODEL_FILE
    if (folder / STATE_FILE).is_file():
        raise CheckpointError(
            f"the training in {folder} has not finished; run the same training again to resume it"
        )
    runs = sorted(child.name for child in folder.iterdir() if (child / MODEL_FILE).is_file())
    runs += sorted(child.name for child in folder.glob("*.safetensors"))
    listed = ", ".join(runs[:8]) or "neither runs nor safetensors files"
    raise CheckpointError(
        f"folder {folder} holds no {MODEL_FILE}; it holds {listed}; give one of those or another folder"
    )


def _check_source(name: str, path: Path) -> None:
    """Raise a CheckpointError for a backbone that only a repository named by the file could give.

    What a file says decides no access to a network: repositories are asked that the user names, and those of presets.
    """
    from zsad.clip.config import preset_names

    if name not in preset_names() and not os.path.lexists(name):
        raise CheckpointError(
            f"{path} was trained on backbone {name[:200]!r}, which is no preset and no file here; to fetch a "
            "repository of that name, or another source, give it with --backbone (in Python: backbone=)"
        )


def build_method(
    spec: str | Path,
    *,
    backbone: Backbone | str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Method, Card]:
    """Build a trained method, ready to use: backbone loaded, adapter in place, evaluation mode.

    Args:
        spec: what `resolve_model` takes.
        backbone: a loaded backbone, or the name or path of one; None loads the one that the card names.
        device: where the method lives; ignored for a backbone given loaded.
        dtype: of the backbone's weights; ignored for a backbone given loaded.

    Raises:
        CheckpointError: broken file, unknown method, or a backbone with another hash than the card's.
        BackboneError: the backbone cannot be loaded.
    """
    from zsad.clip.weights import Backbone, load_backbone
    from zsad.methods.registry import build

    path = resolve_model(spec)
    card = read_card(path)
    name = card.backbone.name if backbone is None else backbone
    if backbone is None:
        _check_source(card.backbone.name, path)
    try:
        loaded = name if isinstance(name, Backbone) else load_backbone(name, device=device, dtype=dtype)
    except ConfigError as error:
        if backbone is not None:
            raise
        raise CheckpointError(
            f"{path} was trained on backbone {name!r}, which is known by no name; say where its weights lie "
            f"with --backbone (in Python: backbone=)"
        ) from error
    _check_backbone(card, path, loaded.sha256)
    try:
        method = build(card.method, card.config, loaded)
    except ConfigError as error:
        raise CheckpointError(f"the card of {path} cannot be used by this zsad: {error}") from error
    load_checkpoint(path, method, backbone_sha256=loaded.sha256)
    return method.to(next(loaded.clip.parameters()).device).eval(), card
