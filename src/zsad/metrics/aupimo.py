"""AUPIMO: how much of each anomalous image's defect is found at false positive rates that hardly disturb.

Source: Bertoldo et al., AUPIMO: Redefining Visual Anomaly Detection Benchmarks with High Speed and Low Tolerance,
BMVC 2024. At a threshold, the overlap of an image is the share of its anomalous pixels above it; the rate shared by
all images is the share of pixels above it in normal images alone. AUPIMO is the image's overlap, averaged over the
logarithm of that rate between two bounds. As in `aupro` no loop over thresholds is needed: a pixel counts
from the rate on at which it is found, so an image's area is a mean over its pixels. The paper's code takes a
fine grid of thresholds instead; with it growing finer the two agree.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from zsad.errors import MetricError
from zsad.metrics.functional import Maps, MapScores

RateBounds = tuple[float, float]
RATE_BOUNDS: RateBounds = (1e-5, 1e-4)


def aupimo(maps: Maps, masks: Maps, *, bounds: RateBounds = RATE_BOUNDS) -> NDArray[np.float64]:
    """Return AUPIMO of each image, exact: every score is a threshold.

    Args:
        maps: (B, H, W), or a sequence of (H, W), higher is more anomalous, no NaN.
        masks: the same shapes, 0 or 1; an image without any 1 is normal.
        bounds: the smallest and the largest shared false positive rate, in (0, 1]. With fewer normal pixels than 1
            over the smallest, rates between 0 and that of one pixel are not told apart.

    Returns:
        (B,) in [0, 1], NaN for normal images, and for all when there is no normal image.

    Raises:
        MetricError: NaN in a map, other mask values than 0 and 1, differing shapes, or impossible bounds.

    Example:
        >>> masks = np.zeros((2, 10, 10)); masks[1, 0, :4] = 1
        >>> maps = np.full((2, 10, 10), 0.5); maps[1, 0, :3] = 0.9; maps[1, 0, 3] = 0.1
        >>> aupimo(maps, masks).tolist()
        [nan, 0.75]
    """
    check_rate_bounds(bounds)
    return image_scores(MapScores.collect(maps, masks), bounds=bounds)


def image_scores(pixels: MapScores, *, bounds: RateBounds = RATE_BOUNDS) -> NDArray[np.float64]:
    """Return AUPIMO (B,) of each of the images that `pixels` are of; needs sorted scores, as from `MapScores.join`."""
    counts = np.bincount(pixels.image, minlength=pixels.images)
    if pixels.clean.size == 0:
        return np.full(pixels.images, math.nan)
    total = pixels.clean.size
    above = total - np.searchsorted(pixels.clean, pixels.anomalous, side="right")
    beside = total - np.searchsorted(pixels.clean, pixels.anomalous, side="left")
    areas = log_area(above / total, beside / total, bounds=bounds)
    summed = np.bincount(pixels.image, weights=areas, minlength=pixels.images)
    return np.where(counts > 0, np.minimum(summed / np.maximum(counts, 1), 1.0), math.nan)


def log_area(
    start: NDArray[np.float64], stop: NDArray[np.float64], *, bounds: RateBounds
) -> NDArray[np.float64]:
    """Return the share (n,) of the logarithmic range of rates at which a pixel is found, in [0, 1].

    Below the rate `start` (n,) it is not, from `stop` (n,) on it is, and between them, which is where it ties with
    normal pixels, linearly more and more.
    """
    low, high = bounds
    lower, upper = np.clip(start, low, high), np.clip(stop, low, high)
    width = stop - start
    tied = width > 0
    ramp = (upper - lower) - start * np.log1p((upper - lower) / lower)
    ramp = np.where(tied, ramp / np.where(tied, width, 1.0), 0.0)
    share: NDArray[np.float64] = (ramp + np.log(high / upper)) / math.log(high / low)
    return np.clip(share, 0.0, 1.0)


def check_rate_bounds(bounds: RateBounds) -> None:
    """Raise MetricError unless the bounds are two rates of which the second is larger."""
    low, high = bounds
    if not 0.0 < low < high <= 1.0:
        raise MetricError(f"bounds are {low} and {high}, expected rates 0 < low < high <= 1; 1e-5 and 1e-4")
