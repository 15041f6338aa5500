"""Predictions into the folder of a run: resumable, image by image, with overlays and a report."""

from __future__ import annotations

import io
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from zsad.detector import Detector
from zsad.errors import ConfigError, DataError, ImageError, ZsadError
from zsad.files import storage_errors
from zsad.images.inputs import expand_inputs
from zsad.images.open import WRITTEN_BY, is_stream, is_video
from zsad.predict.prediction import Prediction
from zsad.runs.folder import RunWriter, file_state
from zsad.runs.page import THUMBNAIL_SIDE, Thumbnails
from zsad.types import Sample

_WAITING = 8  # predictions that may wait for their overlay: bounds the memory, hides the disk


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Options of a run and its files.

    Attributes:
        out: folder of the run.
        overwrite: throw away the run that lies there.
        overlay: write a heat-map overlay for each image.
        max_overlay_side: longest side of an overlay, in pixels.
        batch_size: images in a pass; None takes what suits the device.
        report: write report.html.
        regions: formats of the files of regions: "jsonl", "csv", "coco", "labelstudio".
        every: take every Nth frame of videos and cameras.

    Raises:
        ConfigError: a number that makes no sense.
    """

    out: Path
    overwrite: bool = False
    overlay: bool = True
    max_overlay_side: int = 1024
    batch_size: int | None = None
    report: bool = True
    regions: tuple[str, ...] = ()
    every: int = 1

    def __post_init__(self) -> None:
        if self.max_overlay_side < 16:
            raise ConfigError(f"--max-overlay-side is {self.max_overlay_side}, expected 16 or more")
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"--batch-size is {self.batch_size}, expected 1 or more")
        if self.every < 1:
            raise ConfigError(f"--every is {self.every}, expected 1 (all frames) or more")

    @property
    def draw_side(self) -> int | None:
        """Longest side of the pictures that are kept until they are drawn; None: none are drawn."""
        if self.overlay:
            return max(self.max_overlay_side, THUMBNAIL_SIDE)
        return THUMBNAIL_SIDE if self.report else None


@dataclass(frozen=True, slots=True)
class RunInputs:
    """Images and videos, found before a model is loaded.

    Attributes:
        names: as the user gave them, absolute.
        samples: the images.
        videos: files, cameras or devices whose frames are scored behind the images.
    """

    names: tuple[str, ...]
    samples: tuple[Sample, ...]
    videos: tuple[str, ...] = ()

    @classmethod
    def find(cls, names: Sequence[str | Path], out: Path) -> RunInputs:
        """Find the images of folders, patterns and files; the overlays of an earlier run in `out` are left out.

        Raises:
            DataError: an input that does not exist, or no images.
        """
        texts = [str(name) for name in names]
        videos = tuple(name for name in texts if is_video(name))
        pictures = [name for name in texts if name not in videos]
        samples = _outside(expand_inputs(pictures), out) if pictures or not videos else []
        absolute = (name if is_stream(name) else os.path.abspath(name) for name in texts)  # noqa: PTH100 - patterns
        return cls(tuple(absolute), tuple(samples), videos)

    def __len__(self) -> int:
        return len(self.samples) + len(self.videos)


@dataclass(slots=True)
class Outcome:
    """The result of a run: numbers of images, and the errors of those that were skipped."""

    scored: int = 0
    skipped: int = 0
    errors: list[ZsadError] = field(default_factory=list)
    seconds: float = 0.0
    anomalous: int | None = None
    files: list[str] = field(default_factory=list)

    def check(self, count: int) -> None:
        """Raise the error of the one image, or a DataError, where none of `count` images could be used."""
        if not self.errors or self.scored or self.skipped:
            return
        if count == 1:
            raise self.errors[0]
        raise DataError(f"none of the {count} images could be used; nothing was written")

    def count(self, prediction: Prediction) -> None:
        """Count one more image that has its result."""
        self.scored += 1
        if prediction.is_anomalous is not None:
            self.anomalous = (self.anomalous or 0) + prediction.is_anomalous


class RunReporter(Protocol):
    """Receives the events of a run; a subclass ignores those that it does not define."""

    def resumed(self, count: int) -> None:
        """`count` images of this run were finished before."""
        return

    def scored(self, prediction: Prediction) -> None:
        """One more image has its result on the disk."""
        return

    def skipped(self, error: ZsadError, *, alone: bool) -> None:
        """An image cannot be used; `alone` where it is the only one, whose error is raised in the end."""
        return

    def no_overlay(self, error: ImageError) -> None:
        """The picture of a result cannot be drawn."""
        return

    def tiles(self, done: int, total: int) -> None:
        """Tiles of a large picture are done."""
        return


class _NoReporter(RunReporter):
    """Ignores every event."""


def predict(
    detector: Detector,
    inputs: RunInputs | str | Path | Sequence[str | Path],
    out: str | Path = "results",
    *,
    options: RunOptions | None = None,
    title: str | None = None,
    reporter: RunReporter | None = None,
) -> Outcome:
    """Score images into the folder of a run; finished ones of the same run are left as they are.

    Writes run.json, predictions.jsonl, grids.npy, scores.csv, overlays/, files of regions and report.html.

    Args:
        detector: model and view.
        inputs: images, folders, patterns, videos or cameras.
        out: folder of the run.
        options: how results are written; its `out` counts.
        title: headline of the report; None: the inputs.
        reporter: is told of each image.

    Raises:
        ImageError: the one image given cannot be used.
        DataError: none of several can, or the folder holds another run.
        StorageError: the disk is full or the folder cannot be written.
        ConfigError: regions are wanted and there is no pixel threshold.
    """
    options, reporter = options or RunOptions(Path(out)), reporter or _NoReporter()
    check_regions(options, detector)
    if not isinstance(inputs, RunInputs):
        names = [inputs] if isinstance(inputs, str | Path) else list(inputs)
        title = title or run_title([str(name) for name in names])
        inputs = named_inputs(RunInputs.find(names, options.out), detector)
    settings = run_settings(detector, inputs=list(inputs.names), options=options)
    details = run_details(detector, title=title or run_title(list(inputs.names)))
    with RunWriter(options.out, settings=settings, details=details, overwrite=options.overwrite) as writer:
        run = _Run(detector, inputs, options, writer, reporter)
        run.score()
    run.outcome.check(len(inputs))
    run.outcome.files = write_products(options, run.thumbnails)
    return run.outcome


def check_regions(options: RunOptions, detector: Detector) -> None:
    """Raise a ConfigError where files of regions are asked for and there is no pixel threshold."""
    if options.regions and detector.view.map_threshold is None:
        raise ConfigError("--regions needs a pixel threshold: run zsad calibrate, or give --pixel-threshold")


def named_inputs(inputs: RunInputs, detector: Detector) -> RunInputs:
    """Return inputs whose samples have the detector's object name, where it has one."""
    if detector.object_name is None:
        return inputs
    named = tuple(replace(sample, class_name=detector.object_name) for sample in inputs.samples)
    return replace(inputs, samples=named)


