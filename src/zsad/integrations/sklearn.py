"""A detector with the interface of scikit-learn's outlier detectors, fitted on normal images.

As in scikit-learn, high scores are normal. `offset_` is the calibrated threshold, so that
`decision_function = score_samples - offset_`, and `predict` returns -1 where that is negative.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zsad.calibration.calibration import Calibration, make_calibration
from zsad.calibration.thresholds import CalibrationTarget, NormalScores
from zsad.errors import ConfigError, DataError

try:
    from sklearn.base import BaseEstimator, OutlierMixin
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ConfigError("this needs scikit-learn, get it with: pip install scikit-learn") from error

if TYPE_CHECKING:
    from zsad.detector import Detector
    from zsad.images.open import Source

Float64 = npt.NDArray[np.float64]


class ImageOutlierDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Zero-shot anomaly detection as a scikit-learn estimator; `fit` calibrates, the model is not trained.

    Images are a sequence of paths, Pillow images or arrays, or one array (n, H, W, 3).

    Args:
        model: as in `zsad.load`.
        backbone: as in `zsad.load`.
        device: as in `zsad.load`.
        object_name: what the images show, for methods whose prompts name it.
        target_fpr: rate of normal images that may be called anomalous.
        confidence: of that rate; 0 guarantees it on average over calibrations.

    Attributes:
        detector_: the loaded model, with the calibration.
        calibration_: thresholds and their guarantees.
        offset_: the negative threshold.

    Example:
        >>> images = np.random.default_rng(0).integers(90, 110, (6, 64, 64, 3), np.uint8)
        >>> estimator = ImageOutlierDetector(target_fpr=0.3, confidence=0, device="cpu").fit(images)
        >>> estimator.predict(images[:2]).shape, bool((estimator.score_samples(images) <= 0).all())
        ((2,), True)
    """

    def __init__(
        self,
        model: str | Path = "promptmoe-tiny",
        *,
        backbone: str | Path | None = None,
        device: str = "auto",
        object_name: str | None = None,
        target_fpr: float = 0.01,
        confidence: float = 0.95,
    ) -> None:
        # By scikit-learn's convention nothing is checked or loaded before `fit`.
        self.model = model
        self.backbone = backbone
        self.device = device
        self.object_name = object_name
        self.target_fpr = target_fpr
        self.confidence = confidence

    def fit(self, X: Sequence[Source] | npt.NDArray[Any], y: Any = None) -> ImageOutlierDetector:
        """Calibrate on normal images; return self.

        Args:
            X: normal images.
            y: not used.

        Raises:
            CalibrationError: no image, or a number out of range.
            ImageError: an image cannot be used.
            ZsadError: the model cannot be loaded.
        """
        from zsad.loading import load

        target = CalibrationTarget.of(target_fpr=self.target_fpr, confidence=self.confidence)
        detector = load(self.model, backbone=self.backbone, device=self.device, calibration=None)
        detector = detector.with_(object_name=self.object_name)
        scores = NormalScores()
        for image in _images(X):
            scores.add(detector.predict(image))
        self.calibration_: Calibration = make_calibration(
            scores, target, model=detector.key(), object_name=detector.object_name
        )
        self.detector_: Detector = detector.use(self.calibration_)
        self.offset_ = -self.calibration_.image.value
        return self

    def score_samples(self, X: Sequence[Source] | npt.NDArray[Any]) -> Float64:
        """Return scores (n,) in [-1, 0]: the lower, the more anomalous.

        Raises:
            NotFittedError: `fit` was not called.
            ImageError: an image cannot be used.
        """
        check_is_fitted(self)
        return np.array([-self.detector_.predict(image).score for image in _images(X)], dtype=np.float64)

    def decision_function(self, X: Sequence[Source] | npt.NDArray[Any]) -> Float64:
        """Return scores (n,) minus `offset_`: negative for anomalies; errors as `score_samples`."""
        decisions: Float64 = self.score_samples(X) - self.offset_
        return decisions

    def predict(self, X: Sequence[Source] | npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Return (n,): 1 for normal and -1 for anomalous images; errors as `score_samples`."""
        return np.where(self.decision_function(X) < 0, -1, 1).astype(np.int64)

    def anomaly_maps(self, X: Sequence[Source] | npt.NDArray[Any]) -> list[npt.NDArray[np.float32]]:
        """Return the map (H, W) of each image at its own size; errors as `score_samples`."""
        check_is_fitted(self)
        return [self.detector_.predict(image).map for image in _images(X)]

    def __sklearn_tags__(self) -> Any:
        """Return the tags of an estimator of images instead of tables."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.input_tags.three_d_array = True
        return tags


def _images(images: Any) -> Iterable[Source]:
    """Return the images as an iterable; DataError for anything but a sequence of images."""
    if isinstance(images, str | bytes | Path) or not hasattr(images, "__len__"):
        raise DataError(
            f"X is {type(images).__name__}, expected a sequence of images: give [image] for one, "
            "sorted(folder.iterdir()) for a folder"
        )
    if isinstance(images, np.ndarray) and images.dtype.kind in "USO":
        return [str(image) if isinstance(image, str) else image for image in images]
    if isinstance(images, np.ndarray) and images.ndim not in (3, 4):
        raise DataError(f"X is an array of shape {images.shape}, expected (n, H, W, 3) or (n, H, W)")
    return list(images)
