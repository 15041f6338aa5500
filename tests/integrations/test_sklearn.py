"""The detector in scikit-learn's clothes: its contract, and the same numbers as the detector's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sklearn = pytest.importorskip("sklearn")

from sklearn.base import clone  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.utils import get_tags  # noqa: E402

import zsad  # noqa: E402
from zsad.errors import CalibrationError, DataError, ImageError  # noqa: E402
from zsad.integrations.sklearn import ImageOutlierDetector  # noqa: E402


@pytest.fixture(scope="module")
def paths(toy) -> list[Path]:
    return sorted(toy.images.iterdir())


@pytest.fixture(scope="module")
def fitted(toy, paths):
    return ImageOutlierDetector(toy.model, device="cpu", target_fpr=0.5, confidence=0).fit(paths)


def test_signs_and_threshold_are_those_of_outlier_detectors(fitted, paths) -> None:
    scores, decisions, verdicts = (
        fitted.score_samples(paths),
        fitted.decision_function(paths),
        fitted.predict(paths),
    )
    np.testing.assert_allclose(decisions, scores - fitted.offset_)
    assert ((decisions < 0) == (verdicts == -1)).all() and set(verdicts) == {-1, 1}
    own = [fitted.detector_.predict(path) for path in paths]
    np.testing.assert_allclose(scores, [-one.score for one in own])
    assert [one.verdict == "anomalous" for one in own] == (verdicts == -1).tolist()
    assert scores.min() >= -1 and scores.max() <= 0


def test_same_calibration_as_the_detector(toy, fitted, paths) -> None:
    detector = zsad.load(toy.model, device="cpu")
    made = detector.calibrate(toy.images, target_fpr=0.5, confidence=0)
    assert made.image == fitted.calibration_.image and made.pixel == fitted.calibration_.pixel
    assert fitted.offset_ == -made.image.value


def test_parameters_clones_and_pipelines(toy, fitted, paths) -> None:
    given = ImageOutlierDetector(toy.model, device="cpu", target_fpr=0.2)
    assert given.get_params()["target_fpr"] == 0.2
    assert given.set_params(target_fpr=0.4).target_fpr == 0.4
    again = clone(fitted)
    assert again.get_params() == fitted.get_params() and not hasattr(again, "offset_")
    with pytest.raises(NotFittedError):
        again.predict(paths)
    pipeline = make_pipeline(clone(fitted))
    np.testing.assert_array_equal(pipeline.fit(paths).predict(paths), fitted.predict(paths))
    np.testing.assert_array_equal(clone(fitted).fit_predict(paths), fitted.predict(paths))
    assert get_tags(fitted).estimator_type == "outlier_detector"
    truth = np.where(fitted.predict(paths) == 1, 1, 0)
    assert roc_auc_score(truth, fitted.decision_function(paths)) == 1.0


def test_paths_pictures_and_arrays_are_alike(fitted, paths) -> None:
    pictures = [Image.open(path) for path in paths]
    expected = fitted.score_samples(paths)
    for kind in (
        pictures,
        [np.asarray(one) for one in pictures],
        [str(path) for path in paths],
        np.array(paths),
    ):
        np.testing.assert_array_equal(fitted.score_samples(kind), expected)
    stack = np.stack([np.asarray(one.resize((40, 30))) for one in pictures])
    assert fitted.predict(stack).shape == (5,)
    maps = fitted.anomaly_maps(pictures[:2])
    assert [one.shape for one in maps] == [(one.height, one.width) for one in pictures[:2]]


def test_what_is_no_sequence_of_images(fitted, paths, tmp_path: Path) -> None:
    for wrong in (str(paths[0].parent), paths[0], 3, np.zeros((4, 4))):
        with pytest.raises(DataError, match="expected"):
            fitted.predict(wrong)
    with pytest.raises(ImageError, match="does not exist"):
        fitted.predict([tmp_path / "no.png"])
    with pytest.raises(CalibrationError):
        clone(fitted).set_params(target_fpr=2).fit(paths)
    with pytest.raises(CalibrationError):
        clone(fitted).fit([])