def run_title(names: Sequence[str]) -> str:
    """Return the headline of a run over these inputs."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def run_settings(detector: Detector, *, inputs: list[str], options: RunOptions) -> dict[str, Any]:
    """Return all that changes the results of a run."""
    settings: dict[str, Any] = {
        "inputs": inputs,
        "model": detector.identity(),
        "overlay": options.overlay,
        "max_overlay_side": options.max_overlay_side,
        **detector.backend.settings(),
    }
    view = detector.view
    if detector.object_name is not None:
        settings["object"] = detector.object_name
    if detector.calibration is not None:
        settings["calibration"] = detector.calibration.digest()
    if view.region is not None:
        settings["region"] = view.region.digest()
    if view.map_threshold is not None:
        settings["pixel_threshold"] = view.map_threshold
        settings["min_area"] = view.min_area
    return settings


def run_details(detector: Detector, *, title: str) -> dict[str, Any]:
    """Return what run.json holds beside the settings, for those who read the run later."""
    details: dict[str, Any] = {
        "title": title,
        "model_name": detector.name,
        "card": detector.card.model_dump(mode="json"),
        "map_spec": detector.backend.spec.model_dump(mode="json"),
        "environment": detector.backend.environment(),
    }
    if detector.calibration is not None:
        details["calibration"] = detector.calibration.model_dump(
            mode="json", exclude={"scores", "peaks", "region"}, by_alias=True
        )
        details["promises"] = detector.calibration.summary()
    if detector.view.region is not None:
        details["region"] = detector.view.region.model_dump(mode="json")
    details["started"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return details


def write_products(options: RunOptions, thumbnails: Thumbnails | None = None) -> list[str]:
    """Write what is made of the rows of a finished run, and return the names of all that it holds."""
    files = ["predictions.jsonl", "scores.csv"] + (["overlays/"] if options.overlay else [])
    if options.regions:
        from zsad.runs.region_files import write_regions

        files += [path.name for path in write_regions(options.out, options.regions)]
    if options.report and find_spec("jinja2") is not None:
        from zsad.runs.page import write_report

        files.append(write_report(options.out, thumbnails=thumbnails).name)
    return files


class _Run:
    """A call of `predict`: images to score, and the outcome so far."""

    def __init__(
        self,
        detector: Detector,
        inputs: RunInputs,
        options: RunOptions,
        writer: RunWriter,
        reporter: RunReporter,
    ) -> None:
        self.detector, self.inputs, self.options = detector, inputs, options
        self.writer, self.reporter = writer, reporter
        self.todo = [sample for sample in inputs.samples if not writer.is_finished(sample.image)]
        self.outcome = Outcome(skipped=len(inputs.samples) - len(self.todo))
        self.thumbnails = Thumbnails() if options.report else None

    def score(self) -> None:
        """Score what is not finished; overlays are drawn and written by threads meanwhile."""
        if self.outcome.skipped:
            self.reporter.resumed(self.outcome.skipped)
        start = time.perf_counter()
        waiting: deque[tuple[Prediction, Future[Path | None]]] = deque()
        with ThreadPoolExecutor(2, "zsad-overlay") as pool:
            try:
                for prediction in chain(self._images(), self._frames()):
                    waiting.append((prediction, pool.submit(self._write_overlay, prediction)))
                    while len(waiting) >= _WAITING or (waiting and waiting[0][1].done()):
                        self._finish(*waiting.popleft())
                while waiting:
                    self._finish(*waiting.popleft())
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        self.outcome.seconds = time.perf_counter() - start

    def _images(self) -> Iterator[Prediction]:
        return self.detector.predict_samples(
            self.todo,
            batch_size=self.options.batch_size,
            on_error=self._skip,
            draw_side=self.options.draw_side,
            on_tile=self.reporter.tiles,
        )

    def _frames(self) -> Iterator[Prediction]:
        """Yield the predictions of frames that are not finished yet."""
        for name in self.inputs.videos:
            live = is_stream(name)
            source = name if live else os.path.abspath(name)  # noqa: PTH100 - links stay as they are

            def finished(address: str, *, live: bool = live) -> bool:
                done = not live and self.writer.is_finished(address)
                self.outcome.skipped += done
                return done

            try:
                yield from self.detector.predict_video(
                    source, every=self.options.every, skip=finished, draw_side=self.options.draw_side
                )
            except ImageError as error:
                self._skip(Sample(Path(source)), error)

    def _skip(self, sample: Sample, error: ZsadError) -> None:
        self.outcome.errors.append(error)
        self.writer.write_error(sample.image, str(error))
        alone = len(self.todo) + len(self.inputs.videos) == 1 and not self.outcome.skipped
        self.reporter.skipped(error, alone=alone)

    def _finish(self, prediction: Prediction, overlay: Future[Path | None]) -> None:
        """Write the row of an image, whose overlay is on the disk then."""
        source = Path(str(prediction.source))
        path = overlay.result()
        self.writer.write(prediction, overlay=path, state=file_state(source))
        if self.thumbnails is not None:
            self.thumbnails.add(prediction)
        prediction.picture = None
        self.outcome.count(prediction)
        self.reporter.scored(prediction)

    def _write_overlay(self, prediction: Prediction) -> Path | None:
        """Draw and write the overlay of an image; None where none is wanted or the picture is gone."""
        if not self.options.overlay:
            return None
        path = self.writer.overlay_path(str(prediction.source))
        try:
            picture = prediction.overlay(max_side=self.options.max_overlay_side)
        except ImageError as error:  # gone or changed since it was scored
            self.reporter.no_overlay(error)
            return None
        content = io.BytesIO()
        picture.save(content, format="JPEG", quality=88, comment=WRITTEN_BY)
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.write_bytes(content.getvalue())
            except OSError:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                raise
        return path


def _outside(samples: list[Sample], out: Path) -> list[Sample]:
    """Return the samples with absolute paths, without the overlays of an earlier run among the inputs."""
    overlays = (out / "overlays").resolve()
    kept = [
        replace(sample, image=Path(os.path.abspath(sample.image)))  # noqa: PTH100 - links stay as they are
        for sample in samples
        if overlays not in Path(os.path.realpath(sample.image)).parents  # Path.resolve raises on circles
    ]
    if not kept:
        raise DataError(f"the only images found are the overlays of the run in {out}; name other inputs")
    return kept
