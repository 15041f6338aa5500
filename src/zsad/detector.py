"""The facade: load a detector once, then give it images."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from zsad.data.image import Preprocess, Source, read_image
from zsad.device import default_batch_size, select_device
from zsad.errors import CheckpointError, ImageError, ZsadError
from zsad.infer.engine import OnError, predict_pixels, predict_samples
from zsad.infer.prediction import Prediction
from zsad.methods.base import Method
from zsad.train.checkpoint import (
    BackboneReference,
    Card,
    build_method,
    holds_run,
    read_card,
    resolve_model,
    save_checkpoint,
)
from zsad.types import Sample

DEFAULT_MODEL = "promptmoe-tiny"
BUNDLED_BACKBONE = "zsad-tiny"


class Detector:
    """A method with its weights in place, ready to score images.

    Args:
        method: built and loaded.
        card: what it is: method, configuration, backbone, preprocessing, training.
        name: by which it was asked for.
    """

    def __init__(self, method: Method, card: Card, *, name: str = "model") -> None:
        self.method = method.eval()
        self.card = card
        self.name = name
        self.preprocess = Preprocess.from_dict(card.preprocess)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.method.parameters()).device

    def __repr__(self) -> str:
        return f"Detector({self.name!r}, method={self.card.method!r}, backbone={self.card.backbone.name!r})"

    def predict(self, source: Source, *, shows: str | None = None) -> Prediction:
        """The prediction for one image.

        Args:
            source: a path, a Pillow image, or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8,
                uint16, bool, or float in [0, 1].
            shows: what it shows, such as "metal nut", for methods whose prompts name the object.

        Raises:
            ImageError: it cannot be read or used.
        """
        image, size = read_image(source)
        words = None if shows is None else (shows,)
        prediction = predict_pixels(self.method, self.preprocess(image)[None], sizes=[size], words=words)[0]
        if isinstance(source, str | Path):
            prediction.source = str(source)
        else:
            prediction.picture = image
        if not np.isfinite(prediction.score):
            raise ImageError(f"{prediction.source or 'image'} has no finite score: use device='cpu'")
        return prediction

    def predict_folder(
        self, folder: str | Path, *, batch_size: int | None = None, on_error: OnError | None = None
    ) -> Iterator[Prediction]:
        """Yields the predictions of all images below a folder, sorted by path, in constant memory.

        Args:
            folder: searched recursively; one image or a glob pattern will do, too.
            batch_size: images a pass; None takes what suits the device.
            on_error: called with each sample that cannot be used and the reason; None warns.

        Raises:
            DataError: no image is found.
        """
        from zsad.data.loader import expand_inputs

        samples = expand_inputs([folder])
        yield from self.predict_samples(samples, batch_size=batch_size, on_error=on_error)

    def predict_samples(
        self,
        samples: Iterable[Sample],
        *,
        batch_size: int | None = None,
        on_error: OnError | None = None,
    ) -> Iterator[Prediction]:
        """Yields the predictions of samples, in order; arguments as `predict_folder`."""
        yield from predict_samples(
            self.method,
            samples,
            self.preprocess,
            on_error=on_error or _warn,
            batch_size=default_batch_size(self.device) if batch_size is None else batch_size,
        )

    def save(self, path: str | Path) -> Path:
        """Writes the adapter and its card as a checkpoint file or into a folder, and returns the file's path.

        Raises:
            StorageError: the disk is full or cannot be written.
        """
        return save_checkpoint(Path(path), self.method, self.card)


def _warn(sample: Sample, error: ZsadError) -> None:
    warnings.warn(f"skipped: {error}", stacklevel=3)


def load(
    model: str | Path = DEFAULT_MODEL,
    *,
    backbone: str | Path | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
) -> Detector:
    """A detector, ready for images.

    Args:
        model: a run folder, a checkpoint file, a bundled model ("promptmoe-tiny"), or a method that needs no
            training: "clip-tiny" on the bundled backbone, "clip" on any `backbone`.
        backbone: another tower for methods without training, by preset name or path; for a trained model,
            where its own backbone lies.
        weights: file or folder of the backbone's weights, where not bundled or cached.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".

    Raises:
        CheckpointError: no such model, a broken one, or one of another backbone.
        BackboneError: the backbone cannot be loaded.
        ConfigError: the device is not there.

    Example:
        >>> import numpy, zsad
        >>> detector = zsad.load("promptmoe-tiny", device="cpu")
        >>> prediction = detector.predict(numpy.zeros((480, 640), numpy.uint8))
        >>> prediction.map.shape, 0 <= prediction.score <= 1
        ((480, 640), True)
    """
    target = select_device(device)
    path = Path(weights) if weights is not None else None
    untrained = _untrained_method(str(model))
    if untrained is not None:
        return _load_untrained(*untrained, model=str(model), backbone=backbone, weights=path, device=target)
    return _load_trained(model, backbone=backbone, weights=path, device=target)


def untrained_methods() -> list[str]:
    """Names of the methods that find anomalies without training: usable as `load(name, backbone=...)`."""
    from zsad.methods.registry import METHODS

    return sorted(name for name, entry in METHODS.items() if not entry.needs_training)


def _untrained_method(model: str) -> tuple[str, str | None] | None:
    """(method, its default backbone) of a model name that needs no checkpoint, else None."""
    if holds_run(Path(model)):
        return None
    for name in untrained_methods():
        if model == f"{name}-tiny":
            return name, BUNDLED_BACKBONE
        if model == name:
            return name, None
    return None


def _load_untrained(
    name: str,
    default: str | None,
    *,
    model: str,
    backbone: str | Path | None,
    weights: Path | None,
    device: torch.device,
) -> Detector:
    from zsad.clip.weights import load_backbone
    from zsad.methods.registry import build

    wanted = backbone or default
    if wanted is None:
        raise CheckpointError(f"model {model!r} needs a tower: name one with --backbone, or use {model}-tiny")
    tower = load_backbone(wanted, weights=weights, device=device)
    method = build(name, None, tower).to(device)
    preset = tower.preset
    preprocess = Preprocess(image_size=(method.config.image_size,) * 2, mean=preset.mean, std=preset.std)
    card = Card(
        method=name,
        config=method.config.model_dump(mode="json"),
        backbone=BackboneReference(name=tower.name, sha256=tower.sha256),
        preprocess=preprocess.to_dict(),
        map_spec=method.map_spec,
        created="",
    )
    return Detector(method, card, name=model)


def _load_trained(
    model: str | Path, *, backbone: str | Path | None, weights: Path | None, device: torch.device
) -> Detector:
    from zsad.clip.presets import preset_names
    from zsad.clip.weights import load_backbone

    tower = None
    if backbone is not None or weights is not None:
        own = read_card(resolve_model(model)).backbone
        given = str(backbone or own.name)
        known = preset_names()
        # Two presets differ for certain: refused before gigabytes are fetched.
        if given != own.name and given in known and own.name in known:
            raise _other_backbone(model, own, given)
        tower = load_backbone(given, weights=weights, device=device)
        if tower.sha256 != own.sha256:
            raise _other_backbone(model, own, f"{given} (sha256 {tower.sha256[:12]})")
    method, card = build_method(model, backbone=tower, device=device)
    return Detector(method, card, name=str(model))


def _other_backbone(model: str | Path, own: BackboneReference, given: str) -> CheckpointError:
    return CheckpointError(
        f"model {str(model)!r} was trained on backbone {own.name} (sha256 {own.sha256[:12]}), not on {given}; "
        "leave out --backbone, or use a method without training such as --model clip"
    )
