"""Calibrating: normal images through a model to thresholds."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from zsad.calibration.calibration import Calibration, make_calibration, model_key
from zsad.calibration.thresholds import CalibrationTarget, NormalScores
from zsad.predict.pipeline import OnError, stream
from zsad.predict.tiles import OnTile
from zsad.predict.view import Model, View
from zsad.types import Sample


def calibrate(
    model: Model,
    view: View,
    normals: Iterable[Sample],
    *,
    labelled: Iterable[Sample] = (),
    target: CalibrationTarget,
    on_error: OnError,
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
    on_tile: OnTile | None = None,
) -> Calibration:
    """Find thresholds on normal images; arguments as `zsad.detector.Detector.calibrate`.

    Without normal images the normal ones among the labelled take their place.

    Raises:
        CalibrationError: no usable normal image, or impossible numbers.
    """
    normal_samples, labelled_samples = list(normals), list(labelled)
    plain = view.without_thresholds()
    seen = NormalScores()
    scores: tuple[list[float], list[float]] = ([], [])
    for group in (normal_samples, labelled_samples):
        for prediction in stream(
            model, group, plain, on_error=on_error, batch_size=batch_size, on_tile=on_tile
        ):
            if group is labelled_samples and prediction.label is not None:
                scores[prediction.label].append(prediction.score)
            if group is normal_samples or (not normal_samples and prediction.label == 0):
                seen.add(prediction)
            if progress is not None:
                progress(1)
    return make_calibration(
        seen,
        target,
        model=model_key(model, view.options),
        object_name=view.object_name or model.object_name,
        region=view.region,
        labelled=scores if labelled_samples else None,
    )
