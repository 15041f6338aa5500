"""The folder of a run: what it holds, written so that a kill at any moment leaves finished rows valid.

| file | content |
|---|---|
| run.json | settings, model card, environment; two runs with other settings never mix |
| predictions.jsonl | a line for each image, flushed as soon as its overlay is on the disk |
| grids.npy | score grids (images, L, h, w) in half precision; a line's `grid` is its index |
| grids/ | those of tiles and rectangles, a file each: then a line's `grid` is its path, and its `map_spec` its own |
| overlays/ | the heat maps |
| scores.csv, report.html | made from the lines at the end |
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from zsad.errors import DataError, StorageError
from zsad.files import make_folder, sole_writer, storage_errors, write_bytes, write_json
from zsad.images.open import split_address
from zsad.predict.prediction import Prediction
from zsad.runs.store import (
    GRIDS,
    GRIDS_FILE,
    OVERLAYS,
    REPORT_FILE,
    ROWS_FILE,
    RUN_FILE,
    SCORES_FILE,
    GridFile,
    has_grid,
    held_grids,
    read_rows,
    read_run_file,
    row_line,
    write_grid,
)


def file_state(path: Path) -> list[int]:
    """Size and time of change of a file or an address in it: whether a finished row is still about this picture."""
    try:
        status = split_address(path)[0].stat()
    except OSError:
        return [-1, -1]
    return [status.st_size, status.st_mtime_ns]


def overlay_name(source: str) -> str:
    """A file name for the overlay of `source`: safe on every system, and another one for every path."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(source).stem).strip("_")[:60] or "image"
    digest = hashlib.blake2b(os.fsencode(source), digest_size=5).hexdigest()
    return f"{stem}-{digest}.jpg"


def check_place(folder: Path) -> None:
    """Raises a StorageError where a run cannot be written, before any costly work is done."""
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise StorageError(f"cannot write {folder}: {existing} is a file; choose another --out")
    if not os.access(existing, os.W_OK):
        raise StorageError(f"cannot write {folder}: permission denied; choose another --out")


