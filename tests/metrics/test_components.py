"""Labelling against SciPy and against flooding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from zsad.metrics import components as regions

masks = hnp.arrays(
    bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12), elements=st.booleans()
)


@settings(max_examples=150)
@given(masks)
def test_equals_flooding(oracle, mask):
    expected, count = oracle.label(mask)
    labels, found = regions.label_regions(mask)
    assert found == count and labels.dtype == np.int32
    assert np.array_equal(labels, expected)
    parts = regions.Regions.find(mask)
    assert parts.count == count and np.array_equal(parts.positions, np.flatnonzero(mask))
    assert np.array_equal(parts.areas, np.bincount(expected[mask], minlength=count + 1)[1:])
    assert np.array_equal(parts.spread(np.arange(1, count + 1)), expected[mask])
    assert parts.lengths.sum() == mask.sum() and parts.lengths.min(initial=1) >= 1


@pytest.mark.parametrize("density", [0.1, 0.3, 0.41, 0.5, 0.9])
def test_equals_scipy_on_noise(density):
    mask = np.random.default_rng(5).random((150, 131)) < density
    labels, count = regions.label_regions(mask)
    expected, expected_count = ndimage.label(mask, structure=np.ones((3, 3)))
    assert count == expected_count
    assert np.array_equal(labels, expected)


def test_spirals_and_corners():
    spiral = np.zeros((41, 41), bool)
    y = x = 20
    for step in range(1, 20):
        for dy, dx, length in ((0, 1, 2 * step), (1, 0, 2 * step)):
            sign = 1 if step % 2 else -1
            for _ in range(length):
                y, x = np.clip(y + sign * dy, 0, 40), np.clip(x + sign * dx, 0, 40)
                spiral[y, x] = True
    assert regions.label_regions(spiral)[1] == ndimage.label(spiral, structure=np.ones((3, 3)))[1]
    assert regions.label_regions(np.eye(9, dtype=bool))[1] == 1
    assert regions.label_regions(np.eye(9, dtype=bool)[::-1].copy())[1] == 1
    # The end of one row and the start of the next are no neighbours.
    wrapped = np.array([[0, 0, 1], [1, 0, 0]], bool)
    assert regions.label_regions(wrapped)[1] == 2


@pytest.mark.parametrize("order", ["C", "F"])
def test_full_rows_and_foreign_layouts(order):
    """Rows that end and start with foreground are runs of their own; a mask need not lie row by row."""
    mask = np.asarray(np.ones((5, 4), bool), order=order)
    assert regions.Regions.find(mask).lengths.tolist() == [4] * 5
    mask[2] = False
    found = regions.Regions.find(mask)
    assert found.count == 2 and found.areas.tolist() == [8, 8]
    assert regions.label_regions(mask[::-1])[0][0].tolist() == [1] * 4


@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (3, 0), (0, 0)])
def test_empty_mask(shape):
    labels, count = regions.label_regions(np.zeros(shape, bool))
    assert count == 0 and labels.shape == shape
    assert regions.Regions.find(np.zeros(shape, bool)).areas.size == 0
