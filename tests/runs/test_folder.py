from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from zsad.errors import DataError, StorageError
from zsad.nn.maps import MapSpec
from zsad.predict.prediction import Prediction
from zsad.runs.folder import RunWriter, file_state, overlay_name
from zsad.runs.store import read_rows, read_run

SPEC = MapSpec(size=(16, 16), sigma=0)
DETAILS = {"map_spec": SPEC.model_dump(mode="json")}


def prediction(path: Path, score: float) -> Prediction:
    grid = np.full((2, 3, 3), score, np.float32)
    return Prediction(str(path), (32, 40), score, None, 0.01, grid, SPEC)


def open_run(folder: Path, **changes: object) -> RunWriter:
    return RunWriter(folder, **{"settings": {"model": "a", "inputs": ["x"]}, "details": DETAILS, **changes})


def files(folder: Path, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{index}.png" for index in range(count)]
    for path in paths:
        path.write_bytes(b"x" * 10)
    return paths


def write(folder: Path, paths: list[Path], **changes: object) -> None:
    with open_run(folder, **changes) as writer:
        for index, path in enumerate(paths):
            writer.write(prediction(path, index / 10), overlay=None, state=file_state(path))


def test_run_is_read_back(tmp_path: Path) -> None:
    paths = files(tmp_path / "in", 3)
    write(tmp_path / "run", paths)
    found = list(read_run(tmp_path / "run"))
    assert [p.source for p in found] == [str(path) for path in paths]
    np.testing.assert_allclose([p.grid.max() for p in found], [0, 0.1, 0.2], atol=1e-4)
    np.testing.assert_allclose(found[2].map, 1 / (1 + np.exp(-0.2)), atol=1e-4)
    rows = list(csv.DictReader((tmp_path / "run" / "scores.csv").open()))
    assert [float(row["score"]) for row in rows] == [0.0, 0.1, 0.2]
    assert rows[0]["width"] == "40"


def test_grids_are_an_ordinary_array_file_after_every_image(tmp_path: Path) -> None:
    paths = files(tmp_path / "in", 2)
    with open_run(tmp_path / "run") as writer:
        for count, path in enumerate(paths, 1):
            writer.write(prediction(path, 0.5), overlay=None, state=file_state(path))
            grids = np.load(tmp_path / "run" / "grids.npy", allow_pickle=False)
            assert grids.shape == (count, 2, 3, 3) and grids.dtype == np.float16
            assert len(list(read_rows(tmp_path / "run"))) == count


def test_nothing_is_created_without_a_prediction(tmp_path: Path) -> None:
    with open_run(tmp_path / "deep" / "run") as writer:
        writer.write_error(tmp_path / "a.png", "broken")
    assert list(tmp_path.iterdir()) == []


def test_resumed_run_skips_finished_rows_and_drops_a_torn_one(tmp_path: Path) -> None:
    paths = files(tmp_path / "in", 4)
    run = tmp_path / "run"
    write(run, paths[:3])
    lines = (run / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (run / "predictions.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:40])
    with open_run(run) as writer:
        assert [writer.is_finished(path) for path in paths] == [True, True, False, False]
        for path in paths[2:]:
            writer.write(prediction(path, 0.9), overlay=None, state=file_state(path))
    found = list(read_run(run))
    assert [Path(str(p.source)).name for p in found] == ["0.png", "1.png", "2.png", "3.png"]
    np.testing.assert_allclose([p.grid.max() for p in found], [0, 0.1, 0.9, 0.9], atol=1e-3)
    assert len(np.load(run / "grids.npy")) == 4


def test_changed_file_is_scored_again(tmp_path: Path) -> None:
    paths = files(tmp_path / "in", 2)
    run = tmp_path / "run"
    write(run, paths)
    paths[0].write_bytes(b"other content")
    with open_run(run) as writer:
        assert [writer.is_finished(path) for path in paths] == [False, True]
        writer.write(prediction(paths[0], 0.7), overlay=None, state=file_state(paths[0]))
    assert [(Path(row["source"]).name, row["score"]) for row in read_rows(run)] == [
        ("1.png", 0.1),
        ("0.png", 0.7),
    ]


def test_error_rows_are_tried_again(tmp_path: Path) -> None:
    paths = files(tmp_path / "in", 2)
    run = tmp_path / "run"
    with open_run(run) as writer:
        writer.write_error(paths[0], "truncated")
        writer.write(prediction(paths[1], 0.5), overlay=None, state=file_state(paths[1]))
    assert [row.get("error") for row in read_rows(run)] == ["truncated", None]
    with open_run(run) as writer:
        assert not writer.is_finished(paths[0])
        writer.write(prediction(paths[0], 0.6), overlay=None, state=file_state(paths[0]))
    assert [row.get("error") for row in read_rows(run)] == [None, None]


def test_other_settings_are_refused_unless_overwritten(tmp_path: Path) -> None:
    paths = files(tmp_path / "in", 1)
    run = tmp_path / "run"
    write(run, paths)
    other = {"model": "b", "inputs": ["x"]}
    with pytest.raises(DataError, match=r"\(model\).*--overwrite"):
        open_run(run, settings=other)
    (run / "mine.txt").write_text("kept")
    write(run, paths, settings=other, overwrite=True)
    assert json.loads((run / "run.json").read_text())["settings"] == other
    assert len(list(read_rows(run))) == 1 and (run / "mine.txt").exists()


def test_foreign_rows_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "predictions.jsonl").write_text("mine\n")
    with pytest.raises(DataError, match=r"no run\.json"):
        open_run(tmp_path)


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="is a file"):
        open_run(tmp_path / "file" / "run")


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a b<script>.png", "C:\\x\\y.png", ".", "ü" * 300 + ".jpg", "con\n.png", ""]
)
def test_overlay_names_stay_inside_and_are_plain(name: str) -> None:
    made = overlay_name(name)
    assert made == Path(made).name and made.isascii() and len(made) < 90
    assert not set(made) & set('<>:"/\\|?* \n')


