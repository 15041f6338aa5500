"""Conversion of predicted regions to `supervision.Detections`, for annotation, tracking, filtering or counting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from zsad.errors import ConfigError

if TYPE_CHECKING:
    from zsad.predict.prediction import Prediction
    from zsad.predict.regions import Region


def to_detections(prediction: Prediction, *, class_name: str = "anomaly", masks: str = "polygons") -> Any:
    """Return the regions as `supervision.Detections`, the highest score first.

    `confidence` is a region's highest map value; `data` has `class_name` and `area` in pixels, `metadata` the image's
    `score`, `verdict` and `p_value`.

    Args:
        prediction: with a pixel threshold.
        class_name: of all regions.
        masks: "polygons": (n, H, W) of filled outlines, at the image's size; "none": boxes alone.

    Raises:
        ConfigError: supervision is not installed, the prediction has no pixel threshold, or unknown masks.
    """
    if masks not in ("polygons", "none"):
        raise ConfigError(f"masks is {masks!r}, expected 'polygons' or 'none'")
    try:
        import supervision
    except ImportError as error:
        raise ConfigError("this needs supervision, get it with: pip install supervision") from error
    regions = prediction.regions
    if regions is None:
        raise ConfigError(
            "the prediction has no pixel threshold, so no regions: calibrate the detector, or set its pixel_threshold"
        )
    if not regions:
        return supervision.Detections.empty()
    boxes = np.array([region.box for region in regions], dtype=np.float32)
    return supervision.Detections(
        xyxy=np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1),
        mask=None if masks == "none" else np.stack([_filled(region, prediction.size) for region in regions]),
        confidence=np.array([region.score for region in regions], dtype=np.float32),
        class_id=np.zeros(len(regions), dtype=int),
        data={
            "class_name": np.array([class_name] * len(regions)),
            "area": np.array([region.area for region in regions]),
        },
        metadata={"score": prediction.score, "verdict": prediction.verdict, "p_value": prediction.p_value},
    )


def _filled(region: Region, size: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return the mask (H, W) of a region's outline."""
    picture = Image.new("1", (size[1], size[0]))
    # Outlines run between pixels, Pillow's coordinates are those of pixel centres.
    ImageDraw.Draw(picture).polygon([(x - 0.5, y - 0.5) for x, y in region.polygon], fill=1)
    return np.asarray(picture)
