"""Predictions as objects of FiftyOne and supervision: the real packages where installed, else stand-ins of the classes
with the same fields, so that what is put into them is checked anyway."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from zsad.errors import ConfigError, DataError
from zsad.nn.maps import MapSpec
from zsad.predict.prediction import Prediction

SPEC = MapSpec(size=(32, 32), sigma=0, scale=(0.1, 0.9))


@pytest.fixture
def prediction() -> Prediction:
    """Two hot patches of 8 x 8 in a picture of 64 x 128."""
    grid = np.full((1, 8, 8), -6, np.float32)
    grid[0, 1:3, 1:3], grid[0, 5:7, 4:8] = 4, 2
    made = Prediction("/data/a.png", (64, 128), 0.8, "anomalous", 0.01, grid, SPEC, p_value=0.05)
    made.pixel_threshold = 0.5
    return made


def stand_in(name: str, **content: object) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(content)
    return module


@pytest.fixture
def supervision(monkeypatch: pytest.MonkeyPatch):
    """The package, or its container with the same checks of shapes."""
    if find_spec("supervision") is not None:
        return pytest.importorskip("supervision")

    class Detections(SimpleNamespace):
        def __init__(self, *, xyxy, mask=None, confidence=None, class_id=None, data=None, metadata=None):
            super().__init__(
                xyxy=xyxy, mask=mask, confidence=confidence, class_id=class_id, data=data, metadata=metadata
            )
            assert xyxy.ndim == 2 and xyxy.shape[1] == 4
            assert mask is None or (mask.ndim == 3 and mask.dtype == bool)

        @classmethod
        def empty(cls):
            return cls(xyxy=np.empty((0, 4), np.float32), confidence=np.array([]), class_id=np.array([], int))

        def __len__(self) -> int:
            return len(self.xyxy)

    module = stand_in("supervision", Detections=Detections)
    monkeypatch.setitem(sys.modules, "supervision", module)
    return module


def test_regions_as_detections(prediction, supervision) -> None:
    from zsad.integrations.supervision import to_detections

    found = to_detections(prediction)
    assert isinstance(found, supervision.Detections) and len(found) == 2
    regions = prediction.regions
    for box, region in zip(found.xyxy, regions, strict=True):
        x, y, width, height = region.box
        np.testing.assert_allclose(box, (x, y, x + width, y + height), rtol=1e-5)
    np.testing.assert_allclose(found.confidence, [region.score for region in regions])
    assert found.mask.shape == (2, 64, 128)
    for mask, region in zip(found.mask, regions, strict=True):
        assert mask.sum() == pytest.approx(
            region.area, rel=0.2
        )  # outlines are simplified: small regions lose corners
        rows, columns = np.nonzero(mask)
        x, y, width, height = region.box
        assert x - 2 <= columns.min() and columns.max() <= x + width + 1 and y - 2 <= rows.min()
    assert found.data["class_name"].tolist() == ["anomaly"] * 2 and found.metadata["verdict"] == "anomalous"
    assert to_detections(prediction, masks="none").mask is None


def test_no_regions_and_no_threshold(prediction, supervision) -> None:
    from zsad.integrations.supervision import to_detections

    with pytest.raises(ConfigError, match="'polygons' or 'none'"):
        to_detections(prediction, masks="all")
    prediction.pixel_threshold, prediction.known_regions = 0.999, None
    assert len(to_detections(prediction)) == 0
    prediction.pixel_threshold = prediction.known_regions = None
    with pytest.raises(ConfigError, match="no pixel threshold"):
        to_detections(prediction)


class Label(SimpleNamespace):
    """A label of FiftyOne: its fields as they are given."""


@pytest.fixture
def fiftyone(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Stand-ins of FiftyOne's labels; the package itself brings a database along."""
    kinds = ("Classification", "Heatmap", "Detection", "Detections", "Polyline", "Polylines")
    module = stand_in("fiftyone", **{kind: type(kind, (Label,), {}) for kind in kinds})
    monkeypatch.setitem(sys.modules, "fiftyone", module)
    return module


def test_labels_of_fiftyone(prediction, fiftyone) -> None:
    from zsad.integrations.fiftyone import to_labels

    labels = to_labels(prediction)
    assert set(labels) == {"score", "verdict", "heatmap", "regions", "outlines"}
    assert labels["score"] == 0.8 and labels["verdict"].label == "anomalous"
    assert labels["verdict"].confidence == pytest.approx(0.95)
    heatmap = labels["heatmap"]
    assert heatmap.map.shape == (32, 32) and heatmap.range == list(prediction.scale)
    first, region = labels["regions"].detections[0], prediction.regions[0]
    x, y, width, height = region.box
    assert first.label == "anomaly" and first.confidence == region.score
    np.testing.assert_allclose(first.bounding_box, (x / 128, y / 64, width / 128, height / 64), atol=1e-6)
    outline = labels["outlines"].polylines[0]
    assert outline.closed and outline.filled
    np.testing.assert_allclose(outline.points[0], np.array(region.polygon) / (128, 64), atol=1e-6)
    prediction.verdict = prediction.p_value = prediction.pixel_threshold = prediction.known_regions = None
    assert set(to_labels(prediction)) == {"score", "heatmap"}


class Sample(dict):
    saved = False

    def save(self) -> None:
        self.saved = True


class Dataset(dict):
    def values(self, field: str) -> list[str]:
        assert field == "filepath"
        return list(self)


def test_samples_get_fields(prediction, fiftyone, tmp_path: Path) -> None:
    from zsad.integrations.fiftyone import add_predictions

    dataset = Dataset({"/data/a.png": Sample(), "/data/b.png": Sample()})
    other = Prediction("/else/c.png", (8, 8), 0.1, None, 0.0, np.zeros((1, 2, 2), np.float32), SPEC)
    assert add_predictions(dataset, [prediction, other], field="run1") == 1
    sample = dataset["/data/a.png"]
    assert sample.saved and sample["run1_verdict"].label == "anomalous" and len(sample) == 5
    assert not dataset["/data/b.png"]
    with pytest.raises(DataError, match=r"such as /else/c\.png"):
        add_predictions(dataset, [other])


def test_packages_that_are_missing_are_named(prediction, monkeypatch: pytest.MonkeyPatch) -> None:
    from zsad.integrations.fiftyone import to_labels
    from zsad.integrations.supervision import to_detections

    for name, export in (("fiftyone", to_labels), ("supervision", to_detections)):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ConfigError, match=f"pip install {name}"):
            export(prediction)
