"""Streaming metrics: the exact value always lies within the bound, states add in any order."""

from __future__ import annotations

import io
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zsad.errors import MetricError
from zsad.metrics import functional as F
from zsad.metrics.exact import ExactPixelMetrics, ImageScores
from zsad.metrics.streaming import PixelMetrics

NAMES = ("auroc", "ap", "f1_max", "aupro")


def exact(maps, masks, *, limit=0.3):
    scores = np.concatenate([np.ravel(m) for m in maps])
    labels = np.concatenate([np.ravel(m) for m in masks])
    return {
        "auroc": F.auroc(scores, labels),
        "ap": F.average_precision(scores, labels),
        "f1_max": F.f1_max(scores, labels),
        "aupro": F.aupro(maps, masks, limit=limit),
    }


def streamed(maps, masks, **options):
    metrics = PixelMetrics(**options)
    for score_map, mask in zip(maps, masks, strict=True):
        metrics.update(score_map, mask)
    return metrics


def assert_inside(result, truth):
    for name in NAMES:
        low, high = result.bounds[name]
        if math.isnan(truth[name]):
            assert math.isnan(getattr(result, name)) and math.isnan(low) and math.isnan(high)
        else:
            assert low <= truth[name] <= high, (name, low, truth[name], high)
            assert low - 1e-12 <= getattr(result, name) <= high + 1e-12, name
            assert abs(truth[name] - getattr(result, name)) <= result.error(name) + 1e-12


@pytest.mark.parametrize("bins", [1, 2, 7, 256, 2**16])
@pytest.mark.parametrize("limit", [0.3, 1.0])
def test_truth_is_inside_the_bound(scene, bins, limit):
    for seed in range(3):
        maps, masks = scene(seed)
        assert_inside(
            streamed(maps, masks, bins=bins, limit=limit).compute(), exact(maps, masks, limit=limit)
        )


# Scores of few bins, on their edges and beside them, ties included; some out of the range.
values = st.one_of(
    st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, np.nextafter(np.float32(0.5), np.float32(0))]),
    st.floats(-0.5, 1.5, width=32),
)
small = st.integers(1, 3).flatmap(
    lambda count: st.tuples(
        hnp.arrays(np.float32, (count, 3, 4), elements=values),
        hnp.arrays(bool, (count, 3, 4), elements=st.booleans()),
    )
)


@settings(max_examples=300)
@given(small, st.sampled_from([1, 2, 3, 4, 64]), st.sampled_from([0.1, 0.3, 1.0]))
def test_truth_is_inside_the_bound_whatever_the_ties(pair, bins, limit):
    maps, masks = pair
    result = streamed(maps, masks, bins=bins, limit=limit).compute()
    assert_inside(result, exact(maps, masks, limit=limit))
    assert result.clamped == ((maps < 0) | (maps > 1)).sum()


@pytest.mark.parametrize("anomalous_first", [True, False])
@pytest.mark.parametrize("tie", [True, False])
def test_bounds_are_reached_by_the_worst_order_within_a_bin(anomalous_first, tie):
    masks = np.zeros((1, 10, 10), bool)
    masks[0, :3] = True
    inside_bin = np.linspace(0.51, 0.52, 100).reshape(1, 10, 10)
    maps = np.where(masks, inside_bin + (0.1 if anomalous_first else -0.1), inside_bin)
    if tie:
        maps = np.where(masks, 0.6 if anomalous_first else 0.4, 0.5)
    result = streamed(maps, masks, bins=1).compute()
    truth = exact(maps, masks)
    assert_inside(result, truth)
    side = 1 if anomalous_first else 0
    assert result.bounds["auroc"][side] == pytest.approx(truth["auroc"], abs=1e-9)
    assert result.bounds["aupro"][side] == pytest.approx(truth["aupro"], abs=1e-9)
    if anomalous_first:
        assert result.bounds["ap"][1] == pytest.approx(truth["ap"], abs=1e-9)
        assert result.bounds["f1_max"][1] == pytest.approx(truth["f1_max"], abs=1e-9)
    elif not tie:
        assert result.bounds["ap"][0] == pytest.approx(truth["ap"], abs=0.005)


