"""Thresholds of image scores and map values from normal images, or of image scores from labelled ones.

Thresholds from normal images are order statistics with exact bounds (`zsad.calibration.conformal`):

* image: a normal image exceeds the threshold at most at the target rate. Above it the verdict is "anomalous".
* pixel, rule "maxima" (the default): the same for the highest map value of each image, so that a normal image has a
  region at most at that rate. Images are exchangeable, pixels are not.
* pixel, rule "pixels": on average over normal images, at most that share of an image's pixels exceeds the threshold
  (conformal risk control: Angelopoulos et al., ICLR 2024, Eq. 4). It is lower, so that normal images may show regions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from zsad.calibration.conformal import check_confidence, check_rate, check_scores, promised_rate, upper_limit
from zsad.errors import CalibrationError
from zsad.predict.prediction import as_written

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from zsad.predict.prediction import Prediction

BINS = 8192
"""Histogram bins of map values in [0, 1]; thresholds by the rule "pixels" are rounded up to bin edges."""

PixelRule = Literal["maxima", "pixels"]
_SMALLEST, _EQUAL, _MANY = 1e-9, 1e-9, 10**9


class Frozen(BaseModel):
    """Base class of the parts of a calibration: immutable, without unknown keys, with finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


class CalibrationTarget(Frozen):
    """Error rates that a calibration should guarantee."""

    target_fpr: float = Field(default=0.01, description="Rate of normal images that may be called anomalous.")
    pixel_fpr: float | None = Field(
        default=None, description="The same for the pixel threshold; by default equal."
    )
    confidence: float = Field(
        default=0.95, description="Of the promise for this calibration; 0: on average over calibrations."
    )
    pixel_rule: PixelRule = Field(default="maxima", description="What the pixel threshold is taken from.")
    goal: str = Field(default="f1", description="With labelled images: f1, or recall=0.99.")

    @property
    def pixel_target(self) -> float:
        """Target rate of the pixel threshold."""
        return self.target_fpr if self.pixel_fpr is None else self.pixel_fpr

    @classmethod
    def of(cls, **fields: Any) -> CalibrationTarget:
        """Return a checked target; CalibrationError for an unknown field or a number out of range."""
        try:
            return cls(**fields).check()
        except ValidationError as error:
            first = error.errors()[0]
            name, known = ".".join(map(str, first["loc"])), ", ".join(cls.model_fields)
            raise CalibrationError(
                f"{name} = {first['input']!r} is no possible wish: {first['msg'].lower()}; wishes are {known}"
            ) from None

    def check(self) -> CalibrationTarget:
        """Return self; CalibrationError if a number is out of range."""
        check_rate(self.target_fpr, name="target false-positive rate")
        check_rate(self.pixel_target, name="pixel false-positive rate")
        check_confidence(self.confidence)
        parse_goal(self.goal)
        return self


def threshold_as_written(value: float) -> float:
    """Return the number of nine digits that parts all scores as `value` does; see `as_written`.

    Scores are float32 in that form. A value between two of them becomes the lower one, so that a threshold just below a
    score stays below it.

    Example:
        >>> threshold_as_written(0.174158454), threshold_as_written(0.17415846), threshold_as_written(0.17415845999)
        (0.174158454, 0.174158454, 0.174158454)
    """
    nearest = np.float32(value)
    written = as_written(float(nearest))
    just_below = float(np.nextafter(value, np.inf)) == float(nearest)
    if float(nearest) == value or (written <= value and not just_below):
        return written
    return as_written(float(np.nextafter(nearest, np.float32(-np.inf))))


class Threshold(Frozen):
    """A threshold and its guarantee."""

    value: float = Field(allow_inf_nan=False, description="Above it is anomalous.")
    rule: Literal["normals", "maxima", "pixels", "f1", "recall"] = Field(description="How it was chosen.")
    target: float | None = Field(description="False alarm rate or recall wished for; None for F1.")
    promised: float | None = Field(
        description="False alarm rate that is not exceeded (by rule recall: the recall reached at least), with the "
        "calibration's confidence; None where nothing is promised."
    )
    met: bool = Field(description="Whether there were images enough to promise the target.")

    @field_validator("value")
    @classmethod
    def _written(cls, value: float) -> float:
        return threshold_as_written(value)

    @model_validator(mode="after")
    def _agrees(self) -> Threshold:
        """Refuse a target, a guarantee and a word on whether the one is met by the other that contradict each other."""
        if self.rule == "f1":
            if self.target is not None or self.promised is not None:
                raise ValueError("rule f1 has no target and guarantees nothing, expected null for both")
            return self
        if self.target is None or not _SMALLEST <= self.target <= 1 - _SMALLEST:
            raise ValueError(f"target is {self.target}, expected a share above 0 and below 1")
        if self.promised is None or not 0 <= self.promised <= 1:
            raise ValueError(f"promised is {self.promised}, expected a share for rule {self.rule}")
        margin = self.promised - self.target if self.rule == "recall" else self.target - self.promised
        if margin < -_EQUAL if self.met else margin > _EQUAL:
            raise ValueError(
                f"met is {self.met}, but rule {self.rule} guarantees {self.promised} for a target of {self.target}"
            )
        return self


class Labelled(Frozen):
    """Results of an image threshold on the labelled images it was chosen from."""

    normal: int = Field(ge=1, le=_MANY, description="Normal images.")
    anomalous: int = Field(ge=1, le=_MANY, description="Anomalous images.")
    false_alarms: int = Field(ge=0, description="Normal images above the threshold.")
    detected: int = Field(
        ge=0,
        validation_alias="found",
        serialization_alias="found",
        description="Anomalous images above the threshold.",
    )

    @model_validator(mode="after")
    def _possible(self) -> Labelled:
        if self.false_alarms > self.normal or self.detected > self.anomalous:
            raise ValueError(
                f"{self.false_alarms} of {self.normal} normal and {self.detected} of {self.anomalous} anomalous images "
                "cannot lie above the threshold"
            )
        return self