def test_overlay_names_differ_where_paths_do() -> None:
    assert (
        len({overlay_name(name) for name in ("a/x.png", "b/x.png", "a/x.jpg", "a/x!.png", "a/x?.png")}) == 5
    )


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "text"])
def test_rows_without_their_grid_are_done_again(tmp_path: Path, damage: str) -> None:
    """A power cut may lose the end of one file and not of the other."""
    paths, run = files(tmp_path / "in", 3), tmp_path / "run"
    write(run, paths)
    grids, whole = run / "grids.npy", (run / "grids.npy").read_bytes()
    grids.unlink()
    if damage != "gone":
        grids.write_bytes({"empty": b"", "cut": whole[:-1], "text": b"no array"}[damage])
    left = 2 if damage == "cut" else 0
    with open_run(run) as writer:
        assert [writer.is_finished(path) for path in paths] == [index < left for index in range(3)]
        for index in range(left, 3):
            writer.write(prediction(paths[index], index / 10), overlay=None, state=file_state(paths[index]))
    assert [row["grid"] for row in read_rows(run)] == [0, 1, 2] and grids.read_bytes() == whole


class Killed(BaseException):
    """The process ends here: nothing after it is run, not even what ends a block."""


@pytest.mark.parametrize("moment", range(12))
def test_kill_between_any_two_writes_loses_no_finished_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Every write of the third image's row and grid may be the last: whole, half, or not at all."""
    paths, run = files(tmp_path / "in", 4), tmp_path / "run"
    write(run, paths)
    whole = [(run / name).read_bytes() for name in ("grids.npy", "predictions.jsonl")]
    shutil.rmtree(run)
    writer = open_run(run)
    for index, path in enumerate(paths[:2]):
        writer.write(prediction(path, index / 10), overlay=None, state=file_state(path))
    finished = (run / "predictions.jsonl").read_bytes()
    calls = 0

    class Dying:
        """A file whose write at the moment is cut: 0 nothing of it, 1 half of it, 2 all of it is written."""

        def __init__(self, file) -> None:
            self.file = file

        def write(self, content: bytes) -> None:
            nonlocal calls
            calls += 1
            if calls == moment // 3 + 1:
                self.file.write(content[: len(content) * (moment % 3) // 2])
                self.file.flush()
                raise Killed
            self.file.write(content)

        def __getattr__(self, name: str):
            return getattr(self.file, name)

    writer._grids._file, writer._rows = Dying(writer._grids._file), Dying(writer._rows)
    try:
        writer.write(prediction(paths[2], 0.2), overlay=None, state=file_state(paths[2]))
    except Killed:
        pass
    else:
        assert moment // 3 == 3, "there are three writes: the grid, its file's header, the row"
    writer._stack.close()  # the system takes the lock away
    assert (run / "predictions.jsonl").read_bytes().startswith(finished)
    with open_run(run) as again:
        assert [again.is_finished(path) for path in paths[:2]] == [True, True] and not again.is_finished(
            paths[3]
        )
        for index, path in enumerate(paths):
            if not again.is_finished(path):
                again.write(prediction(path, index / 10), overlay=None, state=file_state(path))
    assert [(run / name).read_bytes() for name in ("grids.npy", "predictions.jsonl")] == whole


@pytest.mark.parametrize("line", ["[]", "{}", "text", '{"source": "a"}', '{"source": 3, "error": "x"}'])
def test_lines_that_are_no_rows_are_refused(tmp_path: Path, line: str) -> None:
    write(tmp_path / "run", files(tmp_path / "in", 1))
    (tmp_path / "run" / "predictions.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=r"line 1 of .* is no row"):
        open_run(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text('{"settings": []}')
    with pytest.raises(DataError, match="not the file of a run"):
        open_run(tmp_path / "run")


@pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX")
def test_two_writers_never_share_a_folder(tmp_path: Path) -> None:
    paths, run = files(tmp_path / "in", 2), tmp_path / "run"
    late = open_run(run)  # nothing is there yet, so nothing is locked
    with open_run(run) as writer:
        writer.write(prediction(paths[0], 0.1), overlay=None, state=file_state(paths[0]))
        with pytest.raises(StorageError, match="another zsad is writing into"):
            open_run(run)
        with pytest.raises(StorageError, match="another zsad is writing into"):
            late.write(prediction(paths[1], 0.1), overlay=None, state=file_state(paths[1]))
        late.close()
    late = open_run(tmp_path / "other")
    write(tmp_path / "other", paths)
    with pytest.raises(StorageError, match="meanwhile"):
        late.write(prediction(paths[1], 0.1), overlay=None, state=file_state(paths[1]))
    late.close()
    assert len(list(read_rows(tmp_path / "other"))) == 2 and len(list(read_rows(run))) == 1
    with open_run(run, overwrite=True) as writer:
        writer.write(prediction(paths[1], 0.1), overlay=None, state=file_state(paths[1]))
