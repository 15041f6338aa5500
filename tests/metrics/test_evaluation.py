"""Tables of an evaluation: per-class rows, means, what is undefined and why; with a stand-in for the detector."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zsad.datasets.manifest import DataSet
from zsad.errors import ConfigError, DataError, MetricError
from zsad.images.masks import load_mask
from zsad.metrics import functional as F
from zsad.metrics.aupimo import aupimo
from zsad.metrics.classes import ClassScores
from zsad.metrics.evaluation import evaluate, evaluate_scores
from zsad.metrics.exact import ExactPixelMetrics
from zsad.metrics.table import COLUMNS
from zsad.types import Sample

SIZE = (16, 18)


@dataclass
class Scored:
    source: str | None
    score: float
    label: int | None
    map: np.ndarray

    def canonical_map(self):
        if self.map is None:
            raise AssertionError("a map was built that nothing needs")
        return self.map


class FakeDetector:
    """Scores and maps drawn from the position of the sample; some samples are skipped as unreadable."""

    def __init__(self, *, skip=(), maps=True, named=True):
        self.skip, self.maps, self.named = skip, maps, named
        self.given = {}

    def predict_samples(self, samples):
        for index, sample in enumerate(samples):
            if index in self.skip:
                continue
            rng = np.random.default_rng(index)
            score = rng.random() + 0.3 * (sample.label or 0)
            score_map = rng.random(SIZE, dtype=np.float32) if self.maps else None
            self.given[sample.image] = (score, score_map)
            yield Scored(str(sample.image) if self.named else None, score, None, score_map)


def write_mask(path: Path, *, size=(32, 36), box=(4, 12, 6, 20)) -> Path:
    mask = np.zeros(size, np.uint8)
    mask[box[0] : box[1], box[2] : box[3]] = 3
    Image.fromarray(mask).save(path)
    return path


@pytest.fixture
def data(tmp_path):
    """Two classes with masks, one without normal images, one with labels alone."""
    samples = []
    for name, normal, anomalous, masks in (
        ("bolt", 3, 4, True),
        ("nut", 4, 3, True),
        ("colon", 0, 3, True),
        ("head", 3, 3, False),
    ):
        for index in range(normal + anomalous):
            bad = index >= normal
            mask = None
            if bad and masks:
                mask = write_mask(tmp_path / f"{name}{index}_mask.png", box=(index, index + 9, 3, 15))
            samples.append(Sample(tmp_path / name / f"{index}.png", name, int(bad), mask))
    return DataSet(samples=samples, layout="mvtec", root=tmp_path, name="bench", notes=["found by hand"])


def pixels_of(data, detector, name):
    chosen = [sample for sample in data.samples if sample.class_name == name]
    maps = [detector.given[sample.image][1] for sample in chosen]
    masks = [load_mask(sample.mask, size=SIZE) if sample.mask else np.zeros(SIZE, bool) for sample in chosen]
    return maps, masks, [detector.given[sample.image][0] for sample in chosen], [s.label for s in chosen]


@pytest.mark.parametrize("metrics", ["streaming", "exact"])
def test_rows_equal_the_functional_metrics(data, metrics):
    detector = FakeDetector()
    table = evaluate(detector, data, metrics=metrics)
    for name in ("bolt", "nut", "colon"):
        maps, masks, scores, labels = pixels_of(data, detector, name)
        flat, truth = np.ravel(maps), np.ravel(masks)
        row = table.row(name)
        expected = {
            "image_auroc": F.auroc(scores, labels),
            "image_ap": F.average_precision(scores, labels),
            "image_f1_max": F.f1_max(scores, labels),
            "pixel_auroc": F.auroc(flat, truth),
            "pixel_ap": F.average_precision(flat, truth),
            "pixel_f1_max": F.f1_max(flat, truth),
            "pixel_pro": F.aupro(maps, masks),
        }
        for column, value in expected.items():
            if column in row.bounds:
                low, high = row.bounds[column]
                assert low <= value <= high, column
            assert row.metrics[column] == pytest.approx(value, abs=5e-3, nan_ok=True), column
            if metrics == "exact":
                assert row.metrics[column] == pytest.approx(value, abs=1e-12, nan_ok=True), column
    assert bool(table.row("bolt").bounds) == (metrics == "streaming")


def test_means_are_macro_and_leave_out_the_undefined(data):
    detector = FakeDetector()
    table = evaluate(detector, data, metrics="exact")
    mean = table.row("mean", kind="mean")
    rows = [row for row in table.rows if row.kind == "class"]
    assert [row.name for row in rows] == ["bolt", "nut", "colon", "head"]
    assert math.isnan(table.row("colon").metrics["image_auroc"])
    assert math.isnan(table.row("head").metrics["pixel_pro"])
    image = [table.row(name).metrics["image_auroc"] for name in ("bolt", "nut", "head")]
    pixel = [table.row(name).metrics["pixel_pro"] for name in ("bolt", "nut", "colon")]
    assert mean.metrics["image_auroc"] == pytest.approx(np.mean(image), abs=1e-15)
    assert mean.metrics["pixel_pro"] == pytest.approx(np.mean(pixel), abs=1e-15)
    assert mean.averaged["image_auroc"] == mean.averaged["pixel_pro"] == 3
    assert (mean.normal, mean.anomalous) == (10, 13)
    pooled = [detector.given[s.image][0] for s in data.samples]
    assert mean.metrics["image_auroc"] != pytest.approx(F.auroc(pooled, [s.label for s in data.samples]))


def test_notes_say_what_is_undefined_and_why(data):
    notes = evaluate(FakeDetector(), data, metrics="exact").notes
    assert notes[0] == "found by hand"
    assert "class colon of bench: no normal image, image AUROC, AP and F1-max undefined" in notes
    assert "class head of bench: no masks, pixel metrics undefined" in notes
    assert not any("bolt" in note for note in notes)


def test_maps_are_not_built_without_masks(data):
    data.samples = [sample for sample in data.samples if sample.class_name == "head"]
    table = evaluate(FakeDetector(maps=False), data)
    assert table.row("head").metrics["image_auroc"] >= 0


def test_data_sets_are_averaged_after_their_classes(data):
    moved = [
        Sample(s.image, s.class_name, s.label, s.mask, dataset="one" if s.class_name == "bolt" else "two")
        for s in data.samples
        if s.class_name != "head"
    ]
    data.samples = moved
    table = evaluate(FakeDetector(), data, metrics="exact")
    overall = table.row("overall", kind="overall")
    bolt, nut, colon = (table.row(name).metrics["pixel_auroc"] for name in ("bolt", "nut", "colon"))
    assert overall.metrics["pixel_auroc"] == pytest.approx((bolt + (nut + colon) / 2) / 2, abs=1e-15)
    assert overall.averaged["image_auroc"] == 2
    assert table.row("mean", dataset="two", kind="mean").averaged["image_auroc"] == 1
    with pytest.raises(KeyError, match="no class row 'bolt' in data set 'two'"):
        table.row("bolt", dataset="two")


def test_unreadable_images_are_skipped_and_counted(data):
    whole, part = FakeDetector(), FakeDetector(skip=(0, 9))
    seen = []
    table = evaluate(part, data, metrics="exact", progress=lambda done, total: seen.append((done, total)))
    list(whole.predict_samples(data.samples))
    assert table.row("bolt").normal == 2 and table.row("nut").normal == 3
    assert "2 of 23 images could not be read and are left out" in table.notes
    assert seen[0] == (2, 23) and seen[-1] == (23, 23) and len(seen) == 21
    labels = [s.label for s in data.samples[1:7]]
    scores = [whole.given[s.image][0] for s in data.samples[1:7]]
    assert table.row("bolt").metrics["image_auroc"] == pytest.approx(F.auroc(scores, labels))
    with pytest.raises(DataError, match="none of the 23 images"):
        evaluate(FakeDetector(skip=range(23)), data)


def test_predictions_without_source_follow_the_samples(data):
    named, unnamed = evaluate(FakeDetector(), data), evaluate(FakeDetector(named=False), data)
    assert named.to_json() == unnamed.to_json()


def test_foreign_predictions_are_refused(data):
    class Foreign(FakeDetector):
        def predict_samples(self, samples):
            yield from list(super().predict_samples(samples))[::-1]

    with pytest.raises(MetricError, match="fits no remaining sample"):
        evaluate(Foreign(), data)


def test_masks_that_vanish_are_missing_or_are_broken(data, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    masks = [
        write_mask(tmp_path / "thin.png", size=(320, 360), box=(9, 10, 0, 20)),
        None,
        broken,
        write_mask(tmp_path / "fine.png"),
    ]
    data.samples = [Sample(tmp_path / f"{i}.png", "bolt", 1, mask) for i, mask in enumerate(masks)]
    data.samples.append(Sample(tmp_path / "9.png", "bolt", None))
    detector = FakeDetector()
    table = evaluate(detector, data, metrics="exact")
    notes = "\n".join(table.notes)
    assert "1 anomalous images whose mask is empty at the map size" in notes
    assert "2 images without a mask and not known as normal" in notes
    assert "1 masks unreadable" in notes and "broken.png" in notes and table.unreadable == 1
    assert "1 images without a label" in notes
    used = [0, 3]
    maps = [detector.given[data.samples[i].image][1] for i in used]
    truth = [load_mask(masks[i], size=SIZE) for i in used]
    assert not truth[0].any()
    assert table.row("bolt").metrics["pixel_pro"] == pytest.approx(F.aupro(maps, truth), abs=1e-12)


def test_a_mask_of_another_size_is_refused_before_anything_is_computed(data, tmp_path):
    """The image is there, so that both sizes can be read; a normal image's mask is not looked at."""
    image = tmp_path / "shown.png"
    Image.new("RGB", (40, 30)).save(image)
    mask = write_mask(tmp_path / "other.png", size=(30, 44))
    data.samples.append(Sample(image, "bolt", 1, mask))
    detector = FakeDetector()
    with pytest.raises(DataError, match=r"other\.png is 44x30 px, its image .*shown\.png is 40x30"):
        evaluate(detector, data)
    assert not detector.given
    assert evaluate(detector, data, classes=["nut"]).row("nut").anomalous == 3
    data.samples[-1] = Sample(image, "bolt", 0, mask)
    assert evaluate(detector, data).row("bolt").normal == 4


