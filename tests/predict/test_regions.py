from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy import ndimage

from zsad.errors import ConfigError, DataError
from zsad.predict.contours import outer_contour, polygon_area, simplified
from zsad.predict.regions import Region, find_regions


def smooth(seed: int, *, size: tuple[int, int] = (48, 64), sigma: float = 2.5) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=size), sigma)
    return ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)


def contains(polygon: np.ndarray, x: float, y: float) -> bool:
    """Whether a point lies inside, by counting crossings."""
    after = np.roll(polygon, -1, axis=0)
    crossing = (polygon[:, 1] > y) != (after[:, 1] > y)
    rise = np.where(crossing, after[:, 1] - polygon[:, 1], 1)
    at = polygon[:, 0] + (y - polygon[:, 1]) / rise * (after[:, 0] - polygon[:, 0])
    return bool((crossing & (x < at)).sum() % 2)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.floats(0.2, 0.9))
def test_regions_are_scipys_components(seed: int, threshold: float) -> None:
    values = smooth(seed)
    labels, count = ndimage.label(values > np.float32(threshold), structure=np.ones((3, 3)))
    found = find_regions(values, np.float32(threshold), size=values.shape)
    assert len(found) == count
    index = np.arange(1, count + 1)
    assert sorted(r.area for r in found) == sorted(ndimage.sum_labels(labels > 0, labels, index).tolist())
    np.testing.assert_allclose(
        sorted(r.score for r in found), np.sort(ndimage.maximum(values, labels, index)), rtol=1e-6
    )
    np.testing.assert_allclose(
        sorted(r.mean for r in found), np.sort(ndimage.mean(values, labels, index)), rtol=1e-5
    )
    assert [r.score for r in found] == sorted((r.score for r in found), reverse=True)


@settings(max_examples=12)
@given(st.integers(0, 10_000), st.floats(0.3, 0.8))
def test_outline_parts_the_pixels_inside_from_those_around(seed: int, threshold: float) -> None:
    values = smooth(seed, size=(24, 30))
    inside_all = values > np.float32(threshold)
    labels, count = ndimage.label(inside_all, structure=np.ones((3, 3)))
    for number in range(1, count + 1):
        own = labels == number
        filled = ndimage.binary_fill_holes(own)  # 4-connected background: holes of an 8-connected region
        outline = outer_contour(values, own, float(np.float32(threshold)))
        for row, column in np.argwhere(ndimage.binary_dilation(own, np.ones((3, 3)))):
            assert contains(outline, column + 0.5, row + 0.5) == filled[row, column]
        assert polygon_area(outline) > 0
        assert outline.min() >= 0 and (outline.max(axis=0) <= (30, 24)).all()


def test_outline_lies_on_the_level_line() -> None:
    rows, columns = np.mgrid[:60, :80]
    values = (1 - np.hypot(rows + 0.5 - 31.3, columns + 0.5 - 40.8) / 30).astype(np.float32)
    outline = outer_contour(values, values > 0.4, 0.4)  # a circle of radius 18
    np.testing.assert_allclose(np.hypot(outline[:, 0] - 40.8, outline[:, 1] - 31.3), 18, atol=0.02)
    assert polygon_area(outline) == pytest.approx(np.pi * 18**2, rel=0.002)
    [region] = find_regions(values, 0.4, size=(60, 80))
    assert len(region.polygon) < 40
    np.testing.assert_allclose(region.box, (22.8, 13.3, 36, 36), atol=0.05)
    np.testing.assert_allclose(region.peak, (40.8, 31.3), atol=0.8)


@pytest.mark.parametrize("shape", ["dot", "corner", "all", "diagonal", "ring"])
def test_odd_shapes(shape: str) -> None:
    values = np.zeros((6, 8), np.float32)
    if shape == "dot":
        values[3, 4] = 1
    elif shape == "corner":
        values[:2, :3] = 1
    elif shape == "all":
        values[:] = 1
    elif shape == "diagonal":
        values[1, 1] = values[2, 2] = values[3, 1] = 1
    else:
        values[1:5, 1:6] = 1
        values[2:4, 2:5] = 0
    [region] = find_regions(values, 0.5, size=(60, 80))
    assert region.area == (values > 0).sum() * 100
    x, y, width, height = region.box
    assert min(x, y) >= 0 and x + width <= 80 and y + height <= 60
    drawn = Image.new("1", (80, 60))
    ImageDraw.Draw(drawn).polygon([(a - 0.5, b - 0.5) for a, b in region.polygon], fill=1)
    overlap = np.asarray(drawn)
    full = np.kron(ndimage.binary_fill_holes(values > 0), np.ones((10, 10), bool))
    assert (overlap & full).sum() / (overlap | full).sum() > (0.45 if shape in ("dot", "diagonal") else 0.8)
    if shape == "all":
        assert region.box == (0, 0, 80, 60)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.floats(0.55, 0.9), st.sampled_from([(48, 6400), (9600, 64), (33, 2000)]))
def test_polygon_box_and_area_agree_at_any_aspect_ratio(
    seed: int, threshold: float, size: tuple[int, int]
) -> None:
    values = smooth(seed)
    scale = np.array((size[1] / 64, size[0] / 48))
    for region in find_regions(values, threshold, size=size, min_area=12 * scale.prod()):
        polygon = np.asarray(region.polygon)
        np.testing.assert_allclose(np.ptp(polygon, axis=0), region.box[2:], atol=0.02)
        [square] = [
            one for one in find_regions(values, threshold, size=(48, 64)) if one.score == region.score
        ]
        expected = polygon_area(np.asarray(square.polygon)) * scale.prod()
        assert polygon_area(polygon) == pytest.approx(expected, rel=0.02)
        assert polygon_area(polygon) == pytest.approx(
            region.area, rel=0.35
        )  # the line crosses its outer pixels


def test_small_ones_are_left_out_and_nothing_is_no_region() -> None:
    values = np.zeros((20, 20), np.float32)
    values[2:4, 2:4], values[10:15, 10:15] = 0.9, 0.7
    assert [r.area for r in find_regions(values, 0.5, size=(40, 40))] == [16, 100]
    assert [r.area for r in find_regions(values, 0.5, size=(40, 40), min_area=17)] == [100]
    assert find_regions(values, 0.9, size=(40, 40)) == ()
    for threshold, area in ((np.nan, 0), (0.5, -1)):
        with pytest.raises(ConfigError, match="expected"):
            find_regions(values, threshold, size=(40, 40), min_area=area)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.floats(0, 2))
def test_simplified_line_stays_near(seed: int, tolerance: float) -> None:
    angles = np.sort(np.random.default_rng(seed).uniform(0, 2 * np.pi, 60))
    radius = 10 + np.random.default_rng(seed + 1).normal(0, 0.5, 60)
    line = np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)
    fewer = simplified(line, tolerance)
    assert {tuple(point) for point in fewer} <= {tuple(point) for point in line}
    start, stop = fewer, np.roll(fewer, -1, axis=0)
    for point in line:
        along = stop - start
        share = np.clip(((point - start) * along).sum(1) / np.maximum((along**2).sum(1), 1e-12), 0, 1)
        gap = np.hypot(*(start + share[:, None] * along - point).T).min()
        assert gap <= tolerance + 1e-6


def test_region_survives_json() -> None:
    [region, *_] = find_regions(smooth(3), 0.7, size=(480, 640))
    assert Region.from_dict(json.loads(json.dumps(region.to_dict()))) == region
    with pytest.raises(DataError, match="predict again"):
        Region.from_dict({"box": [1, 2, 3]})
