"""Measurement of a cell: scores of a target's images, metrics of each class, and the files beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zsad.card import Card
from zsad.datasets.manifest import DataSet
from zsad.errors import ZsadError
from zsad.files import atomic_write
from zsad.methods.base import Method
from zsad.metrics.classes import EXACT_HINT, ClassScores, Pro
from zsad.metrics.curve_points import curves
from zsad.metrics.evaluation import evaluate
from zsad.metrics.table import COLUMNS, ResultRow, ResultTable
from zsad.predict.prediction import Prediction
from zsad.runs.folder import RunWriter, file_state
from zsad.runs.remeasure import ScoredRun, keep_states
from zsad.runs.store import OVERLAYS, as_stored
from zsad.studies.benchmark.cached_scoring import FeatureCacheScorer
from zsad.studies.benchmark.cell_results import CELLS, CellFiles, ClassRow, FileProblem
from zsad.studies.benchmark.context import BackboneContext
from zsad.studies.benchmark.faults import Fault, masked, missing_masks, of_the_set, relative, without_normals
from zsad.studies.benchmark.pixel_counts import count_pixels
from zsad.types import Sample

Report = Callable[[int, int], None]
_PIXEL = tuple(column for column in COLUMNS if column.startswith("pixel_"))


@dataclass(slots=True)
class TargetMeasurement:
    """The metrics of a target, and what is to be said about its files."""

    rows: tuple[ClassRow, ...]
    notes: tuple[str, ...]
    problems: tuple[FileProblem, ...]
    remarks: tuple[str, ...]
    files: CellFiles


@dataclass(slots=True)
class _RecordingScorer:
    """A scorer that writes what it scores: rows and grids into a run's folder, scores for later statistics.

    Metrics are taken of the grids as they are stored, in half precision, so that taking them again gives the same.
    """

    scorer: FeatureCacheScorer
    writer: RunWriter
    data: DataSet
    rows: list[tuple[str, str, int, float]] = field(default_factory=list)

    def predict_samples(self, samples: Sequence[Sample]) -> Iterator[Prediction]:
        """Yield predictions in the order of the samples, without unreadable ones."""
        for prediction in self.scorer.predict_samples(samples):
            sample = prediction.sample
            assert sample is not None  # all are of the data set
            prediction.grid = as_stored(prediction.grid).astype(np.float32)
            self.writer.write(prediction, overlay=None, state=file_state(sample.image))
            label = -1 if sample.label is None else sample.label
            name = class_title(sample.dataset, sample.class_name, self.data)
            self.rows.append((relative(sample.image, self.data), name, label, prediction.score))
            yield prediction


def measure_means(
    context: BackboneContext, method: Method, data: DataSet, *, pro: Pro, report: Report
) -> TargetMeasurement:
    """Measure a target as a whole, without the images that cannot be read; writes nothing.

    Args:
        context: the method's backbone.
        method: with its weights.
        data: the target.
        pro: of the PRO column.
        report: called with images done and in all.

    Raises:
        DataError: nothing to measure by, or no image can be read.
        StorageError: the disk is full.
    """
    problems: list[FileProblem] = []

    def unreadable(sample: Sample, error: ZsadError) -> None:
        problems.append(FileProblem(path=str(sample.image), reason=str(error)))

    table = evaluate(context.scorer(method, on_error=unreadable), data, pro=pro, progress=report)
    row = table.rows[-1]
    metrics = {name: None if math.isnan(value) else value for name, value in row.metrics.items()}
    means = ClassRow(name=row.name, normal=row.normal, anomalous=row.anomalous, masks=0, metrics=metrics)
    remarks = tuple(f"skipped: {problem.reason}" for problem in problems)
    masks = table.unreadable - len(problems)
    if masks:
        problems.append(FileProblem(path="", reason=f"{masks} masks cannot be read"))
    return TargetMeasurement((means,), _notes(table), tuple(problems), remarks, CellFiles())


def _notes(table: ResultTable) -> tuple[str, ...]:
    return tuple(line for line in table.notes if not line.endswith(EXACT_HINT))


def class_title(dataset: str, name: str, data: DataSet) -> str:
    """Return a class's name, with its data set's before it where a folder holds several sets."""
    several = len({sample.dataset for sample in data.samples}) > 1
    return f"{dataset}/{name}" if several else name


def measure_cell(
    context: BackboneContext,
    method: Method,
    data: DataSet,
    *,
    work: Path,
    key: str,
    card: Card,
    pro: Pro,
    report: Report,
) -> TargetMeasurement:
    """Score a target's images with a trained method, and write scores, curves and grids of the cell `key`.

    Args:
        context: the method's backbone.
        method: with its weights.
        data: the target.
        work: folder of the benchmark.
        key: of the cell.
        card: of the method.
        pro: of the PRO column.
        report: called with images done and in all.

    Raises:
        DataError: nothing to measure by, or no image can be read.
        StorageError: the disk is full.
    """
    whole = data
    data, faults = masked(data, folder=work / "faults", workers=context.execution.workers)
    known = {fault.sample.image for fault in faults}
    faults += [fault for fault in missing_masks(data) if fault.sample.image not in known]

    def unreadable(sample: Sample, error: ZsadError) -> None:
        faults.append(Fault(sample, "image", str(sample.image), str(error)))

    states: list[ClassScores] = []
    folder = work / CELLS / f"{key}.grids"
    settings = {"benchmark": True, "key": key}
    details = {
        "title": f"{key} on {data.name}",
        "model_name": key,
        "card": card.model_dump(mode="json"),
        "map_spec": method.map_spec.model_dump(mode="json"),
    }
    with RunWriter(folder, settings=settings, details=details, overwrite=True) as writer:
        recorder = _RecordingScorer(context.scorer(method, on_error=unreadable), writer, whole)
        table = evaluate(recorder, data, pro=pro, progress=report, collect=states.append)
    with suppress(OSError):
        (folder / OVERLAYS).rmdir()  # a measurement draws none
    run = ScoredRun.of(folder)
    keep_states(run, data, states)
    files = _write(work, key, recorder.rows, states, whole)
    counted: dict[str, npt.NDArray[Any]] = {}
    for title, pixels in count_pixels(
        run,
        data,
        states,
        pro=pro,
        title=lambda dataset, name: class_title(dataset, name, whole),
        name=lambda path: relative(path, whole),
    ):
        counted |= pixels.arrays(title)
    if counted:
        files = files.model_copy(update={"pixels": f"{CELLS}/{key}.pixels.npz"})
        _save(work / CELLS / f"{key}.pixels.npz", counted)
    rows = [_row(row, faults, data) for row in table.rows if row.kind == "class"]
    rows += [_emptied(name) for name in whole.lost]
    notes = [*_notes(table), *(line for row in rows for line in _holes(row.name, faults, whole))]
    problems = dict.fromkeys([*(fault.problem for fault in faults), *of_the_set(whole, faults)])
    remarks = dict.fromkeys([*(problem.line for problem in problems), *_one_sided(whole)])
    return TargetMeasurement(tuple(rows), tuple(dict.fromkeys(notes)), tuple(problems), tuple(remarks), files)


def _one_sided(data: DataSet) -> Iterator[str]:
    """Yield a line for each class without normal images."""
    for name, folder in without_normals(data).items():
        yield f"{folder}: class {name} has no normal image: image metrics are undefined"


def _row(row: ResultRow, faults: Sequence[Fault], data: DataSet) -> ClassRow:
    """Return the row of a class; metrics that a broken file would change are undefined."""
    name = class_title(row.dataset, row.name, data)
    class_faults = [
        fault for fault in faults if class_title(fault.sample.dataset, fault.sample.class_name, data) == name
    ]
    lost: set[str] = set()
    if any(fault.kind == "image" for fault in class_faults):
        lost = set(COLUMNS)
    elif class_faults:
        lost = set(_PIXEL)
    metrics = {
        column: None if column in lost or math.isnan(row.metrics[column]) else row.metrics[column]
        for column in COLUMNS
    }
    bounds = {}
    for column, (low, high) in row.bounds.items():
        value = metrics[column]
        if value is not None and not math.isnan(low):
            bounds[column] = max(value - low, high - value)
    bad = {fault.sample.image for fault in class_faults}
    masks = sum(
        sample.label != 0
        and sample.mask is not None
        and sample.image not in bad
        and class_title(sample.dataset, sample.class_name, data) == name
        for sample in data.samples
    )
    return ClassRow(
        name=name, normal=row.normal, anomalous=row.anomalous, masks=masks, metrics=metrics, bounds=bounds
    )


def _emptied(name: str) -> ClassRow:
    """Return the row of a class without images: a hole that tables show and means are marked for."""
    return ClassRow(name=name, normal=0, anomalous=0, masks=0, metrics=dict.fromkeys(COLUMNS))


def _holes(name: str, faults: Sequence[Fault], data: DataSet) -> Iterator[str]:
    """Yield a line for the metrics that a class lacks because of broken files."""
    class_faults = [
        fault for fault in faults if class_title(fault.sample.dataset, fault.sample.class_name, data) == name
    ]
    images = [fault for fault in class_faults if fault.kind == "image"]
    masks = [fault for fault in class_faults if fault.kind == "mask"]
    if images:
        yield f"class {name}: {len(images)} images cannot be read, no metrics ({images[0].path})"
    if masks:
        yield f"class {name}: {len(masks)} masks cannot be used, no pixel metrics ({masks[0].path})"


def _write(
    work: Path,
    key: str,
    rows: Sequence[tuple[str, str, int, float]],
    states: Sequence[ClassScores],
    data: DataSet,
) -> CellFiles:
    images, names, labels, scores = zip(*rows, strict=True)
    _save(
        work / CELLS / f"{key}.scores.npz",
        {
            "image": np.array(images),
            "class_name": np.array(names),
            "label": np.array(labels, dtype=np.int8),
            "score": np.array(scores, dtype=np.float64),
        },
    )
    lines = {
        f"{class_title(state.dataset, state.name, data)}/{name}": values
        for state in states
        if state.pixels is not None
        for name, values in curves(state.pixels).arrays().items()
    }
    if lines:
        _save(work / CELLS / f"{key}.curves.npz", lines)
    return CellFiles(
        scores=f"{CELLS}/{key}.scores.npz",
        curves=f"{CELLS}/{key}.curves.npz" if lines else None,
        grids=f"{CELLS}/{key}.grids",
    )


def _save(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    save: Any = np.savez  # whose types know no arrays by name
    atomic_write(path, lambda stream: save(stream, **arrays))