def test_what_was_measured_can_be_collected(data):
    collected = []
    table = evaluate(FakeDetector(), data, collect=collected.append)
    assert [scores.name for scores in collected] == ["bolt", "nut", "colon", "head"]
    assert collected[3].pixels is None and len(collected[0].images.scores) == 7
    again = evaluate_scores(collected, notes=data.notes)
    assert again.to_json() == table.to_json()
    assert collected[1].pixels.compute().auroc == table.row("nut").metrics["pixel_auroc"]


def test_chosen_classes(data):
    table = evaluate(FakeDetector(), data, classes=["nut"])
    assert [row.name for row in table.rows] == ["nut", "mean"]
    assert table.row("nut").metrics == table.row("mean", kind="mean").metrics
    assert table.row("nut").bounds == table.row("mean", kind="mean").bounds
    with pytest.raises(DataError, match="did you mean 'bolt'"):
        evaluate(FakeDetector(), data, classes=["bold"])
    with pytest.raises(DataError, match="it has bolt, colon, head, nut"):
        evaluate(FakeDetector(), data, classes=["zebra"])


def test_data_without_any_truth_is_refused(data):
    data.samples = [Sample(sample.image) for sample in data.samples]
    with pytest.raises(DataError, match="neither labels nor masks"):
        evaluate(FakeDetector(), data)


