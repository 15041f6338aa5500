"""Anomalous regions: connected parts of a map above a threshold as boxes, polygons, areas and scores.

Regions are found on the canonical map and told in pixels of the original image, so that a picture of any size costs
the same. A pixel of the map counts where its value exceeds the threshold; diagonal neighbours are connected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsad.errors import ConfigError, DataError
from zsad.metrics.components import label_regions
from zsad.predict.contours import outer_contour, simplified

Point = tuple[float, float]

_TOLERANCE = 0.35  # of a pixel of the map: what the simplified outline may be off by
_SHARE = 0.15  # of the shorter side of a region: the same, so that thin ones keep their area


@dataclass(frozen=True, slots=True)
class Region:
    """One connected part of an image above the pixel threshold, in pixels of the original image.

    Attributes:
        box: (x, y, width, height) of its outline.
        polygon: its outer outline as (x, y), clockwise, the first point not repeated; holes are not outlined.
        area: of what is above the threshold, holes left out.
        score: highest map value.
        mean: mean map value.
        peak: (x, y) where the map is highest.
    """

    box: tuple[float, float, float, float]
    polygon: tuple[Point, ...]
    area: float
    score: float
    mean: float
    peak: Point

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "box": list(self.box),
            "area": self.area,
            "score": self.score,
            "mean": self.mean,
            "peak": list(self.peak),
            "polygon": [list(point) for point in self.polygon],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Region:
        """The inverse of `to_dict`.

        Raises:
            DataError: a key is missing or of another kind.
        """
        try:
            x, y, width, height = values["box"]
            polygon = tuple((float(a), float(b)) for a, b in values["polygon"])
            numbers = (float(values["area"]), float(values["score"]), float(values["mean"]))
            peak = (float(values["peak"][0]), float(values["peak"][1]))
            return cls((float(x), float(y), float(width), float(height)), polygon, *numbers, peak)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(
                f"a region is told by {values!r:.80}, expected box, polygon, area, score, mean and peak; predict again"
            ) from error


def find_regions(
    values: NDArray[np.float32], threshold: float, *, size: tuple[int, int], min_area: float = 0.0
) -> tuple[Region, ...]:
    """The regions of a map, the highest score first.

    Args:
        values: (H, W) a map of the image, of any size.
        threshold: pixels with a higher value belong to regions.
        size: (H, W) of the original image, in whose pixels regions are told.
        min_area: regions smaller than so many pixels of the original image are left out.

    Raises:
        ConfigError: a threshold that is no number, or a negative area.

    Example:
        >>> values = np.zeros((4, 6), np.float32)
        >>> values[1:3, 2:4] = 0.8
        >>> [found] = find_regions(values, 0.4, size=(40, 60))
        >>> found.box, found.area
        ((20.0, 10.0, 20.0, 20.0), 400.0)
    """
    if not np.isfinite(threshold) or min_area < 0:
        raise ConfigError(
            f"threshold {threshold:g} and min_area {min_area:g}: expected a number, and 0 or more pixels"
        )
    labels, count = label_regions(values > threshold)
    if count == 0:
        return ()
    scale = (size[1] / values.shape[1], size[0] / values.shape[0])  # x, y
    pixels = np.bincount(labels.ravel(), minlength=count + 1)
    wanted = np.flatnonzero(pixels * (scale[0] * scale[1]) >= max(min_area, 1e-12))
    boxes = _boxes(labels, count)
    regions = [_region(values, labels, int(n), boxes[n - 1], threshold, scale) for n in wanted if n]
    return tuple(sorted(regions, key=lambda region: (-region.score, region.box)))


def _boxes(labels: NDArray[np.int32], count: int) -> NDArray[np.intp]:
    """First row, first column, last row, last column (count, 4) of every region, in one pass."""
    rows, columns = np.nonzero(labels)
    numbers = labels[rows, columns] - 1
    boxes = np.empty((count, 4), dtype=np.intp)
    boxes[:, :2], boxes[:, 2:] = max(labels.shape), -1
    np.minimum.at(boxes[:, 0], numbers, rows)
    np.minimum.at(boxes[:, 1], numbers, columns)
    np.maximum.at(boxes[:, 2], numbers, rows)
    np.maximum.at(boxes[:, 3], numbers, columns)
    return boxes


def _region(
    values: NDArray[np.float32],
    labels: NDArray[np.int32],
    number: int,
    box: NDArray[np.intp],
    threshold: float,
    scale: tuple[float, float],
) -> Region:
    # A margin of one pixel: the outline lies between the region and its neighbours.
    top, left = max(0, int(box[0]) - 1), max(0, int(box[1]) - 1)
    part = (slice(top, int(box[2]) + 2), slice(left, int(box[3]) + 2))
    inside, patch = labels[part] == number, values[part]
    outline = outer_contour(patch, inside, threshold) + np.array((left, top))
    first, last = outline.min(axis=0), outline.max(axis=0)
    tolerance = min(_TOLERANCE, _SHARE * float((last - first).min()))
    low, high = first * scale, last * scale
    members = patch[inside].astype(np.float64)
    row, column = np.unravel_index(int(np.where(inside, patch, -np.inf).argmax()), patch.shape)
    peak = ((left + column + 0.5) * scale[0], (top + row + 0.5) * scale[1])
    line = simplified(outline, tolerance) * scale  # in pixels of the map, so that no axis is favoured
    return Region(
        box=tuple(np.round([*low, *(high - low)], 2).tolist()),
        polygon=tuple((x, y) for x, y in np.round(line, 2).tolist()),
        area=round(float(members.size * scale[0] * scale[1]), 2),
        score=_short(float(members.max())),
        mean=_short(float(members.mean())),
        peak=(round(float(peak[0]), 2), round(float(peak[1]), 2)),
    )


def _short(value: float) -> float:
    return float(f"{value:.9g}")  # as scores and thresholds: above the one, it is written above it
