from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zsad.errors import ImageError
from zsad.nn.maps import MapSpec
from zsad.predict.prediction import Prediction
from zsad.types import Sample

SPEC = MapSpec(size=(24, 32), sigma=1.0)


def make(**changes: object) -> Prediction:
    grid = np.random.default_rng(3).normal(0, 2, (2, 4, 5)).astype(np.float32)
    values = {
        "source": None,
        "size": (48, 60),
        "score": 0.25,
        "verdict": None,
        "seconds": 0.0125,
        "grid": grid,
        "spec": SPEC,
        "routing": {"normal": np.array([[0.25, 0.75], [1.0, 0.0]], np.float32)},
    }
    return Prediction(**{**values, **changes})


def test_map_has_the_size_of_the_image_and_the_canonical_one_that_of_the_spec() -> None:
    prediction = make()
    assert prediction.map.shape == (48, 60)
    assert prediction.canonical_map().shape == (24, 32)
    assert prediction.map.dtype == np.float32
    assert 0 <= prediction.map.min() < prediction.map.max() <= 1


def test_map_of_a_constant_grid_is_its_probability() -> None:
    prediction = make(grid=np.full((3, 4, 4), np.log(3), np.float32))
    np.testing.assert_allclose(prediction.map, 0.75, atol=1e-6)


def test_hottest_patch_is_where_the_map_peaks() -> None:
    grid = np.full((1, 4, 4), -4, np.float32)
    grid[0, 3, 0] = 4
    row, column = np.unravel_index(make(grid=grid).map.argmax(), (48, 60))
    assert row > 36 and column < 15


def test_overlay_keeps_the_size_and_shrinks_on_demand() -> None:
    picture = Image.new("RGB", (60, 48), (90, 90, 90))
    prediction = make(picture=picture)
    assert prediction.overlay().size == (60, 48)
    assert prediction.overlay(max_side=30).size == (30, 24)
    assert prediction.overlay(Image.new("RGB", (120, 96))).size == (120, 96)


def test_overlay_without_a_picture_says_so() -> None:
    with pytest.raises(ImageError, match="give it"):
        make().overlay()


def test_dictionary_is_json_with_short_numbers() -> None:
    values = json.loads(json.dumps(make(sample=Sample(Path("a.png"), label=1)).to_dict(grid=True)))
    assert values["score"] == 0.25 and values["ms"] == 12.5 and values["label"] == 1
    assert values["routing"]["normal"] == [[0.25, 0.75], [1.0, 0.0]]
    assert np.shape(values["grid"]) == (2, 4, 5)
    assert max(len(str(v)) for v in np.ravel(values["grid"])) <= 7
    assert MapSpec.model_validate(values["map_spec"]) == SPEC


def test_saved_files_hold_what_they_should(tmp_path: Path) -> None:
    prediction = make(picture=Image.new("RGB", (60, 48), (90, 90, 90)), source="a/b/part.png")
    paths = prediction.save(tmp_path / "new")
    assert sorted(path.name for path in paths.values()) == ["part.json", "part.map.png", "part.overlay.jpg"]
    stored = np.asarray(Image.open(paths["map"])).astype(float) / 65535
    np.testing.assert_allclose(stored, prediction.map, atol=1e-5)
    assert Image.open(paths["overlay"]).size == (60, 48)
    assert json.loads(paths["json"].read_text())["score"] == 0.25
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(
        p.name for p in paths.values()
    )
