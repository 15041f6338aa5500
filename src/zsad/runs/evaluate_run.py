"""An evaluation into the folder of a run: resumable, with metrics of what is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zsad.datasets.catalog import domain_of
from zsad.datasets.manifest import DataSet, discover
from zsad.datasets.overlap import check_unseen
from zsad.detector import Detector
from zsad.errors import ConfigError
from zsad.files import write_json, write_text
from zsad.methods.registry import domain_note, sources_note
from zsad.metrics import evaluation
from zsad.metrics.classes import ClassScores, Pro
from zsad.metrics.evaluation import Metrics, Progress
from zsad.metrics.table import ResultTable
from zsad.predict.pipeline import OnError
from zsad.predict.prediction import Prediction
from zsad.predict.tiles import OnTile
from zsad.runs.folder import RunWriter, file_state
from zsad.runs.remeasure import ScoredRun, keep_states
from zsad.runs.store import GRIDS_FILE, OVERLAYS, as_stored, read_grids, read_rows, restore
from zsad.types import Domain, Sample


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """Options of an evaluation; see `zsad.metrics.evaluation.evaluate` for metrics, PRO, columns and pooled rows.

    Attributes:
        classes: only these; None: all.
        metrics: "streaming" takes constant memory, "exact" keeps every pixel.
        pro: how PRO is taken.
        pro_limit: largest false positive rate of it.
        also: further columns.
        micro: add a row with all classes of a data set pooled.
        transductive: MoECLIP's published image scores, which need all test images of a class.
        allow_seen: measure on data that the model was trained on.
        batch_size: images in a pass; None takes what suits the device.
        domain: "industrial" or "medical" images, for methods that score the two differently; None: as the catalogue
            has the data set, else as the model has it.
        overwrite: throw away what lies in the folder.
    """

    classes: Sequence[str] | None = None
    metrics: Metrics = "streaming"
    pro: Pro = "aupro"
    pro_limit: float = 0.3
    also: Sequence[str] = ()
    micro: bool = False
    transductive: bool = False
    allow_seen: bool = False
    batch_size: int | None = None
    domain: Domain | None = None
    overwrite: bool = False


def evaluate(
    detector: Detector,
    data: DataSet | str | Path,
    out: str | Path = "results",
    *,
    options: EvaluateOptions | None = None,
    progress: Progress | None = None,
    on_error: OnError | None = None,
    on_tile: OnTile | None = None,
) -> ResultTable:
    """Measure a model on a data set, into a folder; images that were scored there before are not scored again.

    Writes run.json, predictions.jsonl, grids.npy, metrics.json and metrics.csv. Metrics are always taken of what is
    kept (grids in half precision), so that an interrupted evaluation gives the numbers of an uninterrupted one.

    Args:
        detector: the model; verdicts play no part.
        data: a folder, a manifest, or a data set.
        out: folder of the run.
        options: what is measured.
        progress: called with the position and the number of images.
        on_error: called with each sample that cannot be used.
        on_tile: called with the tiles of a large picture that are done, and all of them.

    Raises:
        ConfigError: settings that contradict each other, or the method.
        DataError: the folder holds another run, no such class, or data that the model has seen.
        StorageError: the disk is full or the folder cannot be written.
    """
    options, folder = options or EvaluateOptions(), Path(out)
    data = data if isinstance(data, DataSet) else discover(Path(data))
    detector = _for_target(detector, data, options.domain)
    card = detector.card
    if options.transductive and card.method != "moeclip":
        raise ConfigError(f"--transductive is MoECLIP's way of scoring, not {card.method}'s; leave it out")
    overlap = check_unseen(
        card, data, model=detector.name, classes=options.classes, allow_seen=options.allow_seen
    )
    scorer = _RunScorer(detector, _writer(folder, detector, overwrite=options.overwrite), options.batch_size)
    scorer.on_error, scorer.on_tile = on_error, on_tile
    measured: list[ClassScores] = []
    with scorer.writer:
        table = evaluation.evaluate(
            scorer,
            data,
            classes=options.classes,
            progress=progress,
            metrics=options.metrics,
            pro=options.pro,
            limit=options.pro_limit,
            also=options.also,
            micro=options.micro,
            transductive=card.config.get("domain", "industrial") if options.transductive else None,
            collect=measured.append,
        )
    keep_states(ScoredRun.of(folder), data, measured)
    with suppress(OSError):
        (folder / OVERLAYS).rmdir()  # an evaluation draws none
    table.seen = overlap.sentence()
    table.notes += [overlap.remark()] if overlap.related else []
    if note := sources_note(card.method, card.provenance):
        table.notes.append(note)
    if note := domain_note(card.config):
        table.notes.append(note)
    environment = detector.backend.environment()
    write_metrics(
        folder,
        table,
        {"model": detector.name, "card": card.model_dump(mode="json"), "environment": environment},
    )
    return table


def _for_target(detector: Detector, data: DataSet, domain: Domain | None) -> Detector:
    """Return the detector with the settings for what the data set's images are of."""
    if domain is None and not hasattr(
        detector.backend, "method"
    ):  # a graph holds those that it was exported with
        return detector
    return Detector(detector.model.for_domain(domain or domain_of(data.name)), detector.view)


