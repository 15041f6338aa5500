"""Calibrations: what they hold, promise, refuse, and do to predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import zsad
from zsad.calibration.calibration import (
    Calibration,
    ModelKey,
    make_calibration,
    parse_calibration,
    read_calibration,
    write_calibration,
)
from zsad.calibration.thresholds import (
    CalibrationTarget,
    NormalScores,
    labelled_threshold,
    threshold_as_written,
)
from zsad.errors import CalibrationError, ConfigError, ImageError
from zsad.nn.maps import MapSpec
from zsad.predict.overlay import blend
from zsad.predict.prediction import Prediction, as_written
from zsad.predict.roi import Area, RegionOfInterest, read_region

KEY = ModelKey(identity="0123456789abcdef", name="toy", method="promptmoe", backbone="tiny")
SPEC = MapSpec(size=(12, 16), sigma=0)
SCORE = st.floats(0, 1, width=32).map(as_written)
SCORES = st.lists(SCORE, min_size=1, max_size=30)


def prediction(score: float, values: float | np.ndarray = 0.2) -> Prediction:
    share = np.clip(np.broadcast_to(values, (1, 12, 16)).astype(np.float64), 1e-6, 1 - 1e-6)
    grid = np.log(share / (1 - share)).astype(np.float32)
    return Prediction(None, (48, 64), score, None, 0.0, grid, SPEC)


def collected(scores: list[float], peaks: list[float] | None = None) -> NormalScores:
    normals = NormalScores()
    for score, peak in zip(scores, peaks or [0.2] * len(scores), strict=True):
        values = np.full((12, 16), 0.05)
        values[3:5, 3:6] = peak
        normals.add(prediction(score, values))
    return normals


def made(scores: list[float], **wish: object) -> Calibration:
    return make_calibration(collected(scores), CalibrationTarget.of(**wish), model=KEY)


@settings(max_examples=25)
@given(SCORES, SCORE, st.sampled_from([0.0, 0.9]))
def test_verdict_and_p_value_follow_the_stored_scores(scores: list[float], score: float, sure: float) -> None:
    calibration = made(scores, target_fpr=0.2, confidence=sure)
    judged = calibration.judge(prediction(score))
    assert judged.is_anomalous == (score > calibration.image.value) == (judged.verdict == "anomalous")
    assert judged.p_value == (1 + sum(s >= score for s in scores)) / (len(scores) + 1)
    assert judged.score == score and judged.threshold == calibration.image.value
    assert calibration.verdict(max(scores)) == "normal" or calibration.image.met
    assert Calibration.model_validate_json(calibration.model_dump_json()) == calibration


def test_the_note_says_how_many_normals_the_wish_needs() -> None:
    calibration = made(np.linspace(0, 1, 40).tolist(), target_fpr=0.01)
    assert calibration.image.value == 1.0 and not calibration.image.met
    assert calibration.warnings()[0] == (
        "with 40 normals the smallest false-positive rate that can be promised at 95 % confidence is 7.22 %; "
        "1 % needs 299 normals; the highest normal is taken as the threshold"
    )
    enough = made(np.linspace(0, 1, 299).tolist(), target_fpr=0.01)
    assert enough.image.met and enough.warnings() == []
    assert "at most 1 % of normal images lie above it at 95 % confidence" in enough.summary()[0]


def test_good_images_show_no_region_and_bad_ones_do() -> None:
    rng = np.random.default_rng(0)
    peaks = rng.uniform(0.1, 0.4, 100).tolist()
    calibration = make_calibration(
        collected(peaks, peaks), CalibrationTarget.of(target_fpr=0.1, confidence=0.9), model=KEY
    )
    shown = 0
    for peak in rng.uniform(0.1, 0.4, 400):
        values = np.full((12, 16), 0.05)
        values[7, 7] = peak
        shown += bool(calibration.judge(prediction(0.5, values)).regions)
    assert shown / 400 <= 0.1
    values = np.full((12, 16), 0.05)
    values[6:9, 8:12] = 0.8
    [region] = calibration.judge(prediction(0.5, values)).regions
    assert region.area == pytest.approx(12 * 16, rel=0.3) and region.score == pytest.approx(0.8, abs=1e-3)


def test_pixel_rule_bounds_the_share_of_pixels() -> None:
    rng = np.random.default_rng(1)
    normals = NormalScores()
    for _ in range(60):
        normals.add(prediction(0.1, rng.uniform(0, 1, (12, 16))))
    threshold = normals.pixel_threshold(CalibrationTarget.of(target_fpr=0.1, pixel_rule="pixels"))
    assert threshold.met and threshold.promised == 0.1
    above = np.mean([(rng.uniform(0, 1, (12, 16)) > threshold.value).mean() for _ in range(100)])
    assert 0.07 < above <= 0.1
    few = collected([0.1, 0.2], [0.3, 0.6]).pixel_threshold(CalibrationTarget.of(pixel_rule="pixels"))
    assert not few.met and few.value == pytest.approx(0.6, abs=1e-5) and few.promised == pytest.approx(1 / 3)


@settings(max_examples=40)
@given(SCORES, SCORES)
def test_best_f1_is_that_of_all_cuts(normal: list[float], anomalous: list[float]) -> None:
    if len({*normal, *anomalous}) == 1:
        with pytest.raises(CalibrationError, match="no threshold parts them"):
            labelled_threshold(normal, anomalous, goal="f1", confidence=0.95)
        return
    threshold, seen = labelled_threshold(normal, anomalous, goal="f1", confidence=0.95)

    def f1(cut: float) -> float:
        found = sum(score > cut for score in anomalous)
        return 2 * found / (found + sum(score > cut for score in normal) + len(anomalous))

    assert f1(threshold.value) == pytest.approx(max(f1(cut) for cut in [-1, *normal, *anomalous]))
    assert seen.detected == sum(score > threshold.value for score in anomalous)


def test_recall_is_kept_with_confidence() -> None:
    rng = np.random.default_rng(2)
    fresh = rng.normal(1, 1, 20_000)
    kept = []
    for _ in range(150):
        threshold, _ = labelled_threshold(
            rng.normal(size=20), rng.normal(1, 1, 80), goal="recall=0.9", confidence=0.9
        )
        kept.append((fresh > threshold.value).mean() >= 0.9)
    assert np.mean(kept) >= 0.9 - 3 * np.sqrt(0.09 / 150)
    threshold, seen = labelled_threshold([0.1, 0.2], [0.5, 0.6], goal="recall=0.99", confidence=0.95)
    assert seen.detected == 2 and not threshold.met and threshold.promised == pytest.approx(np.sqrt(0.05))


@pytest.mark.parametrize(
    ("normal", "anomalous", "goal", "said"),
    [
        ([0.1], [], "f1", "no scores of labelled anomalous"),
        ([], [0.1], "f1", "no scores of labelled normal"),
        ([0.1, np.nan], [0.3], "f1", "not finite"),
        ([0.1], [0.3], "recall=1.2", "goal is"),
        ([0.1], [0.3], "auc", "goal is"),
    ],
)
def test_labels_that_are_missing(normal: list, anomalous: list, goal: str, said: str) -> None:
    with pytest.raises(CalibrationError, match=said):
        labelled_threshold(normal, anomalous, goal=goal, confidence=0.95)


@pytest.mark.parametrize("wish", [{"target_fpr": 0}, {"pixel_fpr": 2}, {"confidence": 1}, {"tagret": 0.1}])
def test_impossible_wishes_are_one_line(wish: dict) -> None:
    with pytest.raises(CalibrationError) as caught:
        CalibrationTarget.of(**wish)
    assert "\n" not in str(caught.value)


def test_nothing_to_calibrate_on() -> None:
    with pytest.raises(CalibrationError, match="expected at least 1"):
        make_calibration(NormalScores(), CalibrationTarget(), model=KEY)
    with pytest.raises(CalibrationError, match="NaN"):
        made([0.1, 0.2]).verdict(float("nan"))


def test_nothing_below_the_threshold_is_coloured() -> None:
    rng = np.random.default_rng(4)
    picture = Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8))
    found = prediction(0.5, 0.39)
    found.picture = picture
    assert found.overlay().tobytes() != picture.tobytes()  # by the model's own scale it glows
    found.pixel_threshold = 0.4
    assert found.overlay().tobytes() == picture.tobytes()
    hot = prediction(0.5, np.where(np.arange(16) < 8, 0.39, 0.9))
    hot.picture, hot.pixel_threshold = picture, 0.4
    changed = (np.asarray(hot.overlay()) != np.asarray(picture)).any(axis=(0, 2))
    assert changed[40:].all() and not changed[:28].any()
    assert hot.scale == found.scale  # the same for every image
    assert blend(picture, hot.canonical_map(), scale=hot.scale).size == picture.size


BROKEN = {
    "text": "hello",
    "list": "[1, 2]",
    "newer": json.dumps({"format": 99}),
    "empty": "",
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("kind", [*BROKEN, "falling", "nan", "extra", "folder", "missing"])
def test_broken_files_are_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "calibration.json"
    values = json.loads(made([0.1, 0.2, 0.3]).model_dump_json())
    if kind in BROKEN:
        path.write_text(BROKEN[kind])
    elif kind == "folder":
        path.mkdir()
    elif kind != "missing":
        changes = {
            "falling": {"scores": [0.3, 0.2, 0.1]},
            "nan": {"confidence": float("nan")},
            "extra": {"x": 1},
        }
        path.write_text(json.dumps({**values, **changes[kind]}))
    with pytest.raises(CalibrationError) as caught:
        read_calibration(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_calibration_is_written_and_read_back(tmp_path: Path) -> None:
    calibration = made([0.3, 0.1, 0.2])
    assert read_calibration(write_calibration(calibration, tmp_path / "a" / "c.json")) == calibration
    later = calibration.model_copy(update={"created": "2030-01-01"})
    assert later.digest() == calibration.digest() != made([0.3, 0.1]).digest()


def test_region_of_interest_is_all_that_counts(tmp_path: Path) -> None:
    values = np.full((12, 16), 0.1)
    values[2:4, 2:4], values[8:10, 12:14] = 0.6, 0.9
    mask = np.zeros((48, 64), np.uint8)
    mask[:, :32] = 255
    Image.fromarray(mask).save(tmp_path / "left.png")
    (tmp_path / "corner.json").write_text("[[0, 0], [24, 0], [24, 24], [0, 24]]")
    left = read_region(tmp_path / "left.png", None)
    found = prediction(0.5, values)
    found.confine(left)
    assert found.score == pytest.approx(0.6, abs=1e-4)  # the highest value inside
    assert (found.map[:, 32:] == 0).all() and found.map[10, 10] > 0.5
    found.pixel_threshold = 0.3
    [region] = found.regions
    assert region.score == pytest.approx(0.6, abs=1e-4)
    picture = Image.fromarray(np.full((48, 64, 3), 99, np.uint8))
    assert (np.asarray(found.overlay(picture))[:, 32:] == 99).all()
    rest = prediction(0.5, values)
    rest.confine(read_region(tmp_path / "left.png", tmp_path / "corner.json"))
    assert rest.score == pytest.approx(0.1, abs=1e-4)
    with pytest.raises(ImageError, match="made for 64x48 px"):
        left.mask((64, 48), (12, 16))
    with pytest.raises(ImageError, match="nothing of the"):
        read_region(None, tmp_path / "left.png").mask((48, 64), (12, 16)) & read_region(
            tmp_path / "corner.json", tmp_path / "left.png"
        ).mask((48, 64), (12, 16))


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 12))
def test_masks_survive_their_runs(seed: int, height: int, width: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    area = Area.model_validate_json(Area.from_mask(mask).model_dump_json())
    np.testing.assert_array_equal(area.rendered((height, width), (height, width)), mask)


def test_polygon_covers_the_pixels_whose_centres_it_holds() -> None:
    triangle = Area(polygons=(((10.0, 5.0), (50.0, 5.0), (10.0, 40.0)),))
    drawn = triangle.rendered((48, 64), (48, 64))
    rows, columns = np.mgrid[:48, :64] + 0.5
    inside = (columns > 10) & (rows > 5) & ((columns - 10) / 40 + (rows - 5) / 35 < 1)
    assert (drawn != inside).sum() < 40 and drawn.sum() == pytest.approx(700, rel=0.05)
    region = RegionOfInterest(include=triangle)
    assert region.mask((48, 64), (12, 16)).sum() == pytest.approx(700 / 16, rel=0.15)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "[[1, 2], [3, 4]]", '[["a", 1], [2, 3], [4, 5]]', '{"polygons": 3}']
)
def test_polygon_files_without_polygons(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ConfigError, match="expected"):
        read_region(tmp_path / "p.json", None)


def test_black_mask_marks_nothing(tmp_path: Path) -> None:
    Image.new("L", (20, 20)).save(tmp_path / "m.png")
    with pytest.raises(ConfigError, match="all zero"):
        read_region(tmp_path / "m.png", None)


def test_detector_calibrates_saves_finds_and_refuses(toy, tmp_path: Path) -> None:
    detector = zsad.load(toy.model, device="cpu")
    assert detector.calibration is None
    calibration = detector.calibrate(toy.images, target_fpr=0.3, confidence=0.5)
    assert detector.calibration is calibration and len(calibration.scores) == 5
    found = list(detector.predict_folder(toy.images))
    assert sorted(p.score for p in found) == list(calibration.scores)
    assert sum(bool(p.is_anomalous) for p in found) == sum(
        s > calibration.image.value for s in calibration.scores
    )
    detector.save(tmp_path / "copy")
    again = zsad.load(tmp_path / "copy", device="cpu")
    assert again.calibration == calibration
    assert zsad.load(tmp_path / "copy", device="cpu", calibration=None).calibration is None
    single = again.predict(toy.images / "part01.png")
    assert single.p_value is not None and single.to_dict()["threshold"] == calibration.image.value
    with pytest.raises(CalibrationError, match=r"made for .*, not for clip .*zsad calibrate") as caught:
        zsad.load(
            "clip", backbone=toy.backbone, device="cpu", calibration=tmp_path / "copy" / "calibration.json"
        )
    assert "\n" not in str(caught.value)


def test_half_a_character_in_a_calibration_is_refused_when_it_is_read() -> None:
    with pytest.raises(CalibrationError, match="is not JSON"):
        parse_calibration('{"format": 1, "created": "\\ud800"}')


@pytest.mark.parametrize("target", [0, 1, -0.5, None])
def test_a_threshold_that_promises_nothing_possible_is_refused_when_it_is_read(target: float | None) -> None:
    values = json.loads(made([0.1, 0.2, 0.3]).model_dump_json())
    assert parse_calibration(json.dumps(values)).image.target == values["image"]["target"]
    values["image"]["target"] = target
    with pytest.raises(CalibrationError, match=r"image: .*expected a share above 0 and below 1"):
        parse_calibration(json.dumps(values))


@settings(max_examples=100)
@given(SCORE)
def test_thresholds_part_scores_as_written(score: float) -> None:
    exact = float(np.float32(score))
    assert as_written(exact) == score and np.float32(score) == np.float32(exact)
    assert threshold_as_written(score) == threshold_as_written(exact) == score
    if score > 1e-30:
        for just_below in (np.nextafter(score, -1.0), np.nextafter(exact, -1.0)):
            assert threshold_as_written(float(just_below)) < score


VALID = {"value": 0.5, "rule": "normals", "target": 0.1, "promised": 0.05, "met": True}
CONTRADICTIONS = {
    "promised missing": {"image": {**VALID, "promised": None}},
    "promised above one": {"image": {**VALID, "promised": 5.0}},
    "target above one": {"image": {**VALID, "target": 5.0}},
    "recall of five": {"image": {**VALID, "rule": "recall", "target": 5.0}, "labelled": [3, 3, 1, 1]},
    "tiny target": {"image": {**VALID, "target": 1e-300, "met": False}},
    "met without being so": {"image": {**VALID, "promised": 0.2}},
    "not met though it is": {"image": {**VALID, "met": False}},
    "threshold not finite": {"image": {**VALID, "value": float("inf")}},
    "f1 with a guarantee": {"image": {**VALID, "rule": "f1"}, "labelled": [3, 3, 1, 1]},
    "rule of pixels for images": {"image": {**VALID, "rule": "maxima"}},
    "rule of images for pixels": {"pixel": VALID},
    "labelled without its rule": {"labelled": [3, 3, 1, 1]},
    "recall without labelled": {"image": {**VALID, "rule": "recall", "target": 0.9, "promised": 0.95}},
    "negative counts": {
        "image": {**VALID, "rule": "recall", "target": 0.9, "promised": 0.95},
        "labelled": [3, 3, -1, 1],
    },
    "more found than there were": {
        "image": {**VALID, "rule": "recall", "target": 0.9, "promised": 0.95},
        "labelled": [3, 3, 1, 4],
    },
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_calibrations_that_contradict_themselves_are_refused_in_one_line(kind: str) -> None:
    content = json.loads(made([0.1, 0.2, 0.3], target_fpr=0.4, confidence=0.0).model_dump_json(by_alias=True))
    parse_calibration(json.dumps(content)).summary()
    for name, value in CONTRADICTIONS[kind].items():
        names = ("normal", "anomalous", "false_alarms", "found")
        content[name] = dict(zip(names, value, strict=True)) if isinstance(value, list) else value
    with pytest.raises(CalibrationError) as error:
        parse_calibration(json.dumps(content))
    assert "\n" not in str(error.value) and "run zsad calibrate again" in str(error.value)


def test_a_row_says_what_was_compared(tmp_path: Path) -> None:
    scores = [as_written(float(s)) for s in np.random.default_rng(0).random(30).astype(np.float32)]
    calibration = made(scores, target_fpr=0.1, confidence=0.5)
    for score in scores:
        row = json.loads(json.dumps(calibration.judge(prediction(float(np.float32(score)))).to_dict()))
        assert (row["score"] > row["threshold"]) == (row["verdict"] == "anomalous")
        assert row["score"] in calibration.scores
