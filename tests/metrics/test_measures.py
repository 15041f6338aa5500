"""The measures beyond AUROC, AP, F1-max and AUPRO: against the published procedures as loops, exact and streaming."""

from __future__ import annotations

import math
import multiprocessing
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zsad.errors import MetricError
from zsad.metrics import functional as F
from zsad.metrics.aupimo import aupimo
from zsad.metrics.exact import PIXEL_MEASURES, ExactPixelMetrics
from zsad.metrics.streaming import PixelMetrics

WIDE = (0.01, 0.3)


def filled(state, maps, masks):
    for score_map, mask in zip(maps, masks, strict=True):
        state.update(score_map, mask)
    return state


@pytest.mark.parametrize("levels", [None, 6])
@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_official_mvtec_evaluations(oracle, scene, levels, limit):
    for seed in range(2):
        maps, masks = scene(seed, size=(18, 16), levels=levels)
        official = oracle.aupro_mvtec(maps, masks, limit=limit)
        assert F.aupro_mvtec(maps, masks, limit=limit) == pytest.approx(official, abs=1e-12)
        assert F.aupro(maps, masks, limit=limit) == pytest.approx(official, abs=1e-12)
        for thresholds in (100, 7):
            slow = oracle.aupro_mvtec3d(maps, masks, limit=limit, thresholds=thresholds)
            fast = F.aupro_mvtec(maps, masks, limit=limit, thresholds=thresholds)
            assert fast == pytest.approx(slow, abs=1e-12)


def test_mvtec_joins_regions_that_touch_at_a_corner():
    masks = np.zeros((1, 6, 6), bool)
    masks[0, 0, 0] = masks[0, 1, 1] = masks[0, 5, 5] = True
    maps = np.zeros((1, 6, 6))
    maps[0, 5, 5] = 1.0
    # Two regions, not three: half of the overlap is had at once, the rest ties with what is normal.
    assert F.aupro_mvtec(maps, masks, limit=0.2) == pytest.approx(0.5 + 0.5 * 0.1)


def test_mvtec_needs_a_threshold():
    with pytest.raises(MetricError, match="thresholds is 0"):
        F.aupro_mvtec(np.random.default_rng(0).random((1, 4, 4)), np.eye(4)[None], thresholds=0)


@pytest.mark.parametrize("levels", [None, 9])
def test_aupimo_equals_its_definition(oracle, scene, levels):
    for seed in range(2):
        maps, masks = scene(seed, count=4, size=(14, 12), levels=levels)
        masks[2] = False
        found, slow = aupimo(maps, masks, bounds=WIDE), oracle.aupimo(maps, masks, bounds=WIDE)
        assert np.isnan(found).tolist() == [True, False, True, False]
        assert found == pytest.approx(slow, abs=2e-3, nan_ok=True)


def test_aupimo_by_hand():
    """100 normal pixels of scores 0.00 to 0.99: the rate above 0.895 is 1/10, above 0.99 it is 0."""
    clean = np.arange(100).reshape(10, 10) / 100
    other, mask = np.full((10, 10), 0.5), np.zeros((10, 10), bool)
    mask[0, :4] = True
    other[0, :4] = 1.0, 0.895, 0.695, -1.0
    # At rates from 0.01 to 1: found throughout; from 0.1 on, half of the logarithm; from 0.3 on; never.
    expected = (1 + 0.5 + math.log(1 / 0.3) / math.log(100) + 0) / 4
    found = aupimo([clean, other], [np.zeros((10, 10)), mask], bounds=(0.01, 1.0))
    assert found[1] == pytest.approx(expected, abs=1e-12)


def test_aupimo_looks_at_normal_images_alone_and_at_no_scale(scene):
    maps, masks = scene(2)
    base = aupimo(maps, masks, bounds=WIDE)
    louder = np.where(masks | ~masks.any(axis=(1, 2), keepdims=True), maps, 1.0)
    assert aupimo(louder, masks, bounds=WIDE) == pytest.approx(base, nan_ok=True)
    assert aupimo(maps * 3 - 7, masks, bounds=WIDE) == pytest.approx(base, abs=1e-4, nan_ok=True)
    assert np.isnan(aupimo(maps[1:], masks[1:])).all()
    assert aupimo([], []).size == 0
    perfect = np.where(masks, 1.0, maps * 0.5)
    assert np.nanmin(aupimo(perfect, masks)) == 1.0


@pytest.mark.parametrize("bounds", [(0.0, 0.1), (0.1, 0.1), (0.2, 0.1), (0.1, 1.1), (math.nan, 0.1)])
def test_impossible_rates_are_refused(bounds):
    with pytest.raises(MetricError, match="bounds are"):
        aupimo(np.zeros((1, 2, 2)), np.zeros((1, 2, 2)), bounds=bounds)


def truths(maps, masks, *, limit=0.3):
    scores = aupimo(maps, masks)
    return {
        "aupro": F.aupro(maps, masks, limit=limit),
        "pro_anomalyclip": F.pro_anomalyclip(maps, masks, limit=limit),
        "aupro_mvtec3d": F.aupro_mvtec(maps, masks, limit=limit, thresholds=100),
        "aupimo": float(np.nanmean(scores)) if np.isfinite(scores).any() else math.nan,
    }