def test_bins_as_fine_as_the_scores_give_exact_values(scene):
    maps, masks = scene(0, levels=64)
    result, truth = streamed(maps, masks, bins=64).compute(), exact(maps, masks)
    for name in ("auroc", "f1_max", "aupro"):
        assert getattr(result, name) == pytest.approx(truth[name], abs=1e-12)


def test_default_bins_are_close_and_say_so(scene):
    maps, masks = scene(4, count=6, size=(90, 80))
    result, truth = streamed(maps, masks).compute(), exact(maps, masks)
    # AP is the coarsest here: of few anomalous pixels, each share of a tie counts.
    for name, tolerance in zip(NAMES, (1e-5, 2e-3, 5e-4, 1e-5), strict=True):
        assert getattr(result, name) == pytest.approx(truth[name], abs=tolerance)
        assert result.error(name) < 5 * tolerance


def test_scores_outside_the_range_widen_the_bound(scene):
    maps, masks = scene(2)
    shifted = maps + np.float32(0.6)
    inside = streamed(shifted, masks, value_range=(0.0, 2.0)).compute()
    outside = streamed(shifted, masks).compute()
    assert inside.clamped == 0 and outside.clamped == (shifted > 1).sum() > 0
    assert outside.error("auroc") > 10 * inside.error("auroc")
    assert_inside(outside, exact(shifted, masks))


@pytest.mark.parametrize("extreme", [np.inf, 1e300])
def test_extreme_scores_are_clamped(extreme):
    maps = np.array([[[extreme, 0.2], [-extreme, 0.4]]])
    masks = np.array([[[True, False], [False, False]]])
    result = streamed(maps, masks).compute()
    assert result.clamped == 2
    assert result.auroc == F.auroc(maps, masks) == 1.0


def test_merge_in_any_order_equals_one_pass(scene):
    maps, masks = scene(7, count=5)
    whole = streamed(maps, masks).compute()
    for order in itertools.islice(itertools.permutations(range(5)), 0, None, 5):
        parts = [streamed(maps[i : i + 1], masks[i : i + 1]) for i in order]
        left = parts[0].merge(parts[1]).merge(parts[2].merge(parts[3])).merge(parts[4])
        result = left.compute()
        assert left.maps == 5
        assert (result.normal_pixels, result.anomalous_pixels, result.regions) == (
            whole.normal_pixels,
            whole.anomalous_pixels,
            whole.regions,
        )
        assert result.auroc == whole.auroc and result.ap == whole.ap and result.f1_max == whole.f1_max
        assert result.aupro == pytest.approx(whole.aupro, abs=1e-12)


@pytest.mark.parametrize("options", [{"bins": 8}, {"value_range": (0, 2)}, {"limit": 0.2}])
def test_merge_refuses_other_settings(options):
    with pytest.raises(MetricError, match="cannot merge"):
        PixelMetrics().merge(PixelMetrics(**options))


def test_state_survives_a_file(scene):
    maps, masks = scene(1)
    first = streamed(maps[:2], masks[:2], bins=512, value_range=(-0.5, 0.7), limit=0.25)
    file = io.BytesIO()
    np.savez(file, **first.state_dict())
    file.seek(0)
    with np.load(file, allow_pickle=False) as loaded:
        second = PixelMetrics.from_state(loaded)
    for metrics in (first, second):
        metrics.update(maps[2], masks[2])
    assert second.compute() == first.compute()
    assert (second.maps, second.clamped) == (first.maps, first.clamped)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("clean", None, "lacks clean"),
        ("mixed", np.zeros(3, int), "one length"),
        ("mixed", np.zeros((2, 8), int), "one length"),
        ("anomalous", np.full(16, -1), "from 0 on"),
        ("anomalous", np.full(16, 1), "more anomalous pixels"),
        ("weight", np.full(16, 0.5), "whole numbers"),
        ("weight", np.full(16, 7), "weight does not sum to 0"),
        ("share", np.full(16, 7), "share does not sum to 0"),
        ("counts", np.zeros(2, int), "need 3, 2 and 5 numbers"),
        ("counts", np.full(5, -1), "damaged"),
        ("extremes", np.zeros(3), "need 3, 2 and 5 numbers"),
        ("settings", np.array([0.0, 1.0, 0.0]), "limit"),
        ("settings", np.array([0.0, np.nan, 0.3]), "value_range"),
    ],
)
def test_damaged_state_is_refused(name, value, message):
    state = PixelMetrics(bins=16).state_dict()
    if value is None:
        del state[name]
    else:
        state[name] = value
    with pytest.raises(MetricError, match=message):
        PixelMetrics.from_state(state)


