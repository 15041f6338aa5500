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
        """The regions of mask (H, W)."""
        positions = _foreground(mask)
        if positions.size == 0:
            return cls(positions, positions, positions, 0)
        first = np.append(0, _breaks(mask, positions))
        lengths = np.diff(first, append=positions.size)
        # A column more than the mask has, so that the end of a row touches no start of the next one.
        stride = mask.shape[1] + 1
        starts = positions[first]
        starts += starts // mask.shape[1]
        stops = starts + lengths
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


def _foreground(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Flat positions of the foreground of mask (H, W); only rows from the first to the last with any are read."""
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return rows
    positions = np.flatnonzero(mask[rows[0] : rows[-1] + 1])
    positions += rows[0] * mask.shape[1]
    return positions


def _breaks(mask: NDArray[np.bool_], positions: NDArray[np.intp]) -> NDArray[np.intp]:
    """Where in `positions` (m,) a run starts that is not the first one: after a gap, and in a new row."""
    gaps = np.flatnonzero(positions[1:] != positions[:-1] + 1) + 1
    wrapped = np.flatnonzero(mask[:-1, -1] & mask[1:, 0]) + 1
    if wrapped.size == 0:
        return gaps
    return np.union1d(gaps, np.searchsorted(positions, wrapped * mask.shape[1]))


def _join(count: int, one: NDArray[np.intp], other: NDArray[np.intp]) -> NDArray[np.intp]:
    """The smallest member of each element's component, for edges (one, other) between `count` elements."""
    root = np.arange(count)
    while True:
        left, right = root[one], root[other]
        if (left == right).all():
            return root
        # Larger roots hang under smaller ones, so no cycle can arise; then paths of any depth shrink to length 1.
        np.minimum.at(root, np.maximum(left, right), np.minimum(left, right))
        for _ in range(count.bit_length()):
            root = root[root]
