"""Connected regions of a mask: labelling with 8-connectivity, bounding boxes and region weights.

Labelling joins the runs of foreground in each row to the touching runs of the next one. Masks are a few large
shapes, so there are few runs, and this is faster than a pass over the pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Box = tuple[slice, slice]


def bounding_box(mask: NDArray[np.bool_]) -> Box | None:
    """The smallest box (rows, columns) around the foreground of mask (H, W), None when it is empty."""
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return None
    tall = slice(int(rows[0]), int(rows[-1]) + 1)
    columns = np.flatnonzero(mask[tall].any(axis=0))
    return tall, slice(int(columns[0]), int(columns[-1]) + 1)


def label_regions(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Number the 8-connected regions of mask (H, W).

    Returns labels (H, W), 0 for background and 1.. for regions in the order of their first pixel, row by row,
    and the number of regions.
    """
    lengths, numbers, count = _runs(mask)
    labels = np.zeros(mask.shape, dtype=np.int32)
    labels[mask] = np.repeat(numbers.astype(np.int32) + 1, lengths)
    return labels, count


def region_weights(mask: NDArray[np.bool_]) -> tuple[NDArray[np.float64], int]:
    """Weight 1 / (pixels of its region) of each foreground pixel of mask (H, W), and the number of regions.

    The weights come row by row and sum to 1 in a region: a weighted share of pixels is a mean over regions.
    """
    lengths, numbers, count = _runs(mask)
    areas = np.bincount(numbers, weights=lengths, minlength=count)
    return np.repeat((1.0 / areas)[numbers], lengths), count


def _runs(mask: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp], int]:
    """Length and region number (from 0) of every run of foreground, row by row; and the number of regions."""
    # One column of background on either side, so that a run in the flat array never crosses a row.
    stride = mask.shape[1] + 2
    padded = np.zeros((mask.shape[0], stride), dtype=np.bool_)
    padded[:, 1:-1] = mask
    flat = padded.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts, stops = edges[0::2], edges[1::2]
    # Run a touches run b of the next row, corners included, when b.stop >= a.start and b.start <= a.stop.
    first = np.searchsorted(stops, starts + stride, side="left")
    last = np.searchsorted(starts, stops + stride, side="right")
    touching = np.maximum(last - first, 0)
    upper = np.repeat(np.arange(starts.size), touching)
    offset = np.arange(upper.size) - np.repeat(np.cumsum(touching) - touching, touching)
    root = _join(starts.size, upper, np.repeat(first, touching) + offset)
    # A region's root is its first run: counting roots numbers the regions in the order of their first pixel.
    is_root = root == np.arange(root.size)
    return stops - starts, (np.cumsum(is_root) - 1)[root], int(is_root.sum())


def _join(count: int, one: NDArray[np.intp], other: NDArray[np.intp]) -> NDArray[np.intp]:
    """The smallest member of each element's component, for edges (one, other) between `count` elements."""
    root = np.arange(count)
    while True:
        left, right = root[one], root[other]
        if np.array_equal(left, right):
            return root
        # Larger roots hang under smaller ones, so no cycle can arise; then paths shrink to length 1.
        np.minimum.at(root, np.maximum(left, right), np.minimum(left, right))
        while not np.array_equal(shorter := root[root], root):
            root = shorter