@pytest.mark.parametrize(
    "options",
    [{"bins": 0}, {"bins": 2**30}, {"value_range": (1, 1)}, {"value_range": (0, np.inf)}, {"limit": 1.5}],
)
def test_impossible_settings(options):
    with pytest.raises(MetricError):
        PixelMetrics(**options)


@pytest.mark.parametrize("metrics", [PixelMetrics(bins=16), ExactPixelMetrics()])
def test_bad_maps_leave_the_state_untouched(metrics):
    mask = np.zeros((4, 4), bool)
    for score_map, bad in (
        (np.full((4, 4), np.nan), mask),
        (np.zeros((4, 5)), mask),
        (np.zeros((4, 4)), mask + 2),
        (np.zeros(4), mask[0]),
    ):
        with pytest.raises(MetricError):
            metrics.update(score_map, bad)
    assert metrics.maps == 0 and metrics.compute().normal_pixels == 0


def test_undefined_without_pixels_of_both_kinds():
    for metrics in (PixelMetrics(bins=16), ExactPixelMetrics()):
        assert all(math.isnan(getattr(metrics.compute(), name)) for name in NAMES)
        metrics.update(np.random.default_rng(0).random((5, 5)), np.zeros((5, 5), bool))
        result = metrics.compute()
        assert all(math.isnan(getattr(result, name)) for name in NAMES)
        assert result.normal_pixels == 25 and result.anomalous_pixels == 0


def test_exact_form_keeps_what_it_was_given(scene):
    maps, masks = scene(3)
    truth, pro = exact(maps, masks), F.pro_anomalyclip(maps, masks)
    metrics, other = ExactPixelMetrics(), ExactPixelMetrics()
    for index, (score_map, mask) in enumerate(zip(maps, masks, strict=True)):
        buffer = score_map.copy()
        (metrics if index % 2 else other).update(buffer, mask)
        buffer[:] = 7.0
    other.compute()
    metrics.merge(other)
    for _ in range(2):
        result = metrics.compute()
        for name in NAMES:
            assert getattr(result, name) == pytest.approx(truth[name], abs=1e-12)
            assert result.error(name) == 0
        assert metrics.measure("pro_anomalyclip").value == pytest.approx(pro, abs=1e-12)
    with pytest.raises(MetricError, match="limits"):
        metrics.merge(ExactPixelMetrics(limit=0.1))


def test_image_scores():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 60)
    scores = np.round(rng.random(60) + labels * 0.3, 1)
    first, second = ImageScores(), ImageScores()
    for index, (score, label) in enumerate(zip(scores, labels, strict=True)):
        (first if index < 20 else second).add(score, label)
    result = second.merge(first).compute()
    assert result.auroc == pytest.approx(F.auroc(scores, labels), abs=1e-15)
    assert result.ap == pytest.approx(F.average_precision(scores, labels), abs=1e-15)
    assert result.f1_max == pytest.approx(F.f1_max(scores, labels), abs=1e-15)
    assert (result.normal, result.anomalous) == ((labels == 0).sum(), labels.sum())
    for score, label in ((math.nan, 0), (0.5, 2), (0.5, 0.5)):
        with pytest.raises(MetricError):
            first.add(score, label)
    assert len(first.scores) == len(first.labels) == 20
    assert math.isnan(ImageScores().compute().auroc)
