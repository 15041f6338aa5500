"""`zsad evaluate`: a model measured on a data set, class by class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from zsad.detector import Detector
    from zsad.errors import ZsadError
    from zsad.metrics.classes import ClassScores
    from zsad.metrics.table import ResultTable
    from zsad.predict.prediction import Prediction
    from zsad.runs.folder import RunWriter
    from zsad.types import Sample


def evaluate_command(
    model: str,
    /,
    *,
    data: Path,
    out: Path,
    classes: list[str] | None = None,
    backbone: str | None = None,
    weights: Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    threads: int | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    metrics: Literal["streaming", "exact"] = "streaming",
    pro: Literal["aupro", "anomalyclip", "mvtec3d"] = "aupro",
    pro_limit: float = 0.3,
    also: list[str] | None = None,
    micro: Annotated[bool, Parameter(negative="")] = False,
    transductive: Annotated[bool, Parameter(negative="")] = False,
    allow_seen: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Measure a model on a data set: image and pixel metrics per class, and their means.

    Prints the table and writes metrics.json and metrics.csv. What cannot be computed, for want of masks or of
    normal images, is said and left out of the means. Scores and score grids are kept in the folder: interrupted
    at any moment, the same command goes on where it stopped, and another metric costs no second pass.

    Args:
        model: Bundled model, run folder, checkpoint, or a method without training (clip, clip-tiny).
        data: Folder or manifest; its layout is found out by looking.
        out: Folder for the results.
        classes: Measure only these classes; may be repeated.
        backbone: Another tower, by name or path, for methods without training; else where the model's own lies.
        weights: File or folder of the backbone's weights.
        device: auto, cpu, cuda, cuda:1 or mps.
        batch_size: Images a pass; by default what suits the device.
        threads: Processor threads; by default all cores.
        overwrite: Throw away what lies in the folder; else images scored there by the same model are not again.
        metrics: Streaming takes constant memory and says how exact it is; exact keeps every pixel.
        pro: Every score a threshold, as in MVTec AD's evaluation; AnomalyCLIP's 200 thresholds; MVTec 3D-AD's 100.
        pro_limit: Largest false positive rate of it.
        also: A further column: aupimo, pro_anomalyclip, aupro_mvtec3d, or aupro@0.05 for another rate; may be repeated.
        micro: Add a row with all classes of a data set pooled as one.
        transductive: MoECLIP's published image scores, which need all test images of a class; marks the table.
        allow_seen: Measure on data that the model was trained on, else refused; marks the table.
    """
    from zsad.cli.console import Position, note, plural, printable, progress
    from zsad.datasets.manifest import discover
    from zsad.datasets.overlap import check_unseen
    from zsad.detector import load
    from zsad.device import use_threads
    from zsad.errors import ConfigError
    from zsad.methods.registry import sources_note
    from zsad.metrics.evaluation import evaluate
    from zsad.runs.folder import check_place
    from zsad.runs.remeasure import KeptRun, keep_states
    from zsad.runs.store import OVERLAYS

    check_place(out)
    found = discover(data)
    note(f"zsad: {printable(found.name)}: {plural(len(found.samples), 'image')}, layout {found.layout}")
    use_threads(threads)
    detector = load(model, backbone=backbone, weights=weights, device=device, calibration=None)
    if transductive and detector.card.method != "moeclip":
        raise ConfigError(
            f"--transductive is MoECLIP's way of scoring, not {detector.card.method}'s; leave it out"
        )
    overlap = check_unseen(detector.card, found, model=printable(model), allow_seen=allow_seen)
    domain = detector.card.config.get("domain", "industrial")
    scorer = Scorer(detector, batch_size=batch_size, writer=_writer(out, detector, overwrite=overwrite))
    total = sum(classes is None or sample.class_name in classes for sample in found.samples)
    with progress("evaluating", total) as advance:
        position, detector.on_tile = Position(advance), advance.tiles
        measured: list[ClassScores] = []
        try:
            with scorer.writer:
                table = evaluate(
                    scorer,
                    found,
                    classes=classes,
                    progress=position,
                    metrics=metrics,
                    pro=pro,
                    limit=pro_limit,
                    also=also or (),
                    micro=micro,
                    transductive=domain if transductive else None,
                    collect=measured.append,
                )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{position.done} of {total} images are scored, the same command goes on there"
            ) from None
    keep_states(KeptRun.of(out), found, measured)
    with suppress(OSError):
        (out / OVERLAYS).rmdir()  # an evaluation draws none
    table.seen = overlap.sentence()
    if said := sources_note(detector.card.method, detector.card.provenance):
        table.notes.append(said)
    print_table(table)
    environment, card = detector.backend.environment(), detector.card.model_dump(mode="json")
    write_metrics(out, table, {"model": detector.name, "card": card, "environment": environment})
    return 3 if table.unreadable else 0