@pytest.mark.parametrize("metrics", ["streaming", "exact"])
def test_pro_of_the_papers(data, metrics):
    detector = FakeDetector()
    for pro, thresholds in (("anomalyclip", None), ("mvtec3d", 100)):
        table = evaluate(detector, data, metrics=metrics, pro=pro, limit=0.2)
        maps, masks, _, _ = pixels_of(data, detector, "nut")
        row = table.row("nut")
        if thresholds is None:
            truth = F.pro_anomalyclip(maps, masks, limit=0.2)
        else:
            truth = F.aupro_mvtec(maps, masks, limit=0.2, thresholds=thresholds)
        if metrics == "exact":
            assert row.metrics["pixel_pro"] == pytest.approx(truth, abs=1e-12)
        else:
            assert row.bounds["pixel_pro"][0] <= truth <= row.bounds["pixel_pro"][1]
            assert row.metrics["pixel_pro"] == pytest.approx(truth, abs=1e-3)
        assert json.loads(table.to_json())["pro"] == {"name": pro, "limit": 0.2}
        assert table.headings()["pixel_pro"] == f"PRO to 0.2 ({pro})"


def test_impossible_settings_are_refused_before_anything_is_computed(data):
    detector = FakeDetector()
    for options in (
        {"pro": "mvtec"},
        {"metrics": "fast"},
        {"also": ["pimo"]},
        {"also": ["aupro@2"]},
        {"also": ["aupro@x"]},
        {"also": ["aupimo@0.1"]},
    ):
        with pytest.raises(ConfigError, match="expected"):
            evaluate(detector, data, **options)
    with pytest.raises(MetricError, match="limit is 0"):
        evaluate(detector, data, limit=0)
    assert not detector.given


