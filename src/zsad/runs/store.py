"""Reading a run's folder, and the two files that grow by one image at a time: rows and score grids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from zsad.errors import DataError
from zsad.files import BROKEN_ARRAYS, atomic_write, parse_json
from zsad.nn.maps import MapSpec
from zsad.predict.prediction import Prediction

if TYPE_CHECKING:
    from zsad.predict.roi import RegionOfInterest

RUN_FILE, ROWS_FILE, GRIDS_FILE = "run.json", "predictions.jsonl", "grids.npy"
SCORES_FILE, REPORT_FILE, OVERLAYS = "scores.csv", "report.html", "overlays"
GRIDS = "grids"  # of pictures whose grid has another shape than the others'
_HEADER_BYTES = 128
_MAGIC = b"\x93NUMPY\x01\x00"


def as_stored(grid: npt.NDArray[np.floating]) -> npt.NDArray[np.float16]:
    """A grid (L, h, w) as a run keeps it: in half precision, what exceeds its range at the range's end."""
    limit = float(np.finfo(np.float16).max)
    stored: npt.NDArray[np.float16] = np.clip(grid, -limit, limit).astype("<f2")
    return stored


class GridFile:
    """A .npy file of float16 (images, L, h, w) that grows by one grid at a time.

    The header has a fixed length, so its number of images is corrected in place after each grid; a kill in
    between leaves a grid too many, which the next run cuts off.
    """

    def __init__(self, path: Path, *, keep: int) -> None:
        self._path = path
        self._count = 0
        self._shape: tuple[int, ...] | None = None
        held, shape = held_grids(path) if keep else (0, ())
        if keep and held >= keep:
            self._shape = shape
            self._count = keep
            self._file: BinaryIO = path.open("r+b")
            self._file.truncate(self._offset(keep))
        else:
            self._file = path.open("w+b")

    def _offset(self, count: int) -> int:
        return _HEADER_BYTES + count * 2 * int(np.prod(self._shape or (0,)))

    def append(self, grid: npt.NDArray[np.floating]) -> int:
        """Writes a grid (L, h, w) and returns its index."""
        if self._shape is None:
            self._shape = grid.shape
        self._file.seek(self._offset(self._count))
        self._file.write(as_stored(grid).tobytes())
        self._count += 1
        self._file.seek(0)
        self._file.write(_npy_header((self._count, *self._shape)))
        self._file.flush()
        return self._count - 1

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def held_grids(path: Path) -> tuple[int, tuple[int, ...]]:
    """Return the number of whole grids in a file, and their shape (L, h, w); 0 where it is missing or broken."""
    try:
        with path.open("rb") as stream:
            np.lib.format.read_magic(stream)
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            ours = stream.tell() == _HEADER_BYTES and dtype == np.dtype("<f2") and len(shape) > 1
        each = 2 * int(np.prod(shape[1:]))
        if not ours or not each:
            return 0, ()
        return min(shape[0], (path.stat().st_size - _HEADER_BYTES) // each), tuple(shape[1:])
    except (OSError, ValueError, EOFError):
        return 0, ()


def write_grid(folder: Path, name: str, grid: npt.NDArray[np.floating]) -> str:
    """Writes a grid (L, h, w) of a shape of its own into a run's folder; returns its path below that.

    Raises:
        StorageError: the disk is full.
    """
    path = Path(GRIDS) / f"{name}.npy"
    atomic_write(folder / path, lambda stream: np.save(stream, as_stored(grid), allow_pickle=False))
    return path.as_posix()


def has_grid(folder: Path, row: dict[str, Any], held: int) -> bool:
    """Return True if the grid of a row is there; `held` are in the file that all share."""
    place = row["grid"]
    return (folder / place).is_file() if isinstance(place, str) else place < held


def _npy_header(shape: tuple[int, ...]) -> bytes:
    text = repr({"descr": "<f2", "fortran_order": False, "shape": shape}).encode("ascii")
    room = _HEADER_BYTES - len(_MAGIC) - 2
    return _MAGIC + room.to_bytes(2, "little") + text.ljust(room - 1) + b"\n"


def row_line(row: dict[str, Any]) -> bytes:
    """A row as a line of predictions.jsonl."""
    # ASCII only: a file name that is no valid UTF-8 survives as an escaped surrogate.
    return json.dumps(row, allow_nan=False).encode("ascii") + b"\n"


def read_run_file(folder: Path) -> dict[str, Any]:
    """The content of run.json.

    Raises:
        DataError: missing or not JSON.
    """
    path = folder / RUN_FILE
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); choose another --out, or --overwrite") from error
    if not isinstance(content, dict) or not isinstance(content.get("settings", {}), dict):
        raise DataError(f"{path} is not the file of a run; choose another --out, or --overwrite")
    return content


