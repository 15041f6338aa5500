"""Model and view: the two immutable things that turn pictures into predictions.

A model says what is scored with; a view says how pictures are put before it and how its scores are judged. Both can be
shared by any number of threads, since nobody changes them: another setting is another view.
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from zsad.backends.backend import Backend
from zsad.card import Card
from zsad.errors import ConfigError
from zsad.images.picture import Preprocess
from zsad.images.pixels import PLAIN, Reading

if TYPE_CHECKING:
    from zsad.methods.base import Method
    from zsad.predict.prediction import Prediction
    from zsad.predict.roi import RegionOfInterest
    from zsad.predict.tiles import Tiling
    from zsad.types import Domain


CALIBRATION_FILE = "calibration.json"


def calibration_beside(checkpoint: Path) -> Path:
    """Return the path of a checkpoint's calibration: `calibration.json`, or `STEM.calibration.json`."""
    prefix = "" if checkpoint.stem == "model" else f"{checkpoint.stem}."
    return checkpoint.parent / f"{prefix}{CALIBRATION_FILE}"


@dataclass(frozen=True)
class Model:
    """A model, ready to run.

    Attributes:
        backend: runs it: PyTorch, or the runtime of an exported graph.
        card: method, configuration, backbone, preprocessing, training.
        name: the name it was asked for by.
        file: weights or graph, beside which a calibration may lie; None for a method without training.
        object_name: the object that prompts inside an exported graph name; None elsewhere.
    """

    backend: Backend
    card: Card
    name: str = "model"
    file: Path | None = None
    object_name: str | None = None

    @cached_property
    def preprocess(self) -> Preprocess:
        """The preprocessing that the model was trained with."""
        return Preprocess.from_dict(self.card.preprocess)

    @property
    def calibration_file(self) -> Path | None:
        """The file where the model's calibration lies, if it has one; None for a model without a file."""
        return None if self.file is None else calibration_beside(self.file)

    @property
    def method(self) -> Method:
        """The method itself.

        Raises:
            ConfigError: the model is an exported graph, which has none.
        """
        method: Method | None = getattr(self.backend, "method", None)
        if method is None:
            raise ConfigError(
                f"{self.name} is an exported graph, this needs the method itself; give the model it was made from"
            )
        return method

    @property
    def comparison(self) -> Any:
        """The images that pictures are compared with (`zsad.comparison`); None: each picture is scored alone."""
        return getattr(self.backend, "comparison", None)

    @property
    def score_settings(self) -> dict[str, Any]:
        """Settings that say how a score is made of the map; none where a comparison has a part in the score."""
        return {} if self.comparison is not None else dict(self.card.config)

    def for_domain(self, domain: Domain | None) -> Model:
        """Return the model for industrial or medical images, with its tensors shared; itself where that is no matter.

        Raises:
            ConfigError: the model is an exported graph, which holds the settings of another domain.
        """
        if domain is None or self.card.config.get("domain", domain) == domain:
            return self
        method = self.method.for_domain(domain)
        backend = copy.copy(self.backend)
        backend.method = method  # type: ignore[attr-defined]  # `method` came from it
        changes = {"config": method.config.model_dump(mode="json"), "map_spec": method.map_spec}
        return replace(self, backend=backend, card=self.card.model_copy(update=changes))

    def identity(self, options: InputOptions) -> str:
        """Return a short hash of all that decides a score.

        That is configuration, backbone, preprocessing, the adapter's tensors, input options, and the images that
        pictures are compared with.
        """
        identity = self.backend.identity(self.card)
        extra = options.to_dict()
        if self.comparison is not None:
            extra["compared"] = self.comparison.digest()
        if not extra:
            return identity
        return hashlib.sha256(json.dumps([identity, extra], sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class InputOptions:
    """Input settings that change scores, so that a calibration holds for them alone.

    Attributes:
        tiling: how large pictures are cut into tiles; None: not at all.
        keep_aspect: resize to a rectangle of the picture's own proportions instead of a square, with about as many
            pixels; position embeddings are interpolated to it. Needs the method itself, not an exported graph.
        reading: depth, transparency, DICOM window.
    """

    tiling: Tiling | None = None
    keep_aspect: bool = False
    reading: Reading = PLAIN

    def to_dict(self) -> dict[str, Any]:
        """Return what differs from the defaults, as plain JSON values."""
        values: dict[str, Any] = {}
        if self.tiling is not None:
            values["tile"] = self.tiling.to_dict()
        if self.keep_aspect:
            values["keep_aspect"] = True
        if reading := self.reading.to_dict():
            values["reading"] = reading
        return values


class Thresholds(Protocol):
    """Thresholds that give predictions a verdict; `zsad.calibration.calibration.Calibration` has them."""

    @property
    def region(self) -> RegionOfInterest | None:
        """Region of interest that the thresholds hold for."""

    @property
    def object_name(self) -> str | None:
        """Object that prompts named when the thresholds were found."""

    @property
    def pixel_threshold(self) -> float:
        """Map value above which regions lie."""

    def judge(self, prediction: Prediction) -> Prediction:
        """Set verdict, p-value and thresholds of a prediction, and return it."""


@dataclass(frozen=True, slots=True)
class View:
    """Options by which pictures are read and scores judged.

    Attributes:
        options: tiles, proportions, reading.
        object_name: object in the pictures, for methods whose prompts name it, where a sample does not name it.
        region: region of interest; None: the whole picture.
        min_area: regions of fewer pixels of the original image are left out.
        pixel_threshold: map value above which regions lie; None: the calibration's, and without one no regions.
        calibration: gives predictions a verdict; None: scores only.
    """

    options: InputOptions = field(default_factory=InputOptions)
    object_name: str | None = None
    region: RegionOfInterest | None = None
    min_area: float = 0.0
    pixel_threshold: float | None = None
    calibration: Thresholds | None = None

    def calibrated(self, calibration: Thresholds | None) -> View:
        """Return this view with a calibration, and the region and object name that it holds for."""
        if calibration is None:
            return replace(self, calibration=None)
        return replace(
            self,
            calibration=calibration,
            region=calibration.region,
            object_name=calibration.object_name,
        )

    def without_thresholds(self) -> View:
        """Return this view without anything that gives verdicts or regions."""
        return replace(self, calibration=None, pixel_threshold=None)

    @property
    def map_threshold(self) -> float | None:
        """The map value above which regions lie: one's own, else the calibration's, else None."""
        if self.pixel_threshold is not None or self.calibration is None:
            return self.pixel_threshold
        return self.calibration.pixel_threshold
