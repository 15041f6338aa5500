"""Distances to remembered patches against slow loops."""

from __future__ import annotations

import pytest
import torch

from zsad.nn import memory
from zsad.nn.memory import coreset, lowest_mean, nearest_distance, unit


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return unit(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def test_nearest_distance_equals_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, remembered = randn(17, 6), randn(23, 6, seed=1)
    expected = [min(1 - float(q @ m) for m in remembered) for q in queries]
    for chunk in (1, 50, 1 << 20):
        monkeypatch.setattr(memory, "_CHUNK", chunk)
        torch.testing.assert_close(nearest_distance(queries, remembered), torch.tensor(expected))
    half = nearest_distance(queries, remembered.half())
    torch.testing.assert_close(half, torch.tensor(expected), atol=2e-3, rtol=0)
    assert nearest_distance(queries, queries).max() < 1e-6


def test_coreset_takes_the_farthest_each_time() -> None:
    features = randn(40, 5)
    taken = coreset(features, 7).tolist()
    assert len(set(taken)) == 7
    for count in range(1, 7):
        far = [min(1 - float(f @ features[t]) for t in taken[:count]) for f in features]
        assert far[taken[count]] == pytest.approx(max(far), abs=1e-6)
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    again = shuffled[coreset(features[shuffled], 7)]
    assert sorted(again.tolist()) == sorted(taken)
    assert coreset(features, 99).tolist() == list(range(40))


def test_lowest_mean_equals_the_loop() -> None:
    values = torch.rand(11, 4, generator=torch.Generator().manual_seed(0))
    for share, count in ((0.0, 1), (0.3, 3), (1.0, 11)):
        expected = [sum(sorted(column.tolist())[:count]) / count for column in values.T]
        torch.testing.assert_close(lowest_mean(values, share), torch.tensor(expected))