def assert_inside(state, truth, *, limit=0.3):
    for name, exact in truth.items():
        found = state.measure(name, limit=None if name == "aupimo" else limit)
        if math.isnan(exact):
            continue
        assert found.low <= exact <= found.high, (name, exact, found)
        assert math.isnan(found.value) or found.low - 1e-12 <= found.value <= found.high + 1e-12, (
            name,
            found,
        )


@pytest.mark.parametrize("bins", [1, 2, 9, 256, 2**16])
@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_truth_is_inside_the_bound(scene, bins, limit):
    for seed in range(3):
        maps, masks = scene(seed)
        state = filled(PixelMetrics(bins=bins), maps, masks)
        assert_inside(state, truths(maps, masks, limit=limit), limit=limit)


values = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.floats(-0.5, 1.5, width=32))
small = st.integers(1, 3).flatmap(
    lambda count: st.tuples(
        hnp.arrays(np.float32, (count, 3, 4), elements=values),
        hnp.arrays(bool, (count, 3, 4), elements=st.booleans()),
        hnp.arrays(bool, (count, 1, 1), elements=st.booleans()),
    )
)


@settings(max_examples=80)
@given(small, st.sampled_from([1, 3, 64]), st.sampled_from([0.1, 0.3, 1.0]))
def test_truth_is_inside_the_bound_whatever_the_ties(parts, bins, limit):
    maps, masks, some = parts
    masks = masks & some
    exact = filled(ExactPixelMetrics(), maps, masks)
    truth = truths(maps, masks, limit=limit)
    assert_inside(filled(PixelMetrics(bins=bins), maps, masks), truth, limit=limit)
    for name, value in truth.items():
        found = exact.measure(name, limit=None if name == "aupimo" else limit)
        assert found == pytest.approx((value,) * 3, abs=1e-12, nan_ok=True), name


def test_default_bins_are_close(scene):
    maps, masks = scene(4, count=8, size=(90, 80))
    masks[::2] = False
    state, truth = filled(PixelMetrics(), maps, masks), truths(maps, masks)
    for name, tolerance in zip(PIXEL_MEASURES, (1e-5, 1e-4, 1e-4, 1e-2), strict=True):
        found = state.measure(name)
        assert found.value == pytest.approx(truth[name], abs=tolerance), name
        assert found.high - found.low < 5 * tolerance, name


def test_maps_in_double_precision_have_thresholds_of_their_own(scene):
    maps, masks = scene(3)
    maps = maps.astype(np.float64) + 1e-9
    assert_inside(filled(PixelMetrics(), maps, masks), truths(maps, masks))


def test_measures_refuse_what_makes_no_sense(scene):
    for state in (PixelMetrics(), ExactPixelMetrics()):
        with pytest.raises(MetricError, match="'pimo', expected one of aupro"):
            state.measure("pimo")
        with pytest.raises(MetricError, match="limit is 2"):
            state.measure("aupro", limit=2)
        with pytest.raises(MetricError, match="no limit"):
            state.measure("aupimo", limit=0.3)
        assert all(math.isnan(state.measure(name).value) for name in PIXEL_MEASURES)
        state.update(np.random.default_rng(0).random((5, 5)), np.zeros((5, 5), bool))
        assert all(math.isnan(state.measure(name).value) for name in PIXEL_MEASURES)
        assert state.curve().normal == 25


def one_part(part):
    maps, masks = part
    return filled(PixelMetrics(), maps, masks)


def test_processes_and_orders_give_the_same_numbers_to_the_last_digit(scene):
    maps, masks = scene(7, count=9, size=(40, 37))
    whole = filled(PixelMetrics(), maps, masks)
    order = np.random.default_rng(1).permutation(9)
    parts = [(maps[chosen], masks[chosen]) for chosen in np.array_split(order, 4)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        merged = PixelMetrics()
        for state in pool.imap_unordered(one_part, parts):
            merged.merge(state)
    again = pickle.loads(
        pickle.dumps(merged)
    )  # a state sent on; nothing of the kind is ever read from a file
    for state in (merged, again):
        assert state.compute() == whole.compute()
        assert [state.measure(name) for name in PIXEL_MEASURES] == [
            whole.measure(name) for name in PIXEL_MEASURES
        ]


def test_memory_does_not_grow_with_the_data(scene):
    maps, masks = scene(0)
    state = filled(PixelMetrics(bins=512), maps, masks)
    size = len(pickle.dumps(state))
    for _ in range(20):
        filled(state, maps, masks)
    assert abs(len(pickle.dumps(state)) - size) < 64
    assert state.maps == 21 * len(maps)


def test_more_regions_than_a_state_holds_are_refused(monkeypatch, scene):
    monkeypatch.setattr("zsad.metrics.streaming.MOST_REGIONS", 3)
    maps, masks = scene(0, count=2)
    masks[1] = False
    masks[1, ::4, ::4] = True
    state = PixelMetrics()
    with pytest.raises(MetricError, match="metrics='exact'"):
        state.update(maps[1], masks[1])
    assert state.maps == 0 and not state.mixed.any()
