"""Metrics taken again from a run's folder: the numbers of the evaluation itself, without model or pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zsad.cli.main import main
from zsad.datasets.manifest import DataSet, discover
from zsad.errors import DataError
from zsad.metrics.evaluation import evaluate
from zsad.nn.maps import MapSpec
from zsad.predict.prediction import Prediction
from zsad.runs import metric_cache as kept
from zsad.runs.folder import RunWriter, file_state
from zsad.runs.metric_cache import MASKS_FILE, STATES_FILE
from zsad.runs.remeasure import ScoredRun, keep_states, measure_again
from zsad.runs.store import as_stored
from zsad.types import Sample

SPEC = MapSpec(size=(56, 56), sigma=2.0)


class Drawn:
    """Random grids for every image, kept in a run's folder as an evaluation keeps them."""

    def __init__(self, folder: Path, *, skip: int = 0) -> None:
        self.folder, self.skip = folder, skip

    def predict_samples(self, samples: Sequence[Sample]) -> Iterator[Prediction]:
        details = {"map_spec": SPEC.model_dump(mode="json")}
        with RunWriter(self.folder, settings={}, details=details) as writer:
            for number, sample in enumerate(samples[self.skip :]):
                rng = np.random.default_rng(number)
                grid = as_stored(rng.normal(size=(4, 7, 7)) + bool(sample.label)).astype(np.float32)
                score = float(rng.random())
                found = Prediction(str(sample.image), (40, 48), score, None, 0.0, grid, SPEC, sample=sample)
                writer.write(found, overlay=None, state=file_state(sample.image))
                yield found


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    """Two classes with masks, of which one spans several parts, and one without."""
    rng = np.random.default_rng(0)
    for name, count in (("bolt", 80), ("nut", 5), ("bare", 4)):
        for number in range(count):
            kind = "good" if number % 2 else "cut"
            image = tmp_path / f"set/{name}/test/{kind}/{number:03d}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(image)
            if kind == "cut" and name != "bare":
                mask = np.zeros((40, 48), np.uint8)
                top, left = rng.integers(0, 25, 2)
                mask[top : top + 9, left : left + 12] = 3
                path = tmp_path / f"set/{name}/ground_truth/cut/{number:03d}_mask.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(path)
    return discover(tmp_path / "set")


@pytest.mark.parametrize("metrics", ["streaming", "exact"])
def test_numbers_are_those_of_the_evaluation_and_need_no_picture(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metrics: str
) -> None:
    wanted = {"also": ["aupimo", "pro_anomalyclip", "aupro@0.1"], "micro": True, "metrics": metrics}
    first = evaluate(Drawn(tmp_path / "run"), data, **wanted)
    assert measure_again(tmp_path / "run", data, processes=2, **wanted).to_json() == first.to_json()
    assert (tmp_path / "run" / MASKS_FILE).stat().st_size < 20_000

    def no(*_: object, **__: object) -> None:
        raise AssertionError("a picture was read")

    monkeypatch.setattr(kept, "load_mask", no)
    assert measure_again(tmp_path / "run", data, **wanted).to_json() == first.to_json()


def test_other_metrics_of_what_was_counted_take_no_map(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, states = tmp_path / "run", []
    evaluate(Drawn(run), data, collect=states.append)
    keep_states(ScoredRun.of(run), data, states)
    wanted = {"also": ["aupimo", "aupro@0.1"], "micro": True, "pro": "anomalyclip", "limit": 0.2}
    expected = evaluate(Drawn(tmp_path / "other"), data, **wanted).to_json()
    slow = measure_again(tmp_path / "other", data, **wanted)
    assert slow.to_json() == expected and (tmp_path / "other" / STATES_FILE).is_file()

    def no(*_: object, **__: object) -> None:
        raise AssertionError("a map was made")

    with monkeypatch.context() as patch:
        patch.setattr(Prediction, "canonical_map", no)
        seen: list[tuple[int, int]] = []
        for folder in (run, tmp_path / "other"):
            found = measure_again(folder, data, progress=lambda *now: seen.append(now), **wanted)
            assert found.to_json() == expected
        assert seen[-1] == (89, 89)
        assert measure_again(run, data, classes=["nut"]).rows[0].name == "nut"
    kept_file = run / STATES_FILE
    kept_file.write_bytes(kept_file.read_bytes()[:-2000])
    assert measure_again(run, data, **wanted).to_json() == expected
    mask = next(sample.mask for sample in data.samples if sample.mask is not None)
    Image.fromarray(np.eye(40, 48, dtype=np.uint8)).save(mask)
    assert measure_again(run, data, **wanted).to_json() != expected


def test_what_has_changed_is_not_taken_for_what_was_measured(data: DataSet, tmp_path: Path) -> None:
    evaluate(Drawn(tmp_path / "run"), data)
    before = measure_again(tmp_path / "run", data)
    masks = [sample.mask for sample in data.samples if sample.mask is not None]
    (tmp_path / "run" / MASKS_FILE).write_bytes(b"half a file")
    assert measure_again(tmp_path / "run", data).to_json() == before.to_json()
    Image.fromarray(np.eye(40, 48, dtype=np.uint8)).save(masks[0])
    assert measure_again(tmp_path / "run", data).to_json() != before.to_json()
    Image.fromarray(np.eye(20, dtype=np.uint8)).save(masks[0])
    for processes in (1, 2):
        with pytest.raises(DataError, match="must have the size of its image"):
            measure_again(tmp_path / "run", data, processes=processes)
    os.utime(data.samples[3].image, ns=(1, 1))
    with pytest.raises(DataError, match="has changed since it was scored"):
        measure_again(tmp_path / "run", data)


def test_images_without_a_score_are_counted_and_foreign_runs_refused(data: DataSet, tmp_path: Path) -> None:
    list(Drawn(tmp_path / "run", skip=3).predict_samples(data.samples))
    table = measure_again(tmp_path / "run", data)
    assert table.unreadable == 3 and any("3 of 89 images were not scored" in note for note in table.notes)
    other = discover(tmp_path / "set" / "nut")
    moved = DataSet(
        [Sample(tmp_path / "else" / s.image.name, s.class_name, s.label) for s in other.samples],
        "mvtec",
        tmp_path / "else",
        "else",
    )
    with pytest.raises(DataError, match="holds no scores of"):
        measure_again(tmp_path / "run", moved)
    with pytest.raises(DataError, match=r"run\.json cannot be read"):
        measure_again(tmp_path / "set", data)


def test_command_prints_and_writes_what_was_asked_for(
    data: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(Drawn(tmp_path / "run"), data)
    words = ["remeasure", str(tmp_path / "run"), "--data", str(tmp_path / "set"), "--also", "aupro@0.05"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert "PRO to 0.05" in capsys.readouterr().out
    assert "pixel_aupro@0.05" in (tmp_path / "out" / "metrics.json").read_text()
    assert main([*words, "--threads", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
