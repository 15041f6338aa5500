from __future__ import annotations

import math
import time

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from zsad.errors import MetricError
from zsad.studies.benchmark.bootstrap import (
    IMAGE_METRICS,
    Sampled,
    Spread,
    counted_metrics,
    draw_counts,
    sample_class,
)
from zsad.studies.benchmark.significance import (
    MethodComparison,
    compare_classes,
    compare_images,
    compare_seeds,
    holm,
    stand,
)


def simulated(
    seed: int, *, normal: int = 40, anomalous: int = 40, shift: float = 1.0, rows: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [normal, anomalous]).astype(np.int8)
    return generator.normal(size=(rows, labels.size)) + shift * labels, labels


def sampled(
    scores: np.ndarray, labels: np.ndarray, *, resamples: int = 500, draw: int = 7
) -> dict[str, Sampled]:
    found = sample_class(
        scores,
        labels,
        seeds=range(len(scores)),
        generator=np.random.default_rng(draw),
        resamples=resamples,
    )
    assert found is not None
    return found


@pytest.mark.parametrize("digits", [1, 6])
def test_resampled_metrics_are_those_of_the_repeated_images(digits: int) -> None:
    """Each column of counts gives what scikit-learn says of the images written out that often; ties included."""
    scores, labels = simulated(3, normal=17, anomalous=23)
    row = np.round(scores[0], digits)
    generator = np.random.default_rng(0)
    counts = [draw_counts(size, 50, generator) for size in (17, 23)]
    found = counted_metrics(row[labels == 0], row[labels == 1], *counts)
    for column in range(50):
        repeats = np.concatenate([part[:, column] for part in counts])
        drawn, truth = np.repeat(row, repeats), np.repeat(labels, repeats)
        precision, recall, _ = precision_recall_curve(truth, drawn)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        expected = (roc_auc_score(truth, drawn), average_precision_score(truth, drawn), f1.max())
        assert [found[metric][column] for metric in IMAGE_METRICS] == pytest.approx(expected, abs=1e-12)


def test_draws_keep_the_number_of_images_and_are_uniform() -> None:
    counts = draw_counts(12, 4000, np.random.default_rng(1))
    assert (counts.sum(axis=0) == 12).all()
    share = counts.mean(axis=1)
    assert share == pytest.approx(np.ones(12), abs=0.08)
    assert counts.var() == pytest.approx(11 / 12, abs=0.05)


def test_interval_is_that_of_scipy() -> None:
    scores, labels = simulated(5, normal=25, anomalous=35)

    def auroc(anomalous: np.ndarray, normal: np.ndarray, axis: int = -1) -> np.ndarray:
        return (anomalous[..., :, None] > normal[..., None, :]).mean(axis=(-1, -2))

    theirs = stats.bootstrap(
        (scores[0][labels == 1], scores[0][labels == 0]),
        auroc,
        n_resamples=4000,
        vectorized=True,
        method="BCa",
        batch=500,
        random_state=np.random.default_rng(2),
    ).confidence_interval
    ours = sampled(scores, labels, resamples=4000)["image_auroc"].interval()
    assert ours is not None
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.012)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    truth = stats.norm.cdf(1.0 / math.sqrt(2))
    inside = 0
    for seed in range(150):
        found = sampled(*simulated(seed))["image_auroc"].interval()
        assert found is not None
        inside += found.low <= truth <= found.high
    assert 0.89 <= inside / 150 <= 0.99


def test_mean_of_classes_narrows_the_interval() -> None:
    parts = [sampled(*simulated(seed), draw=seed, resamples=2000)["image_auroc"] for seed in range(9)]
    mean = Sampled.mean(parts)
    assert mean.values == pytest.approx(np.mean([part.values for part in parts], axis=0))
    assert mean.images == 9 * 80
    widths = []
    for part in (*parts, mean):
        interval = part.interval()
        assert interval is not None
        widths.append(interval.high - interval.low)
    assert widths[-1] == pytest.approx(np.mean(widths[:-1]) / 3, rel=0.1)