@pytest.mark.parametrize("metrics", ["streaming", "exact"])
def test_further_columns(data, metrics):
    detector = FakeDetector()
    names = ["aupimo", "aupro@0.05", "pro_anomalyclip", "aupro_mvtec3d@0.1", "aupimo"]
    table = evaluate(detector, data, metrics=metrics, also=names)
    maps, masks, _, _ = pixels_of(data, detector, "bolt")
    truth = {
        "pixel_aupimo": np.nanmean(aupimo(maps, masks)),
        "pixel_aupro@0.05": F.aupro(maps, masks, limit=0.05),
        "pixel_pro_anomalyclip": F.pro_anomalyclip(maps, masks),
        "pixel_aupro_mvtec3d@0.1": F.aupro_mvtec(maps, masks, limit=0.1, thresholds=100),
    }
    row = table.row("bolt")
    assert list(row.metrics) == [*COLUMNS, *truth]
    for column, value in truth.items():
        if metrics == "exact":
            assert row.metrics[column] == pytest.approx(value, abs=1e-12)
        else:
            assert row.bounds[column][0] <= value <= row.bounds[column][1]
    assert math.isnan(table.row("colon").metrics["pixel_aupimo"])
    assert math.isnan(table.row("head").metrics["pixel_aupimo"])
    mean = table.row("mean", kind="mean")
    assert mean.averaged["pixel_aupimo"] == 2 and mean.averaged["pixel_aupro@0.05"] == 3
    notes = "\n".join(table.notes)
    assert "class colon of bench: no map of a normal image, AUPIMO undefined" in notes
    assert (
        "class bolt of bench: 864 pixels of normal images are too few to tell AUPIMO's lowest rates" in notes
    )
    header = table.to_csv().splitlines()[0]
    assert header.endswith(
        "pixel_f1_max,pixel_aupimo,pixel_aupro@0.05,pixel_pro_anomalyclip,pixel_aupro_mvtec3d@0.1"
    )
    headings = [column.header for column in table.render().columns]
    assert headings[-4:] == ["AUPIMO", "AUPRO to 0.05", "PRO (anomalyclip)", "AUPRO (mvtec3d) to 0.1"]


