"""Calibrations: thresholds of one model and the scores of normal images they were computed from.

A calibration is a JSON file outside the model, tied to it by a hash. It contains the scores of all normal images, which
p-values and drift tests need. `zsad.calibration.thresholds` describes how the thresholds are computed.
"""

from __future__ import annotations

import hashlib
import math
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, ValidationError, field_validator, model_validator

import zsad
from zsad.calibration.conformal import p_value, scores_needed, share_interval
from zsad.calibration.thresholds import (
    CalibrationTarget,
    Frozen,
    Labelled,
    NormalScores,
    Threshold,
    labelled_threshold,
)
from zsad.errors import CalibrationError
from zsad.files import parse_document, write_text
from zsad.predict.prediction import as_written
from zsad.predict.roi import RegionOfInterest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zsad.predict.prediction import Prediction
    from zsad.predict.view import InputOptions, Model

FORMAT = 1
_AGAIN = "run zsad calibrate again"


class ModelKey(Frozen):
    """The model that a calibration belongs to."""

    identity: str = Field(
        description="Hash of configuration, backbone, preprocessing and the adapter's tensors."
    )
    name: str = Field(description="By which it was asked for.")
    method: str
    backbone: str


def model_key(model: Model, options: InputOptions) -> ModelKey:
    """Return what a calibration knows a model by, with the input options that change its scores."""
    card = model.card
    return ModelKey(
        identity=model.identity(options), name=model.name, method=card.method, backbone=card.backbone.name
    )