def test_only_common_seeds_enter_a_mean() -> None:
    first, second = (sampled(*simulated(seed, rows=3))["image_ap"] for seed in (0, 1))
    fewer = Sampled((2, 0), second.values[[2, 0]], second.drawn[[2, 0]], 0.0, 0.0, 80)
    mean = Sampled.mean([first, fewer])
    assert mean.seeds == (0, 2)
    assert mean.values == pytest.approx((first.values[[0, 2]] + second.values[[0, 2]]) / 2)
    with pytest.raises(MetricError, match="no seed in common"):
        Sampled.mean([first, Sampled((9,), second.values[:1], second.drawn[:1], 0.0, 0.0, 80)])


def test_a_perfect_ranking_has_no_interval() -> None:
    scores = np.array([[0.1, 0.2, 0.3, 0.7, 0.8]])
    found = sampled(scores, np.array([0, 0, 0, 1, 1], np.int8))
    for metric in IMAGE_METRICS:
        assert found[metric].values[0] == 1.0
        assert found[metric].interval() is None


def test_tiny_and_constant_input() -> None:
    assert (
        sample_class(np.zeros((1, 3)), np.zeros(3, np.int8), seeds=[None], generator=np.random.default_rng(0))
        is None
    )
    pair = sampled(np.array([[0.0, 1.0]]), np.array([0, 1], np.int8))
    assert pair["image_auroc"].values[0] == 1.0 and pair["image_auroc"].interval() is None
    constant = sampled(np.zeros((1, 10)), np.repeat([0, 1], 5).astype(np.int8))["image_auroc"]
    assert constant.values[0] == 0.5 and constant.interval() is None
    labels = np.array([0, 1], np.int8)
    for scores in (np.array([[math.nan, 1.0]]), np.zeros((2, 2)), np.zeros((1, 3))):
        with pytest.raises(MetricError):
            sample_class(scores, labels, seeds=[0], generator=np.random.default_rng(0))


def test_two_images_never_make_a_difference_significant() -> None:
    labels = np.array([0, 1], np.int8)
    right, wrong = (sampled(np.array([row]), labels)["image_auroc"] for row in ([0.0, 1.0], [1.0, 0.0]))
    assert compare_images(right, wrong, generator=np.random.default_rng(0)).p == 0.5


def test_identical_methods_never_differ() -> None:
    scores, labels = simulated(0, rows=3)
    # A monotone change of the scores gives the same ranking, so the same method.
    one, other = sampled(scores, labels), sampled(np.exp(scores), labels)
    for metric in IMAGE_METRICS:
        found = compare_images(one[metric], other[metric], generator=np.random.default_rng(0))
        assert (found.difference, found.p) == (0.0, 1.0)
        assert found.interval is not None and found.interval.low == found.interval.high == 0.0


def test_equal_methods_are_seldom_and_unequal_ones_often_told_apart() -> None:
    alike = better = 0
    for seed in range(120):
        signal, labels = simulated(seed)
        noise = np.random.default_rng(1000 + seed).normal(size=(3, labels.size))
        rows = [
            sampled(row[None], labels)["image_auroc"]
            for row in (signal[0] + noise[0], signal[0] + noise[1], signal[0] + 0.9 * labels + 0.3 * noise[2])
        ]
        generator = np.random.default_rng(seed)
        alike += compare_images(rows[0], rows[1], generator=generator).p < 0.05
        better += compare_images(rows[2], rows[0], generator=generator).p < 0.05
    assert alike <= 12
    assert better >= 100


