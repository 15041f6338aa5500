"""One predictor for every data engine: Ray's `map_batches`, Spark's `mapInPandas`, Hugging Face datasets' `map`.

It is small when pickled: the model is loaded where it runs, once a process. Every pass through the model has the same
number of images, one on a processor, and short ones are filled up. So the score of an image does not depend on which
other images it meets, on how many workers there are, or on which of them it lands; it does depend on the number of
threads, as in any run.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from zsad.errors import DataError, ImageError, ZsadError
from zsad.images.decode import read_image
from zsad.images.inputs import read_ahead
from zsad.images.open import Source
from zsad.images.picture import Preprocess
from zsad.predict.pipeline import Decoded, Ready, judge, read, score
from zsad.predict.prediction import Prediction
from zsad.predict.roi import RegionOfInterest
from zsad.predict.view import InputOptions
from zsad.runs.rows import COLUMNS, arrow_schema, error_row, need_pyarrow, result_row

if TYPE_CHECKING:
    from zsad.detector import Detector
    from zsad.types import Domain

IMAGE_COLUMNS = ("bytes", "content", "image", "path")
"""Columns in which images are looked for, in this order: content of files, pictures or arrays, paths or addresses."""


@dataclass(frozen=True, slots=True)
class Loading:
    """Model, runtime and view: all that a worker must know to load it."""

    model: str
    backbone: str | None = None
    weights: str | None = None
    device: str = "auto"
    calibration: str | None = "auto"
    backend: str | None = None
    precision: str = "auto"
    threads: int | None = None
    domain: Domain | None = None
    object_name: str | None = None
    pixel_threshold: float | None = None
    min_area: float = 0.0
    region: RegionOfInterest | None = None
    options: InputOptions = field(default_factory=InputOptions)

    def key(self) -> str:
        """Return a key that is equal for equal detectors."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name not in ("region", "options")}
        return f"{plain} {self.options.to_dict()} {None if self.region is None else self.region.digest()}"

    def detector(self) -> Detector:
        """Loads it; errors as `zsad.load`."""
        from zsad.device import use_threads
        from zsad.loading import load

        if self.threads is not None and self.backend in (None, "torch", "auto"):
            use_threads(self.threads)
        weights = None if self.weights is None else Path(self.weights)
        detector = load(
            self.model,
            backbone=self.backbone,
            weights=weights,
            device=self.device,
            calibration=None,
            backend=self.backend,  # type: ignore[arg-type]  # checked by load
            precision=self.precision,  # type: ignore[arg-type]
            threads=self.threads,
            domain=self.domain,
        )
        detector = detector.with_(options=self.options).use_default(self.calibration)
        view = detector.view
        return detector.with_(
            region=self.region or view.region,
            object_name=self.object_name or view.object_name,
            min_area=self.min_area,
            pixel_threshold=self.pixel_threshold,
        )


_held: dict[str, Detector] = {}  # the last one loaded: engines unpickle a predictor again for every task
_holding = threading.Lock()


def held_detector(loading: Loading) -> Detector:
    """The detector, loaded once a process."""
    key = loading.key()
    with _holding:
        if key not in _held:
            _held.clear()
            _held[key] = loading.detector()
        return _held[key]


