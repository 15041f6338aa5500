"""Significance: tests of differences between methods, and which numbers may stand in bold face.

Where the scores of the images are known, two methods are compared on the same resamples of them; else over the
classes, or over the seeds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from zsad.errors import MetricError
from zsad.studies.benchmark.bootstrap import LEVEL, ROUNDING, Float64, Interval, Sampled

ALPHA = 0.05
_MOST_SPLITS = 20_000  # counted out one by one; above, as many are drawn


@dataclass(frozen=True, slots=True)
class MethodComparison:
    """A difference of two methods, the first less the second.

    Attributes:
        difference: of the means.
        interval: of the difference, where images were resampled.
        p: probability of a difference at least this large, were the methods alike; two-sided.
        over: what was varied: "images", "images and seeds", "classes" or "seeds".
    """

    difference: float
    p: float
    over: str
    interval: Interval | None = None


def compare_images(
    first: Sampled, second: Sampled, *, generator: np.random.Generator, level: float = LEVEL
) -> MethodComparison:
    """Compare two methods on the same resamples of images, each with its seeds drawn anew where it has several.

    Among n images no exchange of two methods is rarer than 2 in 2^n, which is the least p that is given.

    Raises:
        MetricError: another number of resamples.
    """
    if first.drawn.shape[1] != second.drawn.shape[1]:
        raise MetricError(
            f"{first.drawn.shape[1]} and {second.drawn.shape[1]} resamples; draw both with the same number"
        )
    same = np.array_equal(first.drawn, second.drawn)
    deltas = (
        np.zeros(first.drawn.shape[1])
        if same
        else (first.with_seed_noise(generator) - second.with_seed_noise(generator))
    )
    count = deltas.size
    lower, upper = ((sign * deltas <= ROUNDING).sum() for sign in (1, -1))
    p = 2 * (min(int(lower), int(upper)) + 1) / (count + 1)
    floor = 2.0 ** (1 - min(first.images, second.images, 1000))
    low, high = np.quantile(deltas, [(1 - level) / 2, (1 + level) / 2])
    several = max(len(first.seeds), len(second.seeds)) > 1
    difference = 0.0 if same else float(first.values.mean() - second.values.mean())
    over = "images and seeds" if several else "images"
    return MethodComparison(difference, min(1.0, max(p, floor)), over, Interval(float(low), float(high)))


def compare_classes(
    differences: Sequence[float], weights: Sequence[float], *, generator: np.random.Generator
) -> MethodComparison:
    """Compare two methods over classes: were they alike, each class's difference might have the other sign.

    Args:
        differences: of the two methods in each class.
        weights: of the classes in the mean.
        generator: draws the signs where there are too many to count them out.

    Raises:
        MetricError: no classes, or not a weight for each.
    """
    if not differences or len(differences) != len(weights):
        raise MetricError(f"{len(differences)} differences and {len(weights)} weights, expected equally many")
    terms = np.asarray(differences, float) * np.asarray(weights, float)
    if 2**terms.size <= _MOST_SPLITS:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=terms.size)))
        sums, extra = signs @ terms, 0
    else:
        sums, extra = generator.choice((1.0, -1.0), size=(_MOST_SPLITS, terms.size)) @ terms, 1
    observed = float(terms.sum())
    p = _share_beyond(sums, observed, extra)
    return MethodComparison(observed, p, "classes")


def compare_seeds(
    first: Sequence[float], second: Sequence[float], *, generator: np.random.Generator
) -> MethodComparison:
    """Compare two methods over seeds: were they alike, any split of all values into two groups would be as likely.

    Raises:
        MetricError: a method without values.
    """
    if not first or not second:
        raise MetricError(f"{len(first)} and {len(second)} seeds, expected at least one of each")
    pool = np.asarray([*first, *second], float)
    size = len(first)
    if math.comb(pool.size, size) <= _MOST_SPLITS:
        chosen = np.zeros((math.comb(pool.size, size), pool.size), bool)
        for row, places in enumerate(itertools.combinations(range(pool.size), size)):
            chosen[row, list(places)] = True
        extra = 0
    else:
        ranks = generator.random((_MOST_SPLITS, pool.size)).argsort(axis=1)
        chosen, extra = ranks < size, 1
    means = chosen @ pool / size - ~chosen @ pool / (pool.size - size)
    observed = float(np.mean(first) - np.mean(second))
    return MethodComparison(observed, _share_beyond(means, observed, extra), "seeds")


def _share_beyond(values: Float64, observed: float, extra: int) -> float:
    """Return the share of values as far from 0 as the observed one, which is counted in where it was not drawn."""
    beyond = int((np.abs(values) >= abs(observed) - ROUNDING).sum())
    return (beyond + extra) / (values.size + extra)


def holm(probabilities: Sequence[float]) -> list[float]:
    """Correct probabilities for their number, in the order given.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(probabilities)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(probabilities)), key=probabilities.__getitem__)):
        highest = max(highest, min(1.0, (len(probabilities) - rank) * probabilities[index]))
        corrected[index] = highest
    return corrected


@dataclass(frozen=True, slots=True)
class Standing:
    """The best of several methods, and how the others compare with it.

    Attributes:
        best: the one with the highest mean.
        comparisons: of the best with each other method; None where nothing can be said.
        corrected: the p of each by Holm's correction for their number.
    """

    best: str
    comparisons: Mapping[str, MethodComparison | None]
    corrected: Mapping[str, float]

    def worse(self, *, alpha: float = ALPHA) -> frozenset[str]:
        """Return the methods that are significantly worse than the best."""
        return frozenset(name for name, p in self.corrected.items() if p < alpha)

    def bold(self, *, alpha: float = ALPHA) -> frozenset[str]:
        """Return the methods to set in bold face: all that are not significantly worse than the best.

        None where no method is worse: a difference inside the noise distinguishes nobody.
        """
        worse = self.worse(alpha=alpha)
        return frozenset((self.best, *self.comparisons)) - worse if worse else frozenset()


def stand(
    means: Mapping[str, float], compare: Callable[[str, str], MethodComparison | None]
) -> Standing | None:
    """Rank methods by their means; None where fewer than two are defined.

    Args:
        means: by method, NaN where undefined.
        compare: the best with another method; None where nothing can be said of the two.
    """
    defined = {name: mean for name, mean in means.items() if not math.isnan(mean)}
    if len(defined) < 2:
        return None
    best = max(defined, key=lambda name: defined[name])
    comparisons = {name: compare(best, name) for name in defined if name != best}
    tested = {name: comparison.p for name, comparison in comparisons.items() if comparison is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    return Standing(best, comparisons, corrected)