def test_noise_of_seeds_counts() -> None:
    """Seeds that scatter more than the images say hide a difference that one seed each would show."""
    signal, labels = simulated(0, normal=300, anomalous=300)
    strengths = [1.15, 1.0, 1.3, 0.9, 1.05, 1.2]
    rows = np.concatenate([signal * 0.5 + labels * s for s in strengths])
    first, second = (sampled(part, labels)["image_auroc"] for part in (rows[:3], rows[3:]))
    generator = np.random.default_rng(3)
    single = [Sampled((0,), part.values[:1], part.drawn[:1], 0, 0, 600) for part in (first, second)]
    assert compare_images(*single, generator=generator).p < 0.05
    both = compare_images(first, second, generator=generator)
    assert both.over == "images and seeds" and both.p > 0.05
    spread = (first.with_seed_noise(generator) - first.drawn.mean(axis=0)).std()
    assert spread == pytest.approx(first.values.std(ddof=1) / math.sqrt(3), rel=0.15)


def test_signs_of_classes_are_counted_out() -> None:
    differences = [0.03, 0.01, 0.02, 0.05, -0.004, 0.01, 0.02]
    theirs = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    generator = np.random.default_rng(0)
    assert compare_classes(differences, [1 / 7] * 7, generator=generator).p == pytest.approx(theirs.pvalue)
    assert compare_classes([0.0] * 4, [0.25] * 4, generator=generator).p == 1.0
    assert compare_classes([0.3], [1.0], generator=generator).p == 1.0
    many = compare_classes([0.01] * 40, [1 / 40] * 40, generator=generator)
    assert 0 < many.p < 1e-3 and many.difference == pytest.approx(0.01)
    with pytest.raises(MetricError):
        compare_classes([], [], generator=generator)


def test_splits_of_seeds_are_counted_out() -> None:
    first, second = [0.9, 0.92, 0.91, 0.93], [0.8, 0.82, 0.85, 0.905]
    theirs = stats.permutation_test(
        (first, second),
        lambda x, y: np.mean(x) - np.mean(y),
        permutation_type="independent",
        n_resamples=np.inf,
    )
    generator = np.random.default_rng(0)
    assert compare_seeds(first, second, generator=generator).p == pytest.approx(theirs.pvalue)
    assert compare_seeds([0.9], [0.1], generator=generator).p == 1.0
    with pytest.raises(MetricError):
        compare_seeds([], [0.1], generator=generator)


def test_spread_leaves_out_and_counts_the_undefined() -> None:
    spread = Spread.of([0.9, None, 0.7, math.nan, 0.8])
    assert spread.mean == pytest.approx(0.8) and spread.deviation == pytest.approx(0.1)
    assert (spread.count, spread.undefined) == (3, 2)
    assert math.isnan(Spread.of([0.5]).deviation) and Spread.of([0.5]).mean == 0.5
    assert math.isnan(Spread.of([]).mean)


def test_holm_steps_down() -> None:
    assert holm([]) == []
    assert holm([0.02]) == [0.02]
    assert holm([0.04, 0.01, 0.03, 0.005]) == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_bold_face_only_beyond_the_noise() -> None:
    p = {("a", "b"): 0.2, ("a", "c"): 0.001, ("a", "d"): None}
    means = {"a": 0.93, "b": 0.925, "c": 0.8, "d": 0.7, "e": math.nan}

    def compare(best: str, other: str) -> MethodComparison | None:
        found = p[best, other]
        return None if found is None else MethodComparison(means[best] - means[other], found, "images")

    standing = stand(means, compare)
    assert standing is not None and standing.best == "a"
    assert standing.worse() == {"c"}
    assert standing.bold() == {"a", "b", "d"}
    p["a", "c"] = 0.03  # two tests: 0.06 after the correction
    inside = stand(means, compare)
    assert inside is not None and inside.bold() == frozenset()
    assert stand({"a": 0.5, "b": math.nan}, compare) is None


def test_thousands_of_resamples_take_no_time() -> None:
    scores, labels = simulated(0, normal=100, anomalous=100)
    start = time.process_time()
    sampled(scores, labels, resamples=5000)
    assert time.process_time() - start < 1.0  # about 0.1 s; a loop over resamples takes ten
