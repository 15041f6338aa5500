"""A calibration: thresholds of one model and the normal scores they come from; verdicts and p-values by it.

It is kept outside the model, as JSON, and knows by a hash which model it belongs to. All normal scores are kept:
p-values and tests for drift need them. How thresholds are found stands in `zsad.calibration.thresholds`.
"""

from __future__ import annotations

import hashlib
import math
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

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
from zsad.predict.roi import RegionOfInterest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zsad.predict.prediction import Prediction

FORMAT = 1
CALIBRATION_FILE = "calibration.json"
_AGAIN = "run zsad calibrate again"


class ModelKey(Frozen):
    """The model that scores are comparable for: all that decides a score."""

    identity: str = Field(
        description="Hash of configuration, backbone, preprocessing and the adapter's tensors."
    )
    name: str = Field(description="By which it was asked for.")
    method: str
    backbone: str


class Calibration(Frozen):
    """Thresholds of one model, and the normal scores they come from."""

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

    @model_validator(mode="after")
    def _consistent(self) -> Calibration:
        for name in ("scores", "peaks"):
            values = getattr(self, name)
            if any(later < earlier for earlier, later in pairwise(values)):
                raise ValueError(f"{name} do not rise")
        if len(self.scores) != len(self.peaks):
            raise ValueError(f"{len(self.scores)} scores and {len(self.peaks)} peaks")
        return self

    def p_value(self, score: float) -> float:
        """How often a normal image would score as high: small is suspicious; never below 1 / (normals + 1)."""
        return p_value(np.asarray(self.scores), score)

    def verdict(self, score: float) -> Literal["normal", "anomalous"]:
        """ "anomalous" where the score exceeds the image threshold.

        Raises:
            CalibrationError: the score is NaN.
        """
        if math.isnan(score):
            raise CalibrationError("the score is NaN, expected a number; check the model's output")
        return "anomalous" if score > self.image.value else "normal"

    def judge(self, prediction: Prediction) -> Prediction:
        """Puts verdict, p-value and thresholds into a prediction of the calibrated model, and returns it."""
        prediction.verdict = self.verdict(prediction.score)
        prediction.p_value = self.p_value(prediction.score)
        prediction.threshold = self.image.value
        prediction.pixel_threshold = self.pixel.value
        return prediction

    def digest(self) -> str:
        """16 hexadecimal digits of all but the date."""
        content = self.model_dump_json(exclude={"created"}, by_alias=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def check_model(self, key: ModelKey, *, where: str = "the calibration") -> None:
        """Refuses another model than the one it was made with.

        Raises:
            CalibrationError: another one.
        """
        if key.identity != self.model.identity:
            same = (key.method, key.backbone) == (self.model.method, self.model.backbone)
            how = "with other weights or settings " if same else ""
            raise CalibrationError(
                f"{where} was made for {self.model.name} ({self.model.method} on {self.model.backbone}, "
                f"{self.model.identity[:8]}), not for {key.name} ({key.method} on {key.backbone}, {key.identity[:8]}) "
                f"{how}in use; run zsad calibrate for it (with the same --tile, --keep-aspect and --references), "
                f"or go without by --calibration none"
            )

    def summary(self) -> list[str]:
        """What it promises, in lines for people."""
        lines = [
            f"image threshold {self.image.value:.4f}: {_promise(self.image, self.confidence, 'images')}",
            f"pixel threshold {self.pixel.value:.4f}: {_promise(self.pixel, self.confidence, 'images')}",
        ]
        if self.labelled is not None:
            lines += _labelled_lines(self.labelled)
        return lines

    def warnings(self) -> list[str]:
        """What the images were too few for, and how many it takes."""
        lines = []
        for threshold, what in (
            (self.image, "false-positive rate"),
            (self.pixel, "pixel false-positive rate"),
        ):
            if threshold.met or threshold.target is None or threshold.promised is None:
                continue
            if threshold.rule == "recall":
                wanted = scores_needed(1 - threshold.target, self.confidence)
                lines.append(
                    f"the largest recall that can be promised{_by(self.confidence)} is {_percent(threshold.promised)}; "
                    f"{_percent(threshold.target)} needs {wanted:,} anomalous images"
                )
                continue
            confidence = 0.0 if threshold.rule == "pixels" else self.confidence
            lines.append(
                f"with {len(self.scores):,} normals the smallest {what} that can be promised{_by(confidence)} is "
                f"{_percent(threshold.promised)}; {_percent(threshold.target)} needs "
                f"{scores_needed(threshold.target, confidence):,} normals; the highest normal is taken as the threshold"
            )
        return lines


def _by(confidence: float) -> str:
    return f" at {100 * confidence:g} % confidence" if confidence else " on average"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _promise(threshold: Threshold, confidence: float, unit: str) -> str:
    if threshold.rule == "f1":
        return "the best F1 of the labelled images; promises nothing"
    assert threshold.promised is not None  # only F1 has none
    if threshold.rule == "recall":
        return f"finds at least {_percent(threshold.promised)} of anomalous images{_by(confidence)}"
    most = _percent(threshold.promised)
    if threshold.rule == "pixels":
        return f"at most {most} of a normal image's pixels lie above it, on average"
    what = "have a region above it" if threshold.rule == "maxima" else "lie above it"
    return f"at most {most} of normal {unit} {what}{_by(confidence)}"


def _labelled_lines(seen: Labelled) -> list[str]:
    lines = []
    for hits, total, what in (
        (seen.found, seen.anomalous, "anomalous images found"),
        (seen.false_alarms, seen.normal, "normal images above it"),
    ):
        low, high = share_interval(hits, total)
        lines.append(
            f"on the labelled images it was chosen from: {hits} of {total} {what} "
            f"({_percent(low)} to {_percent(high)} at 95 % confidence)"
        )
    return lines


def make_calibration(
    normals: NormalScores,
    wish: CalibrationTarget,
    *,
    model: ModelKey,
    object_name: str | None = None,
    region: RegionOfInterest | None = None,
    labelled: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Calibration:
    """The calibration that follows from what was collected.

    Args:
        normals: of normal images.
        wish: what it is to promise.
        model: that gave the scores.
        object_name: what the images show.
        region: where anomalies count.
        labelled: scores of labelled normal and anomalous images, on which the image threshold is then chosen.

    Raises:
        CalibrationError: no normal image, a label is missing, or impossible numbers.
    """
    wish.check()
    pixel, seen = normals.pixel_threshold(wish), None
    if labelled is None:
        image = normals.image_threshold(wish)
    else:
        image, seen = labelled_threshold(*labelled, goal=wish.goal, confidence=wish.confidence)
    return Calibration(
        model=model,
        object_name=object_name,
        region=region,
        confidence=wish.confidence,
        image=image,
        pixel=pixel,
        scores=tuple(sorted(normals.scores)),
        peaks=tuple(sorted(normals.peaks)),
        labelled=seen,
    )


def beside(checkpoint: Path) -> Path:
    """Where the calibration of a checkpoint lies: `calibration.json`, named after a file that is not the usual one."""
    own = "" if checkpoint.stem == "model" else f"{checkpoint.stem}."
    return checkpoint.parent / f"{own}{CALIBRATION_FILE}"


def write_calibration(calibration: Calibration, path: Path) -> Path:
    """Writes it as JSON, atomically, and returns the path.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    write_text(path, calibration.model_dump_json(indent=1, by_alias=True) + "\n")
    return path


def read_calibration(path: str | Path) -> Calibration:
    """Reads a calibration.

    Raises:
        CalibrationError: missing, no JSON, of a newer zsad, or no calibration.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise CalibrationError(
            f"calibration {path} cannot be read ({error.strerror or error}); check the path, or {_AGAIN}"
        ) from error
    return parse_calibration(content, name=f"calibration {path}")


def parse_calibration(content: str | bytes, *, name: str = "the calibration") -> Calibration:
    """A calibration of its JSON; `name` is what messages call it.

    Raises:
        CalibrationError: no JSON, of a newer zsad, or no calibration.
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
