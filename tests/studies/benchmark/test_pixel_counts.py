"""Pixel metrics of draws of images: against measuring the drawn images one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from zsad.metrics.classes import PRO_MEASURES
from zsad.metrics.streaming import PixelMetrics
from zsad.studies.benchmark.bootstrap import draw_counts
from zsad.studies.benchmark.cell_results import read_cells
from zsad.studies.benchmark.pixel_counts import (
    PIXEL_METRICS,
    ClassPixels,
    group_starts,
    grouped_metrics,
    read_pixels,
    sample_pixels,
)
from zsad.studies.benchmark.summary import OVERALL, Summary

COLUMNS = dict(zip(PIXEL_METRICS, ("auroc", "ap", "f1_max", "aupro"), strict=True))
Scene = tuple[np.ndarray, np.ndarray]


def scenes(*, clean: int = 6, marked: int = 9, narrow: bool = False) -> Iterator[Scene]:
    """Maps and masks of 40 x 40; the images differ in how well their one or two defects stand out."""
    rng = np.random.default_rng(3)
    for number in range(clean + marked):
        mask = np.zeros((40, 40), bool)
        for _ in range(rng.integers(1, 3) if number >= clean else 0):
            top, left = rng.integers(0, 30, 2)
            mask[top : top + rng.integers(3, 9), left : left + rng.integers(3, 9)] = True
        scores = 1 / (1 + np.exp(2 - rng.normal(size=mask.shape) - rng.uniform(0, 3) * mask))
        yield (0.4 + 0.003 * scores if narrow else scores).astype(np.float32), mask


def alone(scene: Scene) -> PixelMetrics:
    state = PixelMetrics()
    state.update(*scene)
    return state


def counted(found: list[Scene], *, groups: int = 256, pro: str = "aupro") -> tuple[ClassPixels, PixelMetrics]:
    whole = PixelMetrics()
    for scene in found:
        whole.update(*scene)
    thresholds = whole.equidistant_bins() if pro == "anomalyclip" else np.empty(0, int)
    starts = group_starts(whole, thresholds, groups=groups)
    images = ((f"{n:02}", alone(scene)) for n, scene in enumerate(found))
    return ClassPixels.of(images, starts, thresholds), whole


def values_of(state: PixelMetrics, pro: str = "aupro") -> dict[str, float]:
    result = state.compute()
    values = {name: getattr(result, column) for name, column in COLUMNS.items()}
    return {**values, "pixel_pro": state.measure(PRO_MEASURES[pro]).value}


def measured(found: list[Scene], times: np.ndarray, pro: str) -> dict[str, float]:
    """The slow form: every image as often as it was drawn."""
    state = PixelMetrics()
    for scene, repeats in zip(found, times.tolist(), strict=True):
        for _ in range(repeats):
            state.update(*scene)
    return values_of(state, pro)


def test_a_group_for_each_bin_gives_the_metrics_of_the_bins() -> None:
    pixels, whole = counted(list(scenes()), groups=10**7)
    assert pixels.once() == pytest.approx(values_of(whole), abs=1e-6)


@pytest.mark.parametrize("groups", [256, 10**7])
def test_groups_are_cut_at_the_thresholds_of_anomalyclips_pro(groups: int) -> None:
    uneven = [(scores**8, mask) for scores, mask in scenes()]  # most scores lie between two thresholds
    pixels, whole = counted(uneven, groups=groups, pro="anomalyclip")
    exact = values_of(whole, "anomalyclip")["pixel_pro"]
    assert pixels.once()["pixel_pro"] == pytest.approx(exact, abs=1e-3)
    assert values_of(whole)["pixel_pro"] > exact + 0.3


@pytest.mark.parametrize(
    ("clean", "narrow", "pro"), [(6, False, "aupro"), (0, True, "aupro"), (6, False, "anomalyclip")]
)
def test_draws_are_those_of_the_images_drawn(clean: int, narrow: bool, pro: str) -> None:
    found = list(scenes(clean=clean, narrow=narrow))
    pixels, whole = counted(found, pro=pro)
    assert pixels.clean_normal.shape[0] == clean and 100 < pixels.normal.shape[1] <= 456
    names = pixels.clean.tolist(), pixels.marked.tolist()
    resamples = 60
    sampled = sample_pixels(
        [pixels],
        [values_of(whole, pro)],
        seeds=[1],
        clean=names[0],
        marked=names[1],
        generator=np.random.default_rng(5),
        resamples=resamples,
    )
    again = np.random.default_rng(5)
    times = np.concatenate([draw_counts(len(part), resamples, again) for part in names])
    slow = [measured(found, times[:, column], pro) for column in range(resamples)]
    for name in PIXEL_METRICS:
        expected = np.array([row[name] for row in slow])
        got = sampled[name]
        assert got.values == pytest.approx([values_of(whole, pro)[name]], abs=1e-12)
        assert np.abs(got.drawn[0] - expected).max() < 0.1 * expected.std(), name
        assert got.drawn.std() == pytest.approx(expected.std(), rel=0.03)
        interval = got.interval()
        assert interval is not None and interval.low < got.values[0] < interval.high


def test_one_image_less() -> None:
    found = list(scenes(clean=3, marked=4))
    pixels, _ = counted(found)
    left = pixels.without_each()
    for place in range(7):
        rest = [name for name in (*pixels.clean.tolist(), *pixels.marked.tolist()) if int(name) != place]
        fewer = pixels.taken([n for n in rest if int(n) < 3], [n for n in rest if int(n) >= 3]).once()
        assert {name: left[name][place] for name in PIXEL_METRICS} == pytest.approx(fewer, abs=1e-12)


def test_sets_that_lack_a_kind_of_pixels_are_undefined() -> None:
    normal, none = np.array([[3.0, 5.0]]), np.zeros((1, 2))
    for first, second in ((normal, none), (none, normal)):
        assert all(np.isnan(found[0]) for found in grouped_metrics(first, second, second).values())
    perfect = grouped_metrics(np.array([[0.0, 5.0]]), np.array([[4.0, 0.0]]), np.array([[1.0, 0.0]]))
    assert {name: float(found[0]) for name, found in perfect.items()} == dict.fromkeys(PIXEL_METRICS, 1.0)


def test_broken_files_hold_nothing(tmp_path: Path) -> None:
    path = tmp_path / "some.pixels.npz"
    assert read_pixels(path) == {}
    path.write_bytes(b"PK\x03\x04 half")
    assert read_pixels(path) == {}
    np.savez(path, **{"bolt/clean": np.array(["a"])})
    assert read_pixels(path) == {}


def test_a_benchmark_knows_intervals_of_pixel_metrics(call, words, tmp_path: Path, no_report: None) -> None:
    code, _, said = call(*words("--train-on", "aux", "--test-on", "one", "two", "--seeds", 1, 2))
    assert code == 0, said
    work = tmp_path / "out"
    cells = read_cells(work)
    assert all(cell.files.pixels and (work / cell.files.pixels).is_file() for cell in cells)
    summary = Summary(cells, work=work, resamples=200)
    for target in ("one", "two", OVERALL):
        for metric in PIXEL_METRICS:
            for name in summary.names:
                entry = summary.entry(name, target, metric)
                assert entry.interval is not None, (name, target, metric)
                assert entry.interval.low <= entry.spread.mean <= entry.interval.high
            compared = summary.compare(*summary.names, target, metric)
            assert compared is not None and compared.over == "images and seeds"
    # Results of an earlier version, which counted no pixels, have no such intervals, and no error.
    for cell in cells:
        (work / cell.files.pixels).unlink()
    older = Summary(cells, work=work, resamples=50)
    assert older.entry(older.names[0], "one", "pixel_auroc").interval is None
    assert older.entry(older.names[0], "one", "image_auroc").interval is not None
