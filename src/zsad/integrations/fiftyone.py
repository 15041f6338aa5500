"""Conversion of predictions to FiftyOne labels, for viewing, filtering and correcting a data set.

dataset = fiftyone.Dataset.from_images_dir("parts")
add_predictions(dataset, detector.predict_folder("parts"), field="zsad")
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zsad.errors import ConfigError, DataError

if TYPE_CHECKING:
    from zsad.predict.prediction import Prediction
    from zsad.predict.regions import Region


def to_labels(prediction: Prediction, *, label: str = "anomaly") -> dict[str, Any]:
    """Return the labels of a prediction by name.

    | key | label |
    |---|---|
    | score | a number |
    | verdict | Classification, `confidence` 1 - p-value; with a calibration |
    | heatmap | Heatmap of the canonical map; `range` is the colour scale, shared by all images of a run |
    | regions | Detections, boxes relative to the image; with a pixel threshold |
    | outlines | Polylines, closed and filled; with a pixel threshold |

    Args:
        prediction: any.
        label: of regions and outlines.

    Raises:
        ConfigError: FiftyOne is not installed.
    """
    fiftyone = _package()
    labels: dict[str, Any] = {
        "score": prediction.score,
        "heatmap": fiftyone.Heatmap(map=prediction.canonical_map(), range=list(prediction.scale)),
    }
    if prediction.verdict is not None:
        confidence = None if prediction.p_value is None else 1 - prediction.p_value
        labels["verdict"] = fiftyone.Classification(label=prediction.verdict, confidence=confidence)
    if prediction.regions is not None:
        regions, size = prediction.regions, prediction.size
        labels["regions"] = fiftyone.Detections(
            detections=[
                fiftyone.Detection(label=label, bounding_box=_box(region, size), confidence=region.score)
                for region in regions
            ]
        )
        labels["outlines"] = fiftyone.Polylines(
            polylines=[
                fiftyone.Polyline(
                    label=label,
                    points=[_points(region, size)],
                    closed=True,
                    filled=True,
                    confidence=region.score,
                )
                for region in regions
            ]
        )
    return labels


def add_predictions(
    dataset: Any, predictions: Iterable[Prediction], *, field: str = "zsad", label: str = "anomaly"
) -> int:
    """Set the fields FIELD_score, FIELD_heatmap and so on of a data set's samples; return the number of samples.

    Args:
        dataset: a `fiftyone.Dataset` or a view; samples are matched by their path.
        predictions: of files.
        field: prefix of the field names.
        label: of regions and outlines.

    Raises:
        ConfigError: FiftyOne is not installed.
        DataError: no prediction belongs to a file of the data set.
    """
    known = {str(Path(path).absolute()): path for path in dataset.values("filepath")}
    done, first = 0, None
    for prediction in predictions:
        if prediction.source is None:
            continue
        first = first or prediction.source
        path = known.get(str(Path(prediction.source).absolute()))
        if path is None:
            continue
        sample = dataset[path]
        for name, value in to_labels(prediction, label=label).items():
            sample[f"{field}_{name}"] = value
        sample.save()
        done += 1
    if not done:
        raise DataError(
            f"the data set of {len(known)} samples holds none of the predicted files (such as {first}): "
            "predict the files that it was made of"
        )
    return done


def _box(region: Region, size: tuple[int, int]) -> list[float]:
    """Return (x, y, width, height) relative to the image, clipped to it."""
    corners = np.array([region.box[:2], np.add(region.box[:2], region.box[2:])]) / (size[1], size[0])
    (left, top), (right, bottom) = np.clip(corners, 0, 1).tolist()
    return [left, top, right - left, bottom - top]


def _points(region: Region, size: tuple[int, int]) -> list[tuple[float, float]]:
    points = np.clip(np.array(region.polygon) / (size[1], size[0]), 0, 1)
    return [(x, y) for x, y in points.tolist()]


def _package() -> Any:
    try:
        import fiftyone
    except ImportError as error:
        raise ConfigError("this needs FiftyOne, get it with: pip install fiftyone") from error
    return fiftyone