@pytest.mark.parametrize("metrics", ["streaming", "exact"])
def test_micro_pools_the_classes_and_is_named(data, metrics):
    detector, states = FakeDetector(), []
    table = evaluate(detector, data, metrics=metrics, micro=True, also=["aupimo"], collect=states.append)
    parts = [pixels_of(data, detector, name) for name in ("bolt", "nut", "colon", "head")]
    maps, masks, scores, labels = (list(chain.from_iterable(part)) for part in zip(*parts, strict=True))
    maps, masks = maps[:-6], masks[:-6]  # the last class has no masks
    row = table.row("pooled", kind="micro")
    assert row.metrics["image_auroc"] == pytest.approx(F.auroc(scores, labels), abs=1e-12)
    assert (row.normal, row.anomalous) == (10, 13)
    pixel = {"pixel_auroc": F.auroc(np.ravel(maps), np.ravel(masks)), "pixel_pro": F.aupro(maps, masks)}
    for column, value in pixel.items():
        if metrics == "exact":
            assert row.metrics[column] == pytest.approx(value, abs=1e-12)
        else:
            assert row.bounds[column][0] <= value <= row.bounds[column][1]
    assert [entry.kind for entry in table.rows] == ["class"] * 4 + ["mean", "micro"]
    assert any(note.startswith("pooled: micro") for note in table.notes)
    plain = evaluate(detector, data, metrics=metrics, also=["aupimo"])
    assert [entry.to_dict() for entry in plain.rows] == [entry.to_dict() for entry in table.rows[:-1]]
    again = evaluate_scores(states, micro=True, also=["aupimo"], notes=data.notes)
    assert again.to_json() == table.to_json()  # pooling left the classes as they were


def test_a_class_measured_in_two_parts_is_merged(data):
    whole = {scores.name: scores for scores in collected(data)}
    first, second = DataSet(**vars_of(data)), DataSet(**vars_of(data))
    first.samples, second.samples = data.samples[::2], data.samples[1::2]
    detector = Fixed(data)
    parts: dict[str, ClassScores] = {}
    for half in (second, first):
        for scores in collected(half, detector):
            parts[scores.name] = parts[scores.name].merge(scores) if scores.name in parts else scores
    one = evaluate_scores(whole.values())
    other = evaluate_scores([parts[name] for name in whole])
    assert [row.to_dict() for row in one.rows] == [row.to_dict() for row in other.rows]
    mixed = ClassScores("d", "a", pixels=ExactPixelMetrics())
    with pytest.raises(MetricError, match="do not merge"):
        mixed.merge(whole["bolt"])


class Fixed(FakeDetector):
    """Scores of a sample that do not depend on which others are predicted with it."""

    def __init__(self, data):
        super().__init__()
        self.numbers = {sample.image: index for index, sample in enumerate(data.samples)}

    def predict_samples(self, samples):
        for sample in samples:
            rng = np.random.default_rng(self.numbers[sample.image])
            yield Scored(str(sample.image), rng.random(), None, rng.random(SIZE, dtype=np.float32))


def collected(data, detector=None):
    states = []
    evaluate(detector or Fixed(data), data, collect=states.append)
    return states


def vars_of(data):
    return {"samples": data.samples, "layout": data.layout, "root": data.root, "name": data.name}


def test_nan_in_a_map_names_the_image(data):
    class Broken(FakeDetector):
        def predict_samples(self, samples):
            for index, scored in enumerate(super().predict_samples(samples)):
                if index == self.bad:
                    scored.map[3, 4] = np.nan
                if index == self.bad_score:
                    scored.score = math.nan
                yield scored

    detector = Broken()
    for detector.bad, detector.bad_score, message in (
        (2, None, r"map of .*bolt.2\.png: 1 of 288 scores are NaN"),
        (None, 1, r"score of .*bolt.1\.png: 1 of 1 scores are NaN"),
    ):
        with pytest.raises(MetricError, match=message) as caught:
            evaluate(detector, data)
        assert "\n" not in str(caught.value)


