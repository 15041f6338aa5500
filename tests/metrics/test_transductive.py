"""Scores normalised over a class against the loop that the paper's code has."""

from __future__ import annotations

import numpy as np
import pytest

from zsad.errors import MetricError
from zsad.metrics.transductive import transductive_scores


def test_equals_the_loop_on_the_papers_linear_maps():
    rng = np.random.default_rng(0)
    for _ in range(3):
        maps, cosine = rng.normal(0, 3, (3, 4, 5)), rng.random(3)
        low, high = maps.min(), maps.max()
        expected = np.array([((image - low) / (high - low)).max() for image in maps])
        sigmoid = 1 / (1 + np.exp(-maps))
        arguments = (sigmoid.max((1, 2)), sigmoid.min((1, 2)), cosine)
        np.testing.assert_allclose(transductive_scores(*arguments, domain="medical"), expected, atol=1e-9)
        np.testing.assert_allclose(transductive_scores(*arguments), (expected + cosine) / 2, atol=1e-9)


def test_equal_values_and_saturated_maps_stay_finite():
    np.testing.assert_allclose(transductive_scores([0.5], [0.5], [0.3]), [0.15])
    np.testing.assert_allclose(transductive_scores([1.0, 1.0], [0.0, 0.2], [0.4, 0.5]), [0.7, 0.75])
    assert transductive_scores([], [], []).shape == (0,)


def test_lists_that_do_not_fit_are_refused():
    with pytest.raises(MetricError, match="2 maxima, 1 minima and 2 cosines"):
        transductive_scores([0.5, 0.6], [0.1], [0.5, 0.5])