def read_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of predictions.jsonl, a torn last line left out; nothing where there is no file.

    Raises:
        DataError: a line that is no row.
    """
    path = folder / ROWS_FILE
    if not path.exists():
        return
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                return
            try:
                row = parse_json(line)
            except ValueError:
                row = None
            if not _is_row(row):
                raise DataError(f"line {number} of {path} is no row; use --overwrite or another --out")
            yield row


def _is_row(row: Any) -> bool:
    """Return True if a line says what the others do: the source, and either an error or a result."""
    if not isinstance(row, dict) or not isinstance(row.get("source"), str):
        return False
    numbers = (row.get("score"), row.get("ms"))
    return "error" in row or (
        all(isinstance(number, int | float) for number in numbers)
        and isinstance(row.get("grid"), int | str)
        and isinstance(row.get("file"), list)
        and isinstance(row.get("size"), list)
    )


def read_grids(path: Path) -> npt.NDArray[np.float16]:
    """The grids (images, L, h, w) of a run, memory-mapped.

    Raises:
        DataError: the file is missing or broken.
    """
    try:
        if path.stat().st_size == 0:  # all of them have files of their own
            return np.zeros((0, 1, 1, 1), np.float16)
        grids: npt.NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
    except BROKEN_ARRAYS as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no array or is cut off"
        raise DataError(f"{path} cannot be read ({reason}); run the same again, or --overwrite") from error
    return grids


def restore(
    row: dict[str, Any],
    grids: npt.NDArray[np.float16],
    spec: MapSpec,
    *,
    region: RegionOfInterest | None = None,
    folder: Path | None = None,
) -> Prediction:
    """The prediction of a row without error.

    Args:
        row: of predictions.jsonl.
        grids: of the run.
        spec: how they become maps.
        region: at which the run looked.
        folder: of the run, where grids of other shapes may lie.

    Raises:
        DataError: such a grid is missing or broken.
    """
    stored = row["grid"]
    grid = read_grids((folder or Path()) / stored) if isinstance(stored, str) else grids[stored]
    return Prediction.from_dict(row, grid=grid, spec=spec, region=region)


def region_of_run(run: dict[str, Any]) -> RegionOfInterest | None:
    """The region of interest that the content of run.json names; None: whole pictures.

    Raises:
        DataError: it is no region.
    """
    stored = run.get("region")
    if stored is None:
        return None
    from zsad.predict.roi import RegionOfInterest

    try:
        return RegionOfInterest.model_validate(stored)
    except ValueError as error:
        raise DataError(
            f"{RUN_FILE} names a region of interest that cannot be read; predict again"
        ) from error


def read_run(folder: str | Path) -> Iterator[Prediction]:
    """Yields the predictions of a run's folder, with maps that can be rebuilt, in the order of writing.

    Raises:
        DataError: the folder holds no run.
    """
    folder = Path(folder)
    run = read_run_file(folder)
    spec, region = MapSpec.model_validate(run["map_spec"]), region_of_run(run)
    grids = read_grids(folder / GRIDS_FILE)
    for row in read_rows(folder):
        if "error" not in row:
            yield restore(row, grids, spec, region=region, folder=folder)
