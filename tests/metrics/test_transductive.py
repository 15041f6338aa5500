"""Class-wise normalised scores against the loop that the paper's code has."""

from __future__ import annotations

import numpy as np
import pytest

from zsad.errors import MetricError
from zsad.metrics.transductive import transductive_scores


def test_equals_the_loop_over_classes_on_the_papers_linear_maps():
    rng = np.random.default_rng(0)
    maps, cosine = rng.normal(0, 3, (9, 4, 5)), rng.random(9)
    classes = ["a", "b", "c"] * 3
    expected = np.zeros(9)
    for name in set(classes):
        own = [index for index, other in enumerate(classes) if other == name]
        low, high = maps[own].min(), maps[own].max()
        for index in own:
            expected[index] = ((maps[index] - low) / (high - low)).max()
    sigmoid = 1 / (1 + np.exp(-maps))
    arguments = (sigmoid.max((1, 2)), sigmoid.min((1, 2)), cosine, classes)
    np.testing.assert_allclose(transductive_scores(*arguments, domain="medical"), expected, atol=1e-9)
    np.testing.assert_allclose(transductive_scores(*arguments), (expected + cosine) / 2, atol=1e-9)


def test_a_class_of_equal_values_and_saturated_maps_stay_finite():
    scores = transductive_scores([0.5, 1.0, 1.0], [0.5, 0.0, 0.2], [0.3, 0.4, 0.5], ["a", "b", "b"])
    np.testing.assert_allclose(scores, [0.15, 0.7, 0.75])
    assert transductive_scores([], [], [], []).shape == (0,)


def test_lists_that_do_not_fit_are_refused():
    with pytest.raises(MetricError, match="2 maxima, 1 minima, 2 cosines and 2 classes"):
        transductive_scores([0.5, 0.6], [0.1], [0.5, 0.5], ["a", "a"])