class RunWriter:
    """Writes a run into a folder, or goes on with the run that is already there.

    Nothing is created before the first prediction: a run that fails on every image leaves no trace.

    Args:
        folder: of the run.
        settings: all that changes results; a folder with other settings is refused.
        details: further content of run.json (card, environment).
        overwrite: throw away the run that lies there.

    Raises:
        DataError: the folder holds a run with other settings, or other files of the same names.
        StorageError: the folder cannot be written, or another process writes a run into it.
    """

    def __init__(
        self, folder: Path, *, settings: dict[str, Any], details: dict[str, Any], overwrite: bool = False
    ) -> None:
        self.folder = folder
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))
        self._details = details
        self._pending: list[dict[str, Any]] = []
        self._rows: BinaryIO | None = None
        self._grids: GridFile | None = None
        self._started = False
        self._fresh: set[str] = set()
        self._overwrite = overwrite
        self._finished: dict[str, list[int]] = {}
        self._stack = ExitStack()
        self._locked = False
        self._created = [path for path in (folder / OVERLAYS, folder) if not path.exists()]
        check_place(folder)
        try:
            self._lock()
            if not overwrite and self._check_settings():
                self._finished = {row["source"]: row["file"] for row in self._whole_rows()}
        except BaseException:
            self._stack.close()
            raise

    def _lock(self) -> None:
        """Keeps other processes out of the folder, once it is there, until the run is closed."""
        if not self._locked and self.folder.is_dir():
            self._stack.enter_context(sole_writer(self.folder))
            self._locked = True

    def _whole_rows(self) -> Iterator[dict[str, Any]]:
        """Rows of results whose grid is there, too: a power cut may lose what was written last."""
        held, _ = held_grids(self.folder / GRIDS_FILE)
        rows = (row for row in read_rows(self.folder) if "error" not in row)
        return (row for row in rows if has_grid(self.folder, row, held))

    def _check_settings(self) -> bool:
        """Return True if a run with these settings lies here."""
        path = self.folder / RUN_FILE
        if not path.exists():
            if (self.folder / ROWS_FILE).exists():
                raise DataError(
                    f"{self.folder} holds a {ROWS_FILE} but no {RUN_FILE}; choose another --out, or --overwrite"
                )
            return False
        theirs = read_run_file(self.folder).get("settings", {})
        different = sorted(
            key for key in theirs.keys() | self._settings.keys() if theirs.get(key) != self._settings.get(key)
        )
        if different:
            raise DataError(
                f"{self.folder} holds a run with other settings ({', '.join(different)}); "
                "choose another --out, or --overwrite to replace it"
            )
        return True

    def is_finished(self, source: str | Path) -> bool:
        """Return True if the run has a row for this path or address and the file has not changed since."""
        state = self._finished.get(str(source))
        return state is not None and state == file_state(Path(source))

    @property
    def finished_sources(self) -> frozenset[str]:
        """Paths and addresses of the rows that were there already, without errors."""
        return frozenset(self._finished)

    @property
    def finished(self) -> int:
        """Rows that were there already, without errors."""
        return len(self._finished)

    def overlay_path(self, source: str) -> Path:
        """Return the path of the overlay of `source`."""
        name = overlay_name(source)
        self._fresh.add(name)
        return self.folder / OVERLAYS / name

    def write(self, prediction: Prediction, *, overlay: Path | None, state: list[int]) -> None:
        """Appends a row and its grid.

        Args:
            prediction: with its source.
            overlay: file of its overlay, already written; None where there is none.
            state: `file_state` of the source when it was read.

        Raises:
            StorageError: the disk is full.
        """
        self._start()
        assert self._grids is not None  # opened by _start
        row = prediction.to_dict()
        row["file"] = state
        spec = prediction.spec.model_dump(mode="json")
        if self._details.get("map_spec", spec) == spec:
            with storage_errors(self.folder / GRIDS_FILE):
                row["grid"] = self._grids.append(prediction.grid)
        else:  # tiles, or another proportion
            name = Path(overlay_name(str(prediction.source))).stem
            row["grid"], row["map_spec"] = write_grid(self.folder, name, prediction.grid), spec
        if overlay is not None:
            row["overlay"] = f"{OVERLAYS}/{overlay.name}"
        self._append(row)

    def write_error(self, source: str | Path, message: str) -> None:
        """Appends a row that says why an image was skipped; kept back until there is a prediction."""
        row = {"source": str(source), "error": message}
        if self._started:
            self._append(row)
        else:
            self._pending.append(row)

    def _start(self) -> None:
        if self._started:
            return
        make_folder(self.folder / OVERLAYS)
        if not self._locked:
            self._lock()
            if (self.folder / ROWS_FILE).exists() and not self._overwrite:
                raise StorageError(
                    f"another zsad has written into {self.folder} meanwhile: run the same again to go on"
                )
        kept = self._prepare()
        document = {"settings": self._settings, **self._details}
        write_json(self.folder / RUN_FILE, document)
        with storage_errors(self.folder / ROWS_FILE):
            self._rows = (self.folder / ROWS_FILE).open("ab")
            self._grids = GridFile(self.folder / GRIDS_FILE, keep=kept)
        self._started = True
        for row in self._pending:
            self._append(row)
        self._pending.clear()

    def _prepare(self) -> int:
        """Rewrites the rows without errors, changed files and torn lines; returns how many grids to keep."""
        if self._overwrite:
            for name in (ROWS_FILE, GRIDS_FILE, SCORES_FILE, REPORT_FILE):
                (self.folder / name).unlink(missing_ok=True)
            for grid in (self.folder / GRIDS).glob("*.npy"):
                grid.unlink(missing_ok=True)
            for old in (self.folder / OVERLAYS).glob("*.jpg"):
                if old.name not in self._fresh:  # the first ones are drawn before the first row is written
                    old.unlink(missing_ok=True)
        rows = [row for row in self._whole_rows() if self._is_current(Path(row["source"]), row["file"])]
        if (self.folder / ROWS_FILE).exists():
            write_bytes(self.folder / ROWS_FILE, b"".join(row_line(row) for row in rows))
        return max((row["grid"] + 1 for row in rows if isinstance(row["grid"], int)), default=0)

    @staticmethod
    def _is_current(source: Path, state: list[int]) -> bool:
        now = file_state(source)
        return now in (state, [-1, -1])  # a picture that was moved away keeps its result

    def _append(self, row: dict[str, Any]) -> None:
        assert self._rows is not None  # opened by _start
        with storage_errors(self.folder / ROWS_FILE):
            self._rows.write(row_line(row))
            self._rows.flush()

    def close(self) -> None:
        """Closes the files and writes scores.csv from the rows, also of an interrupted run."""
        with self._stack:
            self._finish()

    def _finish(self) -> None:
        if self._pending and self._finished:
            self._start()
        if not self._started:
            for folder in self._created:  # by overlays that a full disk refused, as the first files
                with suppress(OSError):
                    folder.rmdir()
            return
        self._started = False
        assert self._rows is not None and self._grids is not None
        with storage_errors(self.folder):
            self._rows.close()
            self._grids.close()
        write_scores(self.folder)

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except StorageError:
            if error is None:  # else the first error is the one to show
                raise


def write_scores(folder: Path) -> Path:
    """Writes scores.csv from the rows: score, verdict and what they rest on, and errors."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    columns = ("score", "verdict", "p_value", "threshold", "label", "ms")
    table.writerow(["source", *columns, "width", "height", "regions", "error"])
    for row in read_rows(folder):
        height, width = row.get("size", ["", ""])
        cells = [row.get(key) for key in columns]
        regions = len(row["regions"]) if "regions" in row else ""
        table.writerow([row["source"], *cells, width, height, regions, row.get("error", "")])
    path = folder / SCORES_FILE
    write_bytes(path, text.getvalue().encode("utf-8", "backslashreplace"))
    return path
