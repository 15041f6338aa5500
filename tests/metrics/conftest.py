"""The slow forms as a fixture, and random maps with masks."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def oracle():
    """The module of slow forms."""
    path = Path(__file__).parents[1] / "oracles" / "metrics.py"
    spec = importlib.util.spec_from_file_location("metric_oracles", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def scene():
    """Makes maps (B, H, W) float32 in [0, 1) and masks (B, H, W) bool that the maps partly find."""

    def make(seed=0, *, count=4, size=(24, 20), levels=None):
        rng = np.random.default_rng(seed)
        masks = np.zeros((count, *size), bool)
        for index in range(1, count):
            for _ in range(rng.integers(1, 4)):
                y, x = rng.integers(0, size[0] - 6), rng.integers(0, size[1] - 6)
                masks[index, y : y + rng.integers(1, 6), x : x + rng.integers(1, 6)] = True
        maps = rng.beta(2, 5, masks.shape) * 0.7 + masks * rng.uniform(0, 0.3, masks.shape)
        if levels is not None:
            maps = np.floor(maps * levels) / levels
        return maps.astype(np.float32), masks

    return make