class Scorer:
    """A detector that keeps what it scored in a run's folder, and reports unreadable files on stderr.

    Metrics are always taken of what is kept (grids in half precision), so that an interrupted evaluation gives
    the numbers of an uninterrupted one.
    """

    def __init__(self, detector: Detector, *, batch_size: int | None, writer: RunWriter) -> None:
        self.detector = detector
        self.writer = writer
        self._batch_size = batch_size

    def predict_samples(self, samples: Sequence[Sample]) -> Iterator[Prediction]:
        """Predictions in the order of the samples, kept ones first read back, unreadable ones left out."""
        import numpy as np

        from zsad.runs.folder import file_state
        from zsad.runs.store import as_stored

        kept = self._kept()
        finished = {sample.image for sample in samples if self.writer.is_finished(sample.image)}
        todo = [sample for sample in samples if sample.image not in finished]
        fresh = self.detector.predict_samples(todo, batch_size=self._batch_size, on_error=self._report)
        following = next(fresh, None)
        for sample in samples:
            if sample.image in finished:
                yield kept(str(sample.image), sample.label)
            elif following is not None and following.source == str(sample.image):
                self.writer.write(following, overlay=None, state=file_state(sample.image))
                following.grid = as_stored(following.grid).astype(np.float32)
                yield following
                following = next(fresh, None)

    def _kept(self) -> Callable[[str, int | None], Prediction]:
        """Reads back a prediction by its source; its label is the data set's of now."""
        from zsad.runs.store import GRIDS_FILE, read_grids, read_rows, restore

        if not self.writer.finished:
            return _nothing_kept
        rows = {row["source"]: row for row in read_rows(self.writer.folder) if "error" not in row}
        grids = read_grids(self.writer.folder / GRIDS_FILE)
        spec = self.detector.map_spec

        def read(source: str, label: int | None) -> Prediction:
            prediction = restore(rows[source], grids, spec)
            prediction.label = label
            return prediction

        return read

    def _report(self, sample: Sample, error: ZsadError) -> None:
        from zsad.cli.console import note, printable

        note(f"zsad: skipped: {printable(error)}")


def _nothing_kept(source: str, label: int | None) -> Prediction:
    raise KeyError(source)


def _writer(out: Path, detector: Detector, *, overwrite: bool) -> RunWriter:
    from zsad.cli.scoring import model_identity
    from zsad.runs.folder import RunWriter

    details = {
        "title": "evaluation",
        "model_name": detector.name,
        "card": detector.card.model_dump(mode="json"),
        "map_spec": detector.map_spec.model_dump(mode="json"),
    }
    settings = {"evaluated": True, "model": model_identity(detector), **detector.backend.settings()}
    return RunWriter(out, settings=settings, details=details, overwrite=overwrite)


def print_table(table: ResultTable) -> None:
    """Prints the table of an evaluation and its notes."""
    from zsad.cli.console import say, say_table

    rendered = table.render()
    rendered.caption = None
    say_table(rendered)
    for line in table.notes:
        say(f"note: {line}")


def write_metrics(out: Path, table: ResultTable, more: dict[str, Any]) -> None:
    """Writes metrics.json, the table and what it was measured with, and metrics.csv, and says so."""
    import json

    from zsad.cli.console import printable, say
    from zsad.files import write_json, write_text

    write_json(out / "metrics.json", {**json.loads(table.to_json()), **more})
    write_text(out / "metrics.csv", table.to_csv())
    say(f"wrote metrics.json, metrics.csv into {printable(out)}")