class NormalScores:
    """Scores, highest map values and one common histogram of the maps of normal images."""

    def __init__(self) -> None:
        self.scores: list[float] = []
        self.peaks: list[float] = []
        self._shares = np.zeros(BINS)

    def add(self, prediction: Prediction) -> None:
        """Add a prediction, whose region of interest is already set."""
        values = prediction.canonical_map()
        inside = prediction.inside(values.shape)
        selected = values if inside is None else values[inside]
        self.scores.append(prediction.score)
        self.peaks.append(as_written(float(selected.max())))
        bins = np.clip((selected.ravel() * np.float32(BINS)).astype(np.int64), 0, BINS - 1)
        self._shares += np.bincount(bins, minlength=BINS) / selected.size

    def image_threshold(self, target: CalibrationTarget) -> Threshold:
        """Return the threshold of image scores."""
        return _order_statistic(self.scores, target.target_fpr, target.confidence, rule="normals")

    def pixel_threshold(self, target: CalibrationTarget) -> Threshold:
        """Return the threshold of map values by the rule of the target."""
        if target.pixel_rule == "maxima":
            return _order_statistic(self.peaks, target.pixel_target, target.confidence, rule="maxima")
        return _pixel_risk(self._shares, check_scores(self.peaks, what="maps"), target.pixel_target)


def _order_statistic(
    values: Sequence[float], target: float, confidence: float, *, rule: Literal["normals", "maxima"]
) -> Threshold:
    limit = upper_limit(values, target=target, confidence=confidence)
    return Threshold(value=limit.value, rule=rule, target=target, promised=limit.rate, met=limit.met)


def _pixel_risk(shares: NDArray[np.float64], peaks: NDArray[np.float64], target: float) -> Threshold:
    """Return the lowest t with (sum of shares above t + 1) / (n + 1) <= target (conformal risk control)."""
    check_rate(target, name="target rate")
    count = peaks.size
    # Share of pixels above the lower edge of each bin, summed over images; none lie above 1.
    above = np.concatenate((np.cumsum(shares[::-1])[::-1], [0.0]))
    risk = (above + 1) / (count + 1)
    admissible = np.flatnonzero(risk <= target * (1 + 1e-12))
    if admissible.size == 0:
        rate = promised_rate(count, 0.0)
        return Threshold(value=float(peaks[-1]), rule="pixels", target=target, promised=rate, met=False)
    value = min(float(admissible[0]) / BINS, float(peaks[-1]))
    return Threshold(value=value, rule="pixels", target=target, promised=target, met=True)


def parse_goal(goal: str) -> float | None:
    """Return the recall of "recall=0.99", None for "f1"; CalibrationError for anything else."""
    name, _, number = goal.strip().lower().partition("=")
    if name == "f1" and not number:
        return None
    try:
        if name == "recall" and 0 < float(number) < 1:
            return float(number)
    except ValueError:
        pass
    raise CalibrationError(f"goal is {goal!r}, expected f1, or recall=0.99 (above 0 and below 1)")


def labelled_threshold(
    normal: Sequence[float], anomalous: Sequence[float], *, goal: str, confidence: float
) -> tuple[Threshold, Labelled]:
    """Compute the image threshold from labelled images.

    With recall=r it is the highest threshold that anomalous images fail to exceed at most at the rate 1 - r: the order
    statistic for normals with the sign reversed. With f1 it lies midway between the scores around the best cut.

    Raises:
        CalibrationError: a label is missing, all scores are equal, a score is NaN, or the goal is unknown.
    """
    recall = parse_goal(goal)
    below = check_scores(normal, what="scores of labelled normal images")
    above = check_scores(anomalous, what="scores of labelled anomalous images")
    if min(below[0], above[0]) == max(below[-1], above[-1]):
        raise CalibrationError(
            f"all {below.size + above.size} labelled images have the score {below[0]:.4g}, so no threshold parts them; "
            "check the model and the images"
        )
    if recall is None:
        threshold = Threshold(value=_best_f1(below, above), rule="f1", target=None, promised=None, met=True)
    else:
        limit = upper_limit(-above, target=1 - recall, confidence=confidence)
        value = float(np.nextafter(-limit.value, -np.inf))  # the image at the limit is detected, too
        threshold = Threshold(
            value=value, rule="recall", target=recall, promised=1 - limit.rate, met=limit.met
        )
    hits = [int((scores > threshold.value).sum()) for scores in (below, above)]
    return threshold, Labelled(
        normal=below.size, anomalous=above.size, false_alarms=hits[0], detected=hits[1]
    )


def _best_f1(below: NDArray[np.float64], above: NDArray[np.float64]) -> float:
    """Return the threshold of the best F1; of equally good ones the highest."""
    both = np.unique(np.concatenate([below, above]))
    # Candidate cuts lie just below each score: this score and all higher ones are anomalous.
    hits = above.size - np.searchsorted(above, both, side="left")
    alarms = below.size - np.searchsorted(below, both, side="left")
    f1 = 2 * hits / (hits + alarms + above.size)
    best = int(np.flatnonzero(f1 >= f1.max() - 1e-12)[-1])
    lowest = best == 0
    return float(np.nextafter(both[0], -np.inf) if lowest else (both[best - 1] + both[best]) / 2)
