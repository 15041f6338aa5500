"""Curves to draw: their areas are the metrics, scikit-learn has the same points, thinning hardly moves them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, roc_curve

from zsad.errors import MetricError
from zsad.metrics import functional as F
from zsad.metrics.curve_points import curves
from zsad.metrics.exact import ExactPixelMetrics, ImageScores
from zsad.metrics.streaming import PixelMetrics

ALL = 10**6


def filled(state, maps, masks):
    for score_map, mask in zip(maps, masks, strict=True):
        state.update(score_map, mask)
    return state


@pytest.mark.parametrize("levels", [None, 6])
def test_areas_of_all_points_are_the_metrics(scene, levels):
    for seed in range(3):
        maps, masks = scene(seed, levels=levels)
        for limit in (0.05, 0.3, 1.0):
            found = curves(filled(ExactPixelMetrics(limit=limit), maps, masks), points=ALL)
            assert np.trapezoid(found.roc[1], found.roc[0]) == pytest.approx(F.auroc(maps, masks), abs=1e-12)
            assert found.pro[0][-1] == limit
            area = np.trapezoid(found.pro[1], found.pro[0]) / limit
            assert area == pytest.approx(F.aupro(maps, masks, limit=limit), abs=1e-12)
            recall, precision = found.pr
            average = np.diff(recall) @ precision[1:]
            assert average == pytest.approx(F.average_precision(maps, masks), abs=1e-12)


@pytest.mark.parametrize("levels", [None, 5])
def test_points_lie_on_sklearns_curves(levels):
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 300)
    scores = rng.random(300) + 0.3 * labels
    if levels:
        scores = np.round(scores * levels) / levels
    state = ImageScores()
    for score, label in zip(scores, labels, strict=True):
        state.add(score, label)
    found = curves(state, points=ALL)
    rates, hits, _ = roc_curve(labels, scores)
    below = hits < 1  # on the way along the top scikit-learn keeps points that are no corners
    assert {*zip(rates[below], hits[below], strict=True)} <= {*zip(*found.roc, strict=True)}
    precision, recall, _ = precision_recall_curve(labels, scores)
    theirs = np.column_stack((recall[:-1], precision[:-1]))
    for point in np.column_stack(found.pr)[1:]:
        assert np.abs(theirs - point).sum(axis=1).min() < 1e-12
    assert found.pro[0].size == 0


def test_few_points_keep_the_areas_and_the_ends(scene):
    maps, masks = scene(1, count=9, size=(90, 80))
    masks[::2, :30, :30] = True
    maps[masks] += np.float32(0.1)
    state = filled(PixelMetrics(), maps, masks)
    whole, few = curves(state, points=ALL), curves(state)
    for name in ("roc", "pr", "pro"):
        (x, y), (u, v) = getattr(whole, name), getattr(few, name)
        assert x.size > 2000 and 200 < u.size <= 256
        assert (u[0], v[0], u[-1], v[-1]) == (x[0], y[0], x[-1], y[-1])
        assert (np.diff(u) >= 0).all() and v.min() >= 0 and v.max() <= 1
        assert np.trapezoid(v, u) == pytest.approx(np.trapezoid(y, x), abs=2e-3)
        assert (
            np.abs(
                np.interp(np.linspace(0, u[-1], 50), u, v) - np.interp(np.linspace(0, u[-1], 50), x, y)
            ).max()
            < 0.03
        )
    assert set(few.arrays()) == {"roc_x", "roc_y", "pr_x", "pr_y", "pro_x", "pro_y"}
    assert few.arrays()["pro_y"] is few.pro[1]


@pytest.mark.parametrize("state", [PixelMetrics(bins=64), ExactPixelMetrics(), ImageScores(), None])
def test_undefined_curves_are_empty(state):
    assert all(axis.size == 0 for axis in curves(state).arrays().values())
    if isinstance(state, PixelMetrics | ExactPixelMetrics):
        state.update(np.random.default_rng(0).random((5, 5)), np.zeros((5, 5), bool))
        assert all(axis.size == 0 for axis in curves(state).arrays().values())


def test_a_constant_map_gives_diagonals():
    masks = np.zeros((1, 10, 10), bool)
    masks[0, :2, :2] = True
    found = curves(filled(PixelMetrics(), np.full((1, 10, 10), 0.4), masks), points=2)
    assert found.roc[0].tolist() == found.roc[1].tolist() == [0, 1]
    assert found.pro[0].tolist() == [0, 0.3] and found.pro[1].tolist() == pytest.approx([0, 0.3])
    assert found.pr[1].tolist() == pytest.approx([0.04, 0.04])


def test_one_point_is_no_curve():
    with pytest.raises(MetricError, match="points is 1"):
        curves(None, points=1)
