"""`zsad.runs` from Python: the rows of the commands, resumable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import zsad
from zsad import runs
from zsad.cli.main import main
from zsad.errors import ConfigError, DataError
from zsad.predict.prediction import Prediction
from zsad.runs.predict_run import RunOptions, RunReporter
from zsad.runs.store import read_rows


class Recorder(RunReporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.sources: list[str | None] = []
        self.count = 0

    def resumed(self, count: int) -> None:
        self.count += count

    def scored(self, prediction: Prediction) -> None:
        self.sources.append(prediction.source)


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run without times."""
    return [{key: value for key, value in row.items() if key != "ms"} for row in read_rows(folder)]


def test_predict_writes_what_the_command_writes_and_goes_on(toy: Any, tmp_path: Path) -> None:
    assert (
        main(["predict", str(toy.images), "--model", str(toy.model), "--out", str(tmp_path / "command")]) == 0
    )
    detector, recorder = zsad.load(toy.model, device="cpu"), Recorder()
    outcome = runs.predict(detector, toy.images, tmp_path / "python", reporter=recorder)
    assert (outcome.scored, outcome.skipped, outcome.errors) == (5, 0, [])
    assert rows(tmp_path / "python") == rows(tmp_path / "command")
    assert {path.name for path in (tmp_path / "python").iterdir()} == {
        path.name for path in (tmp_path / "command").iterdir()
    }
    assert len(recorder.sources) == 5
    again = runs.predict(detector, toy.images, tmp_path / "python", reporter=recorder)
    assert (again.scored, again.skipped, recorder.count, len(recorder.sources)) == (0, 5, 5, 5)
    other = detector.with_(object_name="nut")
    with pytest.raises(DataError, match="other settings"):
        runs.predict(other, toy.images, tmp_path / "python")


def test_regions_need_a_threshold(toy: Any, tmp_path: Path) -> None:
    detector = zsad.load(toy.model, device="cpu")
    options = RunOptions(tmp_path / "out", regions=("jsonl",), overlay=False, report=False)
    with pytest.raises(ConfigError, match="needs a pixel threshold"):
        runs.predict(detector, toy.images, options=options)
    judged = detector.with_(pixel_threshold=0.0)
    outcome = runs.predict(judged, toy.images, options=options)
    assert outcome.scored == 5 and "regions.jsonl" in outcome.files
    assert "report.html" not in outcome.files


def test_a_detector_has_no_attributes_that_do_nothing(toy: Any) -> None:
    detector = zsad.load(toy.model, device="cpu")
    with pytest.raises(AttributeError):
        detector.shows = "nut"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="shows"):
        detector.with_(shows="nut")
    changed = detector.with_(object_name="nut", min_area=3.0)
    assert changed.model is detector.model and detector.object_name is None
    assert json.dumps(changed.view.options.to_dict()) == "{}"
