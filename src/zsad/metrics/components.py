"""Connected regions of a mask: labelling with 8-connectivity, in time of the foreground, not of the mask.

Labelling joins the runs of foreground in each row to the touching runs of the next one. Masks are a few large
shapes, so there are few runs, and this is faster than a pass over the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Regions:
    """The 8-connected regions of a mask, numbered from 0 in the order of their first pixel, row by row.

    `positions` (m,) of the foreground pixels in the flat mask, growing; they form runs, pixels side by side in a
    row, of `lengths` (n,) pixels, each part of region `numbers` (n,); `count` is the number of regions.
    """

    positions: NDArray[np.intp]
    lengths: NDArray[np.intp]
    numbers: NDArray[np.intp]
    count: int

    @classmethod
    def find(cls, mask: NDArray[np.bool_]) -> Regions:
        """Find the regions of mask (H, W)."""
        # A column more than the mask has, so that the end of a row touches no start of the next one.
        stride = mask.shape[1] + 1
        starts, stops = _runs(mask, stride)
        lengths = stops - starts
        if starts.size == 0:
            return cls(starts, lengths, starts, 0)
        before = np.cumsum(lengths) - lengths
        positions = np.repeat(starts - starts // stride - before, lengths)
        positions += np.arange(positions.size)
        # Run a touches run b of the next row, corners included, when b.stop >= a.start and b.start <= a.stop.
        low = np.searchsorted(stops, starts + stride, side="left")
        high = np.searchsorted(starts, stops + stride, side="right")
        touching = np.maximum(high - low, 0)
        upper = np.repeat(np.arange(starts.size), touching)
        offset = np.arange(upper.size) - np.repeat(np.cumsum(touching) - touching, touching)
        root = _join(starts.size, upper, np.repeat(low, touching) + offset)
        # A region's root is its first run: counting roots numbers the regions in the order of their first pixel.
        is_root = root == np.arange(root.size)
        return cls(positions, lengths, (np.cumsum(is_root) - 1)[root], int(np.count_nonzero(is_root)))

    @property
    def areas(self) -> NDArray[np.intp]:
        """Pixels (count,) of each region."""
        return np.bincount(self.numbers, weights=self.lengths, minlength=self.count).astype(np.intp)

    def spread(self, values: NDArray[Number]) -> NDArray[Number]:
        """Values (count,) of the regions at each foreground pixel (m,)."""
        return np.repeat(values[self.numbers], self.lengths)


def label_regions(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Number the 8-connected regions of mask (H, W).

    Returns labels (H, W), 0 for background and 1.. for regions in the order of their first pixel, row by row,
    and the number of regions.
    """
    regions = Regions.find(mask)
    labels = np.zeros(mask.size, dtype=np.int32)
    labels[regions.positions] = regions.spread(np.arange(1, regions.count + 1))
    return labels.reshape(mask.shape), regions.count


def _runs(mask: NDArray[np.bool_], stride: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return starts and stops of runs in a flat mask with rows of `stride` pixels, the last of which is background.

    Only the rows from the first to the last with any foreground are read.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return rows, rows
    used = mask[rows[0] : rows[-1] + 1]
    # One pixel of background first, one behind each row: foreground begins and ends between two pixels.
    flat = np.zeros(used.shape[0] * stride + 1, dtype=np.bool_)
    flat[1:].reshape(-1, stride)[:, :-1] = used
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + rows[0] * stride
    return changes[::2], changes[1::2]


def _join(count: int, one: NDArray[np.intp], other: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the smallest member of each element's component, for edges (one, other) between `count` elements."""
    root = np.arange(count)
    while True:
        left, right = root[one], root[other]
        if (left == right).all():
            return root
        # Larger roots hang under smaller ones, so no cycle can arise; then paths of any depth shrink to length 1.
        np.minimum.at(root, np.maximum(left, right), np.minimum(left, right))
        for _ in range(count.bit_length()):
            root = root[root]
