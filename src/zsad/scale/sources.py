"""Sources of many images: files here or in an object store, or rows of Parquet; cut into items for workers.

An item is small and plain, so that it can be sent anywhere; `read` opens it where it lands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from zsad.errors import DataError
from zsad.images.inputs import expand_inputs
from zsad.images.open import IMAGE_SUFFIXES
from zsad.runs.rows import need_pyarrow
from zsad.scale.predictor import IMAGE_COLUMNS

_MOST_ITEMS = 10_000

Named = list[tuple[str, Any]]


@dataclass(frozen=True)
class ImageFiles:
    """Images that are files.

    Attributes:
        paths: or addresses, such as s3://bucket/key.
    """

    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def without(self, finished: frozenset[str]) -> ImageFiles:
        """Return the images that are not finished."""
        return ImageFiles(tuple(path for path in self.paths if path not in finished))

    def items(self, rows: int) -> list[Any]:
        """The paths in groups of `rows`, or of more where that would make too many groups."""
        rows = max(rows, -(-len(self.paths) // _MOST_ITEMS))
        return [list(self.paths[start : start + rows]) for start in range(0, len(self.paths), rows)]

    def read(self, item: Any, rows: int) -> Iterator[Named]:
        """Yields (path, path) of an item, at most `rows` at a time; decoding opens them."""
        for start in range(0, len(item), rows):
            yield [(path, path) for path in item[start : start + rows]]


@dataclass(frozen=True)
class ParquetFiles:
    """Images, or paths to them, in a column of Parquet files.

    A row is known by its column `path`, or else as FILE#ROW, counted from 1.

    Attributes:
        files: paths or addresses.
        column: with the images.
        names: whether there is a column `path`.
        total: rows of all files.
        finished: names of rows that are left out.
    """

    files: tuple[str, ...]
    column: str
    names: bool
    total: int
    finished: frozenset[str] = field(default=frozenset(), repr=False)

    def __len__(self) -> int:
        return self.total - len(self.finished)

    def without(self, finished: frozenset[str]) -> ParquetFiles:
        """Return the images that are not finished."""
        return ParquetFiles(self.files, self.column, self.names, self.total, finished)

    def items(self, rows: int) -> list[Any]:
        """[file, row group, number of its first row] of every row group."""
        groups: list[Any] = []
        for file in self.files:
            metadata, first = _metadata(file), 1
            for group in range(metadata.num_row_groups):
                groups.append([file, group, first])
                first += metadata.row_group(group).num_rows
        return groups

    def read(self, item: Any, rows: int) -> Iterator[Named]:
        """Yields (name, content) of an item's rows, at most `rows` at a time."""
        file, group, first = item
        wanted = list(dict.fromkeys([self.column, "path"] if self.names else [self.column]))
        with _opened(file) as parquet:
            for batch in parquet.iter_batches(batch_size=rows, row_groups=[group], columns=wanted):
                images = batch.column(self.column).to_pylist()
                given = batch.column("path").to_pylist() if self.names else [None] * len(images)
                names = [f"{file}#{first + n}" if name is None else str(name) for n, name in enumerate(given)]
                first += len(images)
                left = [pair for pair in zip(names, images, strict=True) if pair[0] not in self.finished]
                if left:
                    yield left


def find_images(inputs: Sequence[str], *, column: str | None = None) -> ImageFiles | ParquetFiles:
    """Return the images of the inputs: images, folders, patterns, addresses of an object store, or Parquet files.

    Args:
        inputs: Parquet (a file, or a folder with nothing else to score) cannot be mixed with images.
        column: of Parquet, with the images; None: the first of `IMAGE_COLUMNS`.

    Raises:
        DataError: nothing is found, inputs are mixed, or the column is not there.
    """
    tables = [name for given in inputs for name in _parquet_of(given)]
    pictures = [given for given in inputs if not _parquet_of(given)]
    if tables and pictures:
        raise DataError(f"{pictures[0]} holds images and {tables[0]} is Parquet; score them in two runs")
    if tables:
        return _parquet(tuple(sorted(tables)), column)
    if column is not None:
        raise DataError(f"--column {column} is for Parquet, and {', '.join(inputs) or 'nothing'} is none")
    far = [given for given in inputs if "://" in given]
    near = [given for given in inputs if "://" not in given]
    paths = [path for given in far for path in _listed(given, IMAGE_SUFFIXES)]
    if near or not far:
        paths += [str(Path(sample.image).absolute()) for sample in expand_inputs(near)]
    return ImageFiles(tuple(dict.fromkeys(paths)))


def _parquet_of(given: str) -> list[str]:
    """The Parquet files that an input means; none where it means images."""
    if given.lower().endswith(".parquet") and not Path(given).is_dir():
        return [given if "://" in given else str(Path(given).absolute())]
    if "://" in given:
        return []
    folder = Path(given)
    return [str(path.absolute()) for path in sorted(folder.glob("*.parquet"))] if folder.is_dir() else []


def _listed(address: str, suffixes: frozenset[str]) -> list[str]:
    """Addresses of the images below an address, sorted."""
    arrow = need_pyarrow()
    from pyarrow import fs

    try:
        system, path = fs.FileSystem.from_uri(address)
        info = system.get_file_info(path)
        if info.type == fs.FileType.NotFound:
            raise DataError(f"{address} does not exist: check the address")
        if info.type == fs.FileType.File:
            return [address]
        entries = system.get_file_info(fs.FileSelector(path, recursive=True))
    except (OSError, ValueError, arrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{address} cannot be read ({reason}): check the address and the access rights"
        ) from error
    base = address.rstrip("/")
    names = [
        f"{base}/{PurePosixPath(one.path).relative_to(path.rstrip('/') or '/')}"
        for one in entries
        if one.type == fs.FileType.File and PurePosixPath(one.path).suffix.lower() in suffixes
    ]
    if not names:
        raise DataError(f"{address} holds no images: name another address")
    return sorted(names)


def _parquet(files: tuple[str, ...], column: str | None) -> ParquetFiles:
    schema = None
    total = 0
    for file in files:
        metadata = _metadata(file)
        total += metadata.num_rows
        names = set(metadata.schema.to_arrow_schema().names)
        schema = names if schema is None else schema & names
    known = schema or set()
    wanted = column or next((name for name in IMAGE_COLUMNS if name in known), None)
    if wanted is None or wanted not in known:
        raise DataError(
            f"{files[0]} has the columns {', '.join(sorted(known))}, expected images in "
            f"{column or ', '.join(IMAGE_COLUMNS)}; name the column with --column"
        )
    if total == 0:
        raise DataError(f"{files[0]} holds no rows: name another file")
    return ParquetFiles(files, wanted, "path" in known, total)


def _metadata(file: str) -> Any:
    with _opened(file) as parquet:
        return parquet.metadata


def _opened(file: str) -> Any:
    """A Parquet file here or in an object store.

    Raises:
        DataError: it is not there or is broken.
    """
    arrow = need_pyarrow()
    from pyarrow import fs, parquet

    try:
        if "://" not in file:
            return parquet.ParquetFile(file)
        system, path = fs.FileSystem.from_uri(file)
        return parquet.ParquetFile(system.open_input_file(path), pre_buffer=True)
    except (OSError, ValueError, arrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{file} cannot be read as Parquet ({reason}): write it again") from error