def write_metrics(folder: Path, table: ResultTable, details: dict[str, Any]) -> None:
    """Write metrics.json, the table and what it was measured with, and metrics.csv."""
    write_json(folder / "metrics.json", {**json.loads(table.to_json()), **details})
    write_text(folder / "metrics.csv", table.to_csv())


class _RunScorer:
    """A detector that keeps what it scored in a run's folder, and reads back what was kept before."""

    on_error: OnError | None = None
    on_tile: OnTile | None = None

    def __init__(self, detector: Detector, writer: RunWriter, batch_size: int | None) -> None:
        self.detector, self.writer = detector, writer
        self._batch_size = batch_size

    def predict_samples(self, samples: Sequence[Sample]) -> Iterator[Prediction]:
        """Yield predictions in the order of the samples, kept ones read back, unreadable ones left out."""
        kept = self._kept()
        finished = {sample.image for sample in samples if self.writer.is_finished(sample.image)}
        fresh = self.detector.predict_samples(
            [sample for sample in samples if sample.image not in finished],
            batch_size=self._batch_size,
            on_error=self.on_error,
            on_tile=self.on_tile,
        )
        following = next(fresh, None)
        for sample in samples:
            if sample.image in finished:
                yield kept(sample)
            elif following is not None and following.sample is sample:
                self.writer.write(following, overlay=None, state=file_state(sample.image))
                following.grid = as_stored(following.grid).astype(np.float32)
                yield following
                following = next(fresh, None)

    def _kept(self) -> Callable[[Sample], Prediction]:
        """Return what reads a prediction back by its sample, whose label is the data set's of now."""
        rows: dict[str, dict[str, Any]] = {}
        if self.writer.finished:
            rows = {row["source"]: row for row in read_rows(self.writer.folder) if "error" not in row}
            grids = read_grids(self.writer.folder / GRIDS_FILE)
        spec = self.detector.backend.spec

        def read(sample: Sample) -> Prediction:
            prediction = restore(rows[str(sample.image)], grids, spec)
            prediction.sample = sample
            return prediction

        return read


def _writer(folder: Path, detector: Detector, *, overwrite: bool) -> RunWriter:
    details = {
        "title": "evaluation",
        "model_name": detector.name,
        "card": detector.card.model_dump(mode="json"),
        "map_spec": detector.backend.spec.model_dump(mode="json"),
    }
    settings = {"evaluated": True, "model": detector.identity(), **detector.backend.settings()}
    return RunWriter(folder, settings=settings, details=details, overwrite=overwrite)
