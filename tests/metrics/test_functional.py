"""Exact metrics against scikit-learn and against loops from the definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from zsad.errors import MetricError
from zsad.metrics import functional as F

# Few distinct scores, so that ties within and between the labels are the rule.
tied = st.lists(st.tuples(st.sampled_from([0.0, -0.0, 0.1, 0.5, 1.0, -3.0]), st.integers(0, 1)), max_size=12)
free = st.lists(st.tuples(st.floats(-1e6, 1e6, width=32), st.integers(0, 1)), max_size=25)


def sklearn_f1(labels, scores):
    precision, recall, _ = precision_recall_curve(labels, scores)
    return np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("levels", [None, 5])
def test_equals_sklearn(dtype, levels):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 4000)
    scores = (rng.normal(size=4000) + labels).astype(dtype)
    if levels:
        scores = np.round(scores * levels) / dtype(levels)
    assert F.auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert F.average_precision(scores, labels) == pytest.approx(
        average_precision_score(labels, scores), abs=1e-12
    )
    assert F.f1_max(scores, labels) == pytest.approx(sklearn_f1(labels, scores), abs=1e-12)


@settings(max_examples=150)
@given(st.one_of(tied, free))
def test_equals_loops(oracle, pairs):
    scores, labels = [s for s, _ in pairs], [y for _, y in pairs]
    for name in ("auroc", "average_precision", "f1_max"):
        slow = getattr(oracle, name)(scores, labels)
        assert getattr(F, name)(scores, labels) == pytest.approx(slow, abs=1e-12, nan_ok=True), name


@settings(max_examples=60)
@given(free)
def test_monotone_transform_changes_nothing(pairs):
    scores, labels = np.array([s for s, _ in pairs]), np.array([y for _, y in pairs], int)
    doubled = scores * 2 + 0.0
    for metric in (F.auroc, F.average_precision, F.f1_max):
        assert metric(doubled, labels) == pytest.approx(metric(scores, labels), abs=1e-12, nan_ok=True)
    assert F.auroc(-scores, labels) == pytest.approx(1 - F.auroc(scores, labels), abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("metric", [F.auroc, F.average_precision, F.f1_max])
@pytest.mark.parametrize("labels", [[], [0], [1], [0, 0, 0], [1, 1]])
def test_one_label_is_undefined(metric, labels):
    assert math.isnan(metric(np.linspace(0, 1, len(labels)), labels))


def test_infinite_scores_rank():
    assert F.auroc([-np.inf, 0.0, np.inf], [0, 0, 1]) == 1.0
    assert F.auroc([np.inf, 0.0, -np.inf], [0, 0, 1]) == 0.0


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, np.nan], [0, 1], "1 of 2 scores are NaN"),
        ([0.1, 0.2], [0, 2], "labels hold 0, 2"),
        ([0.1, 0.2], [0, 0.5], "0.5"),
        ([0.1, 0.2], [0, np.nan], "labels hold"),
        ([0.1, 0.2], ["good", "bad"], "labels hold"),
        ([0.1, 0.2], [0, 1, 1], "shape"),
        (["a", "b"], [0, 1], "real numbers"),
    ],
)
def test_bad_input_is_named(scores, labels, message):
    for metric in (F.auroc, F.average_precision, F.f1_max):
        with pytest.raises(MetricError, match=message) as caught:
            metric(scores, labels)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("levels", [None, 4, 1])
@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_aupro_equals_loops(oracle, scene, levels, limit):
    for seed in range(3):
        maps, masks = scene(seed, levels=levels)
        assert F.aupro(maps, masks, limit=limit) == pytest.approx(
            oracle.aupro(maps, masks, limit=limit), abs=1e-12
        )


def test_aupro_by_hand():
    # One region of two pixels, four normal ones: overlap is 1/2 up to rate 1/4, then 1.
    maps = np.array([[[0.9, 0.7, 0.8, 0.1, 0.2, 0.3]]])
    masks = np.array([[[1, 1, 0, 0, 0, 0]]])
    assert F.aupro(maps, masks, limit=1.0) == pytest.approx((0.5 * 0.25 + 0.75) / 1.0)
    assert F.aupro(maps, masks, limit=0.25) == pytest.approx(0.5)
    assert F.aupro(maps, masks, limit=0.3) == pytest.approx((0.5 * 0.25 + 0.05) / 0.3)


def test_aupro_of_a_constant_map_is_half_the_limit():
    masks = np.zeros((1, 10, 10), bool)
    masks[0, :2, :2] = True
    assert F.aupro(np.full((1, 10, 10), 0.4), masks, limit=0.3) == pytest.approx(0.15)


def test_aupro_weighs_regions_alike_whatever_their_size():
    maps, masks = np.zeros((1, 20, 20)), np.zeros((1, 20, 20), bool)
    masks[0, :10, :10] = masks[0, 15, 15] = True
    maps[0, 15, 15] = 1.0
    # The small region is found at once, the large one ties with everything normal.
    assert F.aupro(maps, masks, limit=0.2) == pytest.approx(0.5 + 0.5 * 0.1)


@pytest.mark.parametrize("levels", [None, 7])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pro_anomalyclip_equals_its_loops(oracle, scene, levels, dtype):
    for seed in range(4):
        maps, masks = scene(seed, levels=levels)
        maps = (maps * 1.7 - 0.3).astype(dtype)
        slow = oracle.pro_anomalyclip(maps, masks)
        assert F.pro_anomalyclip(maps, masks) == pytest.approx(slow, abs=1e-9, nan_ok=True)
        assert F.pro_anomalyclip(maps, masks, limit=0.1, thresholds=30) == pytest.approx(
            oracle.pro_anomalyclip(maps, masks, limit=0.1, thresholds=30), abs=1e-9, nan_ok=True
        )


def test_pro_anomalyclip_depends_on_the_scale_and_aupro_does_not(scene):
    maps, masks = scene(1)
    stretched = maps.astype(float) ** 12
    assert F.aupro(stretched, masks) == pytest.approx(F.aupro(maps, masks), abs=1e-12)
    assert abs(F.pro_anomalyclip(stretched, masks) - F.pro_anomalyclip(maps, masks)) > 1e-3


def test_pro_anomalyclip_is_undefined_for_degenerate_maps():
    masks = np.zeros((1, 8, 8), bool)
    masks[0, 0, 0] = True
    assert math.isnan(F.pro_anomalyclip(np.full((1, 8, 8), 0.3), masks))
    two_values = np.where(masks, 1.0, 0.0)
    assert math.isnan(F.pro_anomalyclip(two_values, masks))


@pytest.mark.parametrize("metric", [F.aupro, F.pro_anomalyclip])
def test_maps_without_region_or_normal_pixel_are_undefined(metric):
    maps = np.random.default_rng(0).random((2, 9, 9))
    assert math.isnan(metric(maps, np.zeros_like(maps, bool)))
    assert math.isnan(metric(maps, np.ones_like(maps, bool)))
    assert math.isnan(metric([], []))


def test_maps_of_different_sizes_count_together():
    rng = np.random.default_rng(2)
    maps = [rng.random((8, 9)), rng.random((12, 5))]
    masks = [np.zeros((8, 9), bool), np.zeros((12, 5), int)]
    masks[1][2:4, 1:3] = 1
    padded = np.concatenate([maps[0].ravel(), maps[1].ravel()])[None, None]
    flat = np.concatenate([masks[0].ravel(), masks[1].ravel() > 0])
    # As one row of pixels the square falls apart into two regions of equal size: the same weights.
    assert F.aupro(maps, masks) == pytest.approx(F.aupro(padded, flat[None, None]), abs=1e-12)


@pytest.mark.parametrize("metric", [F.aupro, F.pro_anomalyclip])
def test_bad_maps_are_named(metric):
    maps = np.zeros((2, 4, 4))
    masks = np.zeros((2, 4, 4), bool)
    with pytest.raises(MetricError, match="2 maps and 1 masks"):
        metric(maps, masks[:1])
    with pytest.raises(MetricError, match=r"expected \(B, H, W\)"):
        metric(maps[0], masks[0])
    with pytest.raises(MetricError, match="shape"):
        metric(list(maps), [masks[0], masks[1, :3]])
    with pytest.raises(MetricError, match=r"expected \(H, W\)"):
        metric([maps[0, 0]], [masks[0, 0]])
    with pytest.raises(MetricError, match="hold 0, 255"):
        metric(maps, np.where(np.eye(4), 255, 0)[None].repeat(2, 0))
    with pytest.raises(MetricError, match="NaN"):
        metric(np.full((2, 4, 4), np.nan), masks)
    with pytest.raises(MetricError, match="limit is 0"):
        metric(maps, masks, limit=0.0)


def test_inputs_stay_as_they_are(scene):
    maps, masks = scene(0)
    masks[0] = False
    copies = maps.copy(), masks.copy()
    F.aupro(maps, masks)
    F.aupro(maps[:1], masks[:1])
    F.auroc(maps, masks)
    F.pro_anomalyclip(maps, masks)
    assert np.array_equal(maps, copies[0]) and np.array_equal(masks, copies[1])
