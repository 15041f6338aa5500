"""Drawn data sets on disk are read back as what they are."""

from __future__ import annotations

import numpy as np
import pytest

from zsad.datasets.manifest import discover
from zsad.errors import ConfigError
from zsad.images.decode import load_image
from zsad.images.masks import load_mask
from zsad.synth import write_data_set


def test_a_drawn_set_is_an_mvtec_set(tmp_path):
    found = discover(write_data_set(tmp_path / "set", count=12, seed=4, size=(64, 48), defective=0.5))
    assert found.layout == "mvtec" and len(found.samples) == 12
    for sample in found.samples:
        assert (sample.mask is not None) == (sample.label == 1) == (sample.kind != "good")
        assert load_image(sample.image).size == (48, 64)
        if sample.mask is not None:
            assert load_mask(sample.mask, image_size=(64, 48)).any()


def test_a_longer_set_begins_like_a_shorter_one(tmp_path):
    short = discover(write_data_set(tmp_path / "short", count=3, size=(40, 40)))
    long = discover(write_data_set(tmp_path / "long", count=5, size=(40, 40)))
    images = {sample.image.name: np.asarray(load_image(sample.image)) for sample in long.samples}
    assert all(np.array_equal(np.asarray(load_image(s.image)), images[s.image.name]) for s in short.samples)


@pytest.mark.parametrize(("count", "defective"), [(0, 0.5), (3, 1.5)])
def test_impossible_sets_are_refused(tmp_path, count, defective):
    with pytest.raises(ConfigError, match="cannot be drawn"):
        write_data_set(tmp_path, count=count, defective=defective)
