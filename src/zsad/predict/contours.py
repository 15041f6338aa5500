"""Outlines of regions: the level line of a map around a connected region, and fewer points for the same line.

The outline runs between the pixels inside and those outside, where linear interpolation between their centres
crosses the level (marching squares; Lorensen and Cline, 1987), so it is finer than the map's pixels. Diagonal
neighbours are connected, so a region has exactly one outer outline.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Directions of a walk along pixel borders, the inside on the right: east, south, west, north.
_STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))
# From the corner reached, the pixel ahead on the left and ahead on the right (row, column offsets), by direction.
_LEFT = ((-1, 0), (0, 0), (0, -1), (-1, -1))
_RIGHT = ((0, 0), (0, -1), (-1, -1), (-1, 0))


def outer_contour(values: NDArray[np.float32], inside: NDArray[np.bool_], level: float) -> Floats:
    """The closed outer outline (points, 2) of an 8-connected region, as (x, y) in pixels, clockwise on the screen.

    Pixel (row, column) covers [column, column + 1] x [row, row + 1]. At the border of the map the line follows the
    border. The last point is not the first again.

    Args:
        values: (H, W) the map.
        inside: (H, W) the pixels of one region, all above `level`; their other neighbours are not.
        level: the threshold.
    """
    padded = np.pad(inside, 1)
    walk = _walk(padded)
    pixel, outside = walk[:, :2], walk[:, 2:]
    height, width = inside.shape
    here = values[pixel[:, 0] - 1, pixel[:, 1] - 1].astype(np.float64)
    rows, columns = outside[:, 0] - 1, outside[:, 1] - 1
    beyond = (rows < 0) | (rows >= height) | (columns < 0) | (columns >= width)
    other = values[np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)].astype(np.float64)
    span = here - other
    share = np.where(beyond, 0.5, np.clip((here - level) / np.where(span > 0, span, 1.0), 0.0, 1.0))
    points = pixel + share[:, None] * (outside - pixel) - 0.5  # centres, without the padding
    return np.ascontiguousarray(points[:, ::-1])


def _walk(padded: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Border steps (steps, 4) around the first region met: inside row and column, outside row and column."""
    start_row = int(np.flatnonzero(padded.any(axis=1))[0])
    start_column = int(np.flatnonzero(padded[start_row])[0])
    cells = padded.tolist()
    row, column, heading = start_row, start_column, 0
    steps: list[tuple[int, int, int, int]] = []
    while True:
        right, left = _RIGHT[heading], _LEFT[heading]
        steps.append((row + right[0], column + right[1], row + left[0], column + left[1]))
        row, column = row + _STEPS[heading][0], column + _STEPS[heading][1]
        # Left first: at a corner where two regions' pixels meet diagonally they belong together.
        right, left = _RIGHT[heading], _LEFT[heading]
        if cells[row + left[0]][column + left[1]]:
            heading = (heading + 3) % 4
        elif not cells[row + right[0]][column + right[1]]:
            heading = (heading + 1) % 4
        if (row, column, heading) == (start_row, start_column, 0):
            return np.asarray(steps, dtype=np.intp)


def polygon_area(points: Floats) -> float:
    """Area of a simple polygon (points, 2), positive when clockwise on the screen (shoelace formula)."""
    x, y = points[:, 0], points[:, 1]
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def simplified(points: Floats, tolerance: float) -> Floats:
    """A closed line with fewer points, nowhere further than `tolerance` from a point left out, in the same box.

    Source: Douglas and Peucker (1973), on the parts between the outermost points of both axes.

    Args:
        points: (n, 2), n >= 1, closed without repeating the first.
        tolerance: in the points' unit; 0 drops only points on straight lines.
    """
    if len(points) < 4:
        return points
    anchors = sorted({int(index) for index in (*points.argmin(axis=0), *points.argmax(axis=0))})
    closed = np.roll(points, -anchors[0], axis=0)
    closed = np.concatenate([closed, closed[:1]])
    anchors = [index - anchors[0] for index in anchors] + [len(points)]
    keep = np.zeros(len(closed), dtype=np.bool_)
    keep[anchors] = True
    pending = list(pairwise(anchors))
    while pending:
        first, last = pending.pop()
        if last - first < 2:
            continue
        offsets = _distances(closed[first + 1 : last], closed[first], closed[last])
        worst = int(offsets.argmax())
        if offsets[worst] > tolerance + 1e-9:
            split = first + 1 + worst
            keep[split] = True
            pending += [(first, split), (split, last)]
    kept = closed[:-1][keep[:-1]]
    return kept if len(kept) >= 3 else points


def _distances(points: Floats, start: Floats, stop: Floats) -> Floats:
    """Distance of points (n, 2) from the line between two points."""
    along = stop - start
    length = float(np.hypot(*along))
    away = points - start
    if length == 0:
        return np.asarray(np.hypot(away[:, 0], away[:, 1]))
    position = np.clip(away @ along / length**2, 0, 1)
    gap = away - position[:, None] * along
    return np.asarray(np.hypot(gap[:, 0], gap[:, 1]))