def test_evaluate_scores_refuses_doubles_and_nothing():
    with pytest.raises(MetricError, match="no classes"):
        evaluate_scores([])
    with pytest.raises(MetricError, match="class a of d comes twice"):
        evaluate_scores([ClassScores("d", "a"), ClassScores("d", "a")])
    one = ClassScores("d", "a", pixels=ExactPixelMetrics(limit=0.1))
    two = ClassScores("d", "b", pixels=ExactPixelMetrics(limit=0.3))
    with pytest.raises(MetricError, match="limits differ"):
        evaluate_scores([one, two])


def test_json_and_csv_hold_unrounded_values_and_no_nan(data):
    table = evaluate(FakeDetector(), data)
    document = json.loads(table.to_json(), parse_constant=lambda text: pytest.fail(text))
    by_name = {entry["name"]: entry for entry in document["rows"]}
    assert by_name["colon"]["metrics"]["image_auroc"] is None
    assert by_name["nut"]["metrics"]["pixel_pro"] == table.row("nut").metrics["pixel_pro"]
    assert by_name["mean"]["averaged"]["image_auroc"] == 3
    low, high = by_name["nut"]["bounds"]["pixel_pro"]
    assert low <= by_name["nut"]["metrics"]["pixel_pro"] <= high
    lines = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert [line["name"] for line in lines] == ["bolt", "nut", "colon", "head", "mean"]
    assert lines[2]["image_auroc"] == ""
    assert float(lines[1]["pixel_ap"]) == table.row("nut").metrics["pixel_ap"]


def test_render_shows_percent_and_dashes(data):
    from rich.console import Console

    table = evaluate(FakeDetector(), data, metrics="exact")
    console = Console(width=160, file=io.StringIO(), color_system=None)
    console.print(table.render())
    text = console.file.getvalue()
    colon = next(line for line in text.splitlines() if line.strip().startswith("colon"))
    assert "–" in colon and "0 + 3" in colon
    assert f"{100 * table.row('colon').metrics['pixel_pro']:.1f}" in colon
    assert "no normal image" in text and "PRO" in text
    data.samples = [sample for sample in data.samples if sample.class_name == "head"]
    headings = [column.header for column in evaluate(FakeDetector(), data).render().columns]
    assert headings == ["class", "images", "image AUROC", "image AP", "image F1-max"]


def test_wide_bounds_are_noted(data):
    clamped = FakeDetector()

    def shifted(samples):
        for scored in FakeDetector().predict_samples(samples):
            scored.map = scored.map + np.float32(0.6)
            yield scored

    clamped.predict_samples = shifted
    notes = "\n".join(evaluate(clamped, data, classes=["bolt"]).notes)
    assert "pixels outside the value range" in notes and "metrics='exact' is exact" in notes


def test_import_is_light():
    code = "import sys, zsad.metrics.evaluation; print({'torch', 'rich', 'scipy', 'PIL', 'sklearn'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"


def test_transductive_scores_stand_in_the_place_of_an_images_own(data):
    class Terms(FakeDetector):
        def predict_samples(self, samples):
            for index, scored in enumerate(super().predict_samples(samples)):
                scored.terms = {"map": 0.4 + 0.01 * index, "map_low": 0.1, "global": 0.5 - 0.004 * index}
                yield scored

    own = evaluate(Terms(), data)
    whole = evaluate(Terms(), data, transductive="industrial")
    assert any("transductive" in note for note in whole.notes)
    for row, other in zip(own.rows, whole.rows, strict=True):
        if row.kind == "class" and row.normal and row.anomalous:
            assert (
                other.metrics["image_auroc"] == 1.0
            )  # anomalous images come last, their terms are the highest
            assert other.metrics["pixel_auroc"] == pytest.approx(row.metrics["pixel_auroc"], nan_ok=True)
    with pytest.raises(ConfigError, match="MoECLIP's"):
        evaluate(FakeDetector(), data, transductive="medical")