class Calibration(Frozen):
    """Thresholds of one model, and the normal scores they were computed from."""

    format: int = FORMAT
    zsad: str = zsad.__version__
    model: ModelKey
    object_name: str | None = Field(
        default=None,
        validation_alias="shows",
        serialization_alias="shows",
        description="What the images show, where prompts name it.",
    )
    region: RegionOfInterest | None = Field(default=None, description="Where anomalies count.")
    confidence: float = Field(ge=0, lt=1, description="Of the promises; 0: on average over calibrations.")
    image: Threshold
    pixel: Threshold
    scores: tuple[float, ...] = Field(min_length=1, description="Image scores of the normals, rising.")
    peaks: tuple[float, ...] = Field(min_length=1, description="Highest map values of the normals, rising.")
    labelled: Labelled | None = None
    created: str = Field(
        default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"),
        description="Date and time, UTC.",
    )

    @field_validator("scores", "peaks")
    @classmethod
    def _written(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(map(as_written, values))

    @model_validator(mode="after")
    def _consistent(self) -> Calibration:
        if self.image.rule not in ("normals", "f1", "recall") or self.pixel.rule not in ("maxima", "pixels"):
            raise ValueError(
                f"rules {self.image.rule} and {self.pixel.rule} do not go with images and pixels"
            )
        if (self.labelled is None) is not (self.image.rule == "normals"):
            raise ValueError(f"labelled is {self.labelled}, which does not go with rule {self.image.rule}")
        for name in ("scores", "peaks"):
            values = getattr(self, name)
            if any(later < earlier for earlier, later in pairwise(values)):
                raise ValueError(f"{name} do not rise")
        if len(self.scores) != len(self.peaks):
            raise ValueError(f"{len(self.scores)} scores and {len(self.peaks)} peaks")
        return self

    @property
    def pixel_threshold(self) -> float:
        """The map value above which regions lie."""
        return self.pixel.value

    def p_value(self, score: float) -> float:
        """Return the probability that a normal image scores as high; never below 1 / (normals + 1)."""
        return p_value(np.asarray(self.scores), score)

    def verdict(self, score: float) -> Literal["normal", "anomalous"]:
        """Return "anomalous" if the score exceeds the image threshold; CalibrationError if it is NaN."""
        if math.isnan(score):
            raise CalibrationError("the score is NaN, expected a number; check the model's output")
        return "anomalous" if score > self.image.value else "normal"

    def judge(self, prediction: Prediction) -> Prediction:
        """Set verdict, p-value and thresholds of a prediction of the calibrated model, and return it."""
        prediction.verdict = self.verdict(prediction.score)
        prediction.p_value = self.p_value(prediction.score)
        prediction.threshold = self.image.value
        prediction.pixel_threshold = self.pixel.value
        return prediction

    def digest(self) -> str:
        """Return 16 hexadecimal digits of a hash of everything but the date."""
        content = self.model_dump_json(exclude={"created"}, by_alias=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def check_model(self, key: ModelKey, *, where: str = "the calibration") -> None:
        """Raise CalibrationError unless `key` is the model the calibration was made with."""
        if key.identity != self.model.identity:
            same_method = (key.method, key.backbone) == (self.model.method, self.model.backbone)
            other = "with other weights or settings " if same_method else ""
            raise CalibrationError(
                f"{where} was made for {self.model.name} ({self.model.method} on {self.model.backbone}, "
                f"{self.model.identity[:8]}), not for {key.name} ({key.method} on {key.backbone}, {key.identity[:8]}) "
                f"{other}in use; run zsad calibrate for it (with the same --tile, --keep-aspect and --references), "
                f"or go without by --calibration none"
            )

    def summary(self) -> list[str]:
        """Return the guarantees as lines of text."""
        lines = [
            f"image threshold {self.image.value:.4f}: {_guarantee(self.image, self.confidence)}",
            f"pixel threshold {self.pixel.value:.4f}: {_guarantee(self.pixel, self.confidence)}",
        ]
        if self.labelled is not None:
            lines += _labelled_lines(self.labelled)
        return lines

    def warnings(self) -> list[str]:
        """Return lines about targets that need more images, with the number needed."""
        lines = []
        for threshold, rate in (
            (self.image, "false-positive rate"),
            (self.pixel, "pixel false-positive rate"),
        ):
            if threshold.met or threshold.target is None or threshold.promised is None:
                continue
            if threshold.rule == "recall":
                needed = scores_needed(1 - threshold.target, self.confidence)
                lines.append(
                    f"the largest recall that can be promised{_by(self.confidence)} is {_percent(threshold.promised)}; "
                    f"{_percent(threshold.target)} needs {needed:,} anomalous images"
                )
                continue
            confidence = 0.0 if threshold.rule == "pixels" else self.confidence
            lines.append(
                f"with {len(self.scores):,} normals the smallest {rate} that can be promised{_by(confidence)} is "
                f"{_percent(threshold.promised)}; {_percent(threshold.target)} needs "
                f"{scores_needed(threshold.target, confidence):,} normals; the highest normal is taken as the threshold"
            )
        return lines


def _by(confidence: float) -> str:
    return f" at {100 * confidence:g} % confidence" if confidence else " on average"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _guarantee(threshold: Threshold, confidence: float) -> str:
    if threshold.rule == "f1":
        return "the best F1 of the labelled images; promises nothing"
    assert threshold.promised is not None  # only F1 has no guarantee
    if threshold.rule == "recall":
        return f"finds at least {_percent(threshold.promised)} of anomalous images{_by(confidence)}"
    most = _percent(threshold.promised)
    if threshold.rule == "pixels":
        return f"at most {most} of a normal image's pixels lie above it, on average"
    event = "have a region above it" if threshold.rule == "maxima" else "lie above it"
    return f"at most {most} of normal images {event}{_by(confidence)}"


def _labelled_lines(counts: Labelled) -> list[str]:
    lines = []
    for hits, total, outcome in (
        (counts.detected, counts.anomalous, "anomalous images found"),
        (counts.false_alarms, counts.normal, "normal images above it"),
    ):
        low, high = share_interval(hits, total)
        lines.append(
            f"on the labelled images it was chosen from: {hits} of {total} {outcome} "
            f"({_percent(low)} to {_percent(high)} at 95 % confidence)"
        )
    return lines


def make_calibration(
    normals: NormalScores,
    target: CalibrationTarget,
    *,
    model: ModelKey,
    object_name: str | None = None,
    region: RegionOfInterest | None = None,
    labelled: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Calibration:
    """Compute thresholds and return the calibration.

    Args:
        normals: scores of normal images.
        target: the guarantees to meet.
        model: the model of the scores.
        object_name: what the images show.
        region: where anomalies count.
        labelled: scores of labelled normal and anomalous images, from which the image threshold is then chosen.

    Raises:
        CalibrationError: no normal image, a label is missing, or a number is out of range.
    """
    target.check()
    pixel, counts = normals.pixel_threshold(target), None
    if labelled is None:
        image = normals.image_threshold(target)
    else:
        image, counts = labelled_threshold(*labelled, goal=target.goal, confidence=target.confidence)
    return Calibration(
        model=model,
        object_name=object_name,
        region=region,
        confidence=target.confidence,
        image=image,
        pixel=pixel,
        scores=tuple(sorted(normals.scores)),
        peaks=tuple(sorted(normals.peaks)),
        labelled=counts,
    )


def write_calibration(calibration: Calibration, path: Path) -> Path:
    """Write a calibration as JSON, atomically; StorageError if the disk is full or cannot be written."""
    write_text(path, calibration.model_dump_json(indent=1, by_alias=True) + "\n")
    return path


def read_calibration(path: str | Path) -> Calibration:
    """Read a calibration; CalibrationError if it is missing or as `parse_calibration`."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise CalibrationError(
            f"calibration {path} cannot be read ({error.strerror or error}); check the path, or {_AGAIN}"
        ) from error
    return parse_calibration(content, name=f"calibration {path}")


def parse_calibration(content: str | bytes, *, name: str = "the calibration") -> Calibration:
    """Parse the JSON of a calibration; `name` is used in messages.

    Raises:
        CalibrationError: not JSON, of a newer zsad, or not a calibration.
    """
    try:
        values: Any = parse_document(content)
    except ValueError as error:
        raise CalibrationError(f"{name} is not JSON; {_AGAIN}") from error
    written = values.get("format") if isinstance(values, dict) else None
    if isinstance(written, int) and written > FORMAT:
        raise CalibrationError(
            f"{name} has format {written}, this zsad reads up to {FORMAT}; pip install -U zsad"
        )
    try:
        return Calibration.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise CalibrationError(
            f"{name} is no calibration: {where}: {first['msg'].lower()}; {_AGAIN}"
        ) from error
