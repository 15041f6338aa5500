"""A finished run as one Parquet file, in the columns of `zsad.runs.rows`, sorted by path.

It holds nothing that depends on when, where or in which order images were scored: the same images, model and number
of threads give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zsad.errors import DataError
from zsad.files import atomic_write
from zsad.nn.maps import MapSpec
from zsad.predict.prediction import Prediction
from zsad.runs.rows import arrow_schema, error_row, need_pyarrow, prediction_of, result_row
from zsad.runs.store import GRIDS_FILE, ROWS_FILE, read_grids, read_run_file, restore

TABLE_FILE = "predictions.parquet"
_GROUP = 1024  # rows: some megabytes


def write_table(folder: str | Path) -> Path:
    """Writes predictions.parquet from what a run's folder holds; returns the file.

    In memory are the paths of all images and the rows of one group.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: the folder holds no run.
        StorageError: the disk is full.
    """
    arrow = need_pyarrow()
    from pyarrow import parquet

    folder, schema = Path(folder), arrow_schema()

    def write(stream: Any) -> None:
        with parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
            group: list[dict[str, Any]] = []
            for row in _sorted_rows(folder):
                group.append(row)
                if len(group) == _GROUP:
                    writer.write_table(arrow.Table.from_pylist(group, schema=schema))
                    group = []
            if group:
                writer.write_table(arrow.Table.from_pylist(group, schema=schema))

    atomic_write(folder / TABLE_FILE, write)
    return folder / TABLE_FILE


def _sorted_rows(folder: Path) -> Iterator[dict[str, Any]]:
    spec = MapSpec.model_validate(read_run_file(folder)["map_spec"])
    places: list[tuple[str, int]] = []
    with (folder / ROWS_FILE).open("rb") as stream:
        place = 0
        for line in stream:
            if line.endswith(b"\n"):
                places.append((str(json.loads(line)["source"]), place))
            place += len(line)
        places.sort()
        grids = read_grids(folder / GRIDS_FILE)
        for source, start in places:
            stream.seek(start)
            row = json.loads(stream.readline())
            if "error" in row:
                yield error_row(_text(source), _text(row["error"]))
                continue
            converted = result_row(restore(row, grids, spec, folder=folder))
            yield converted | {"path": _text(source)}


def _text(name: str) -> str:
    """A name that is no valid UTF-8 with its odd bytes escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def read_table(path: str | Path) -> Iterator[Prediction]:
    """Yields the predictions of a Parquet file of results, errors left out, with maps that can be rebuilt.

    Raises:
        DataError: it cannot be read, or has other columns.
    """
    arrow = need_pyarrow()
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_GROUP):
                yield from (prediction_of(row) for row in batch.to_pylist() if row.get("error") is None)
    except (OSError, arrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} cannot be read as Parquet ({reason}): run the same again") from error