class BatchPredictor:
    """Batches of images in, batches of results out, in the columns of `zsad.runs.rows`; can be pickled.

    A batch is a dict of arrays or lists, a pyarrow table or record batch, or a pandas data frame, and comes back as
    the same kind. Given an iterator of batches it is an iterator of results, as Spark wants it. A row whose image
    cannot be used gives a row with its error.

    Args:
        model: as in `zsad.load`; the name must mean the same wherever it runs.
        column: with the images: content of files, pictures, arrays, or paths; None: the first of `IMAGE_COLUMNS`.
        images_a_pass: None: what suits the device.
        keep: columns of a batch that are handed on.
        region: where anomalies count.
        loading: further fields of `Loading`: backbone, weights, device, calibration, backend, precision, threads
            (PyTorch's, for the whole process), domain, object_name, pixel_threshold, min_area, options.

    Example:
        >>> images = np.zeros((3, 64, 64, 3), np.uint8)
        >>> rows = BatchPredictor("promptmoe-tiny", device="cpu")({"image": images, "path": ["a", "b", "c"]})
        >>> len(rows["score"]), rows["path"][2], rows["error"]
        (3, 'c', [None, None, None])
    """

    def __init__(
        self,
        model: str | Path = "promptmoe-tiny",
        *,
        column: str | None = None,
        images_a_pass: int | None = None,
        keep: Sequence[str] = (),
        region: RegionOfInterest | None = None,
        **loading: Any,
    ) -> None:
        try:
            self.loading = Loading(str(model), region=region, **loading)
        except TypeError as error:
            raise DataError(f"BatchPredictor: {error}, known are {', '.join(Loading.__slots__)}") from error
        self.column = column
        self.images_a_pass = images_a_pass
        self.keep = tuple(keep)

    @classmethod
    def of(cls, loading: Loading, *, images_a_pass: int | None = None) -> BatchPredictor:
        """A predictor for a model as it is to be loaded."""
        predictor = cls(images_a_pass=images_a_pass)
        predictor.loading = loading
        return predictor

    @property
    def detector(self) -> Detector:
        """The detector of this process."""
        return held_detector(self.loading)

    def __call__(self, batch: Any) -> Any:
        """The results of a batch, or an iterator of results of an iterator of batches.

        Raises:
            DataError: no column with images, or a batch of an unknown kind.
            ZsadError: the model cannot be loaded.
        """
        if isinstance(batch, Iterator):
            return (self(part) for part in batch)
        columns, kind = columns_of(batch)
        rows = list(self.rows(columns))
        results: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in COLUMNS}
        return as_kind(results | {name: columns[name] for name in self.keep}, kind)

    def rows(self, columns: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
        """Yields the row of each image of a batch given as columns."""
        for name, outcome in self.predictions(images_of(columns, column=self.column)):
            yield error_row(name, str(outcome)) if isinstance(outcome, ZsadError) else result_row(outcome)

    def predictions(
        self, images: Iterable[tuple[str | None, Any]]
    ) -> Iterator[tuple[str | None, Prediction | ZsadError]]:
        """Yields name and prediction, or what is wrong, of each (name, image), in order."""
        detector = self.detector
        model, view = detector.model, detector.view
        tiled = view.options.tiling is not None
        count = 1 if tiled else self.images_a_pass or model.backend.batch_size

        def attempt(named: tuple[str | None, Any]) -> Ready | ZsadError:
            try:
                return read(source_of(*named), model, view, name=named[0])
            except ZsadError as error:
                return error

        prepared = read_ahead(images, attempt, ahead=2 * count, workers=0 if tiled else 2)
        while group := list(islice(prepared, count)):
            ready = [result for _, result in group if isinstance(result, Ready)]
            scored = iter(self._scored(ready, count) if ready else ())
            for (name, _), result in group:
                yield (
                    name,
                    _named(name, result if isinstance(result, ZsadError) else self._judged(next(scored))),
                )

    def _scored(self, ready: list[Ready], count: int) -> list[Prediction | ImageError]:
        """Score pictures in one pass of always the same number, so that no score depends on the others."""
        filled = [*ready, *ready[-1:] * (count - len(ready))]
        return score(self.detector.model, filled)[: len(ready)]

    def _judged(self, scored: Prediction | ImageError) -> Prediction | ImageError:
        if isinstance(scored, ImageError):
            return scored
        try:
            return judge(scored, self.detector.view)
        except ImageError as error:
            return error


def _named(name: str | None, outcome: Prediction | ZsadError) -> Prediction | ZsadError:
    """Return an outcome that carries the name of its picture."""
    if isinstance(outcome, Prediction):
        outcome.source = name
    elif name is not None and name not in str(outcome):
        return ImageError(f"{name}: {outcome}")
    return outcome


def decode_picture(name: str | None, image: Any, *, preprocess: Preprocess) -> Decoded | ZsadError:
    """Decode the content of a file, a picture, an array, a path or an address; return what is wrong where it fails.

    Args:
        name: for messages.
        image: a dict as Hugging Face has it undecoded (bytes, path) will do, too.
        preprocess: of the model; its resizing is done here, which leaves it nothing more to resize.
    """
    try:
        source = source_of(name, image)
        if isinstance(source, Decoded):
            return source
        decoded, size = read_image(source, name=name or "image given as bytes")
        height, width = preprocess.image_size
        reduced = decoded.resize((width, height), Image.Resampling[preprocess.interpolation.upper()])
        return Decoded(reduced, size)
    except ZsadError as error:
        return error


def source_of(name: str | None, image: Any) -> Source | Decoded:
    """An image as `zsad.images.decode.read_image` takes it.

    Raises:
        ImageError: there is none, or what was wrong with it before.
    """
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if image is None:
        raise ImageError(f"{name or 'an image'} is missing: the row holds nothing")
    if isinstance(image, ZsadError):
        raise image
    if isinstance(image, str) and "://" in image:
        return read_address(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    return np.asarray(image, np.uint8) if isinstance(image, list) else image


def is_plain(options: InputOptions) -> bool:
    """Return True if pictures are only resized, so that they can be decoded without the model."""
    return not options.to_dict()


def read_address(address: str) -> bytes:
    """The content of a file in an object store, such as s3://bucket/key, as pyarrow reads it.

    Raises:
        ImageError: it is not there or cannot be reached.
    """
    arrow = need_pyarrow()
    from pyarrow import fs

    try:
        system, path = fs.FileSystem.from_uri(address)
        with system.open_input_stream(path) as stream:
            content: bytes = stream.read()
    except (OSError, ValueError, arrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise ImageError(
            f"{address} cannot be read ({reason}): check the address and the access rights"
        ) from error
    return content


def images_of(columns: Mapping[str, Sequence[Any]], *, column: str | None) -> list[tuple[str | None, Any]]:
    """(name, image) of each row.

    Raises:
        DataError: no such column.
    """
    wanted = column or next((name for name in IMAGE_COLUMNS if name in columns), None)
    if wanted is None or wanted not in columns:
        raise DataError(
            f"the columns are {', '.join(columns) or 'none'}, expected images in {column or ', '.join(IMAGE_COLUMNS)}; "
            "name the column with the images"
        )
    names = columns["path"] if "path" in columns else [_own_name(image) for image in columns[wanted]]
    return [
        (None if name is None else str(name), image)
        for name, image in zip(names, columns[wanted], strict=True)
    ]


def _own_name(image: Any) -> str | None:
    """The path that an image brings along, if any."""
    if isinstance(image, Mapping):
        return image.get("path")
    return image if isinstance(image, str) else getattr(image, "filename", None) or None


def columns_of(batch: Any) -> tuple[dict[str, Sequence[Any]], str]:
    """A batch as columns, and its kind: "lists", "arrow", "records" or "pandas".

    Raises:
        DataError: an unknown kind.
    """
    if isinstance(batch, Mapping):
        return dict(batch), "lists"
    package, name = type(batch).__module__.partition(".")[0], type(batch).__name__
    if package == "pyarrow" and name in ("Table", "RecordBatch"):
        kind = "arrow" if name == "Table" else "records"
        return {column: batch.column(column).to_pylist() for column in batch.schema.names}, kind
    if package == "pandas" and name == "DataFrame":
        return {str(column): batch[column].tolist() for column in batch.columns}, "pandas"
    if hasattr(batch, "keys") and hasattr(batch, "__getitem__"):  # Hugging Face's lazy batch
        return {column: batch[column] for column in batch}, "lists"
    raise DataError(
        f"a batch is {package}.{name}, expected a dict of columns, a pyarrow table or a pandas data frame"
    )


def as_kind(columns: dict[str, Any], kind: str) -> Any:
    """Columns as a batch of the kind that came in; see `columns_of`."""
    if kind == "lists":
        return columns
    if kind == "pandas":
        import pandas

        kinds = {
            "score": "float64",
            "p_value": "float64",
        }  # else whole numbers beside a null become fractions
        series = {
            name: pandas.Series(values, dtype=kinds.get(name, "object")) for name, values in columns.items()
        }
        return pandas.DataFrame(series)
    arrow, schema = need_pyarrow(), arrow_schema()
    arrays = [
        arrow.array(values, schema.field(name).type) if name in COLUMNS else arrow.array(values)
        for name, values in columns.items()
    ]
    kept = [arrow.field(name, array.type) for name, array in zip(columns, arrays, strict=True)]
    table = arrow.RecordBatch if kind == "records" else arrow.Table
    return table.from_arrays(arrays, schema=arrow.schema(kept))
