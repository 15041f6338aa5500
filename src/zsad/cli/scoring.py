"""What `predict` and `demo` share: samples through a detector into the folder of a run, a line for each image."""

from __future__ import annotations

import io
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

from zsad.cli.console import clock, note, plural, printable, progress, say
from zsad.cli.looking import shrunk_hint
from zsad.detector import Detector
from zsad.errors import CalibrationError, ConfigError, DataError, ImageError, ZsadError
from zsad.files import storage_errors
from zsad.images.address import is_stream
from zsad.predict.prediction import Prediction
from zsad.predict.roi import RegionOfInterest
from zsad.runs.folder import RunWriter, file_state
from zsad.types import Sample

EXIT_OK, EXIT_SOME_FAILED = 0, 3
_WAITING = 8  # predictions that may wait for their overlay: bounds the memory, hides the disk


@dataclass(frozen=True, slots=True)
class Options:
    """How a run is written."""

    out: Path
    overwrite: bool = False
    overlay: bool = True
    max_overlay_side: int = 1024
    batch_size: int | None = None
    report: bool = True
    regions: tuple[str, ...] = ()

    def check(self) -> None:
        """ConfigError where a number makes no sense."""
        if self.max_overlay_side < 16:
            raise ConfigError(f"--max-overlay-side is {self.max_overlay_side}, expected 16 or more")
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"--batch-size is {self.batch_size}, expected 1 or more")


@dataclass(frozen=True, slots=True)
class Videos:
    """Videos and cameras, and which of their frames are taken."""

    sources: tuple[str, ...] = ()
    every: int = 1

    def check(self) -> None:
        """ConfigError where a number makes no sense."""
        if self.every < 1:
            raise ConfigError(f"--every is {self.every}, expected 1 (all frames) or more")


@dataclass(slots=True)
class Outcome:
    """What became of a run's samples."""

    scored: int = 0
    skipped: int = 0
    errors: list[ZsadError] = field(default_factory=list)
    seconds: float = 0.0
    anomalous: int | None = None
    hinted: bool = False

    @property
    def exit_code(self) -> int:
        """0 where every image was scored, 3 where some failed."""
        return EXIT_SOME_FAILED if self.errors else EXIT_OK

    def check(self, count: int) -> None:
        """Raises what is wrong with the one image, or a DataError, where none of `count` images could be used."""
        if not self.errors or self.scored or self.skipped:
            return
        if count == 1:
            raise self.errors[0]
        raise DataError(f"none of the {count} images could be used; nothing was written")

    def count(self, prediction: Prediction, detector: Detector) -> None:
        """One more image has its result; the first large one that was shrunk is worth a word."""
        self.scored += 1
        if not self.hinted and (hint := shrunk_hint(detector, prediction)) is not None:
            self.hinted = True
            note(hint)
        if prediction.is_anomalous is not None:
            self.anomalous = (self.anomalous or 0) + prediction.is_anomalous


def score_images(
    detector: Detector,
    samples: Sequence[Sample],
    *,
    inputs: list[str],
    title: str,
    options: Options,
    shown: str | None = None,
    videos: Videos | None = None,
) -> Outcome:
    """Scores samples into the run's folder; finished ones of the same run are left as they are.

    Args:
        detector: the model.
        samples: the images.
        inputs: what the user named them by; part of the settings of the run.
        title: headline of the report.
        options: where and how results are written.
        shown: what the user said that the images show.
        videos: whose frames are scored behind the images.

    Raises:
        ImageError: the one image given cannot be used.
        DataError: none of several can, or the folder holds another run.
        StorageError: the disk is full or the folder cannot be written.
    """
    videos = videos or Videos()
    videos.check()
    settings = run_settings(detector, inputs=inputs, options=options, shown=shown)
    details = run_details(detector, title=title)
    with RunWriter(options.out, settings=settings, details=details, overwrite=options.overwrite) as writer:
        todo = [sample for sample in samples if not writer.is_finished(sample.image)]
        outcome = Outcome(skipped=len(samples) - len(todo))
        if outcome.skipped:
            note(
                f"zsad: {plural(outcome.skipped, 'image')} of this run finished before, --overwrite starts anew"
            )
        start = time.perf_counter()
        _score(detector, todo, writer=writer, options=options, outcome=outcome, videos=videos)
        outcome.seconds = time.perf_counter() - start
    outcome.check(len(samples) + len(videos.sources))
    return outcome


def run_settings(
    detector: Detector, *, inputs: list[str], options: Options, shown: str | None
) -> dict[str, Any]:
    """All that changes the results of a run; arguments as `score_images`."""
    settings: dict[str, Any] = {
        "inputs": inputs,
        "model": model_identity(detector),
        "overlay": options.overlay,
        "max_overlay_side": options.max_overlay_side,
    }
    settings |= detector.backend.settings()
    if shown is not None:
        settings["object"] = shown
    return settings | judging_settings(detector)


def run_details(detector: Detector, *, title: str) -> dict[str, Any]:
    """What run.json holds beside the settings."""
    return {
        "title": title,
        "model_name": detector.name,
        "card": detector.card.model_dump(mode="json"),
        "map_spec": detector.map_spec.model_dump(mode="json"),
        "environment": detector.backend.environment(),
        **judging_details(detector),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _score(
    detector: Detector,
    samples: list[Sample],
    *,
    writer: RunWriter,
    options: Options,
    outcome: Outcome,
    videos: Videos,
) -> None:
    alone = len(samples) + len(videos.sources) == 1
    base = _base([sample.image for sample in samples])
    waiting: deque[tuple[Prediction, Future[Path | None]]] = deque()
    with progress("scoring", len(samples)) as advance, ThreadPoolExecutor(2, "zsad-overlay") as pool:
        detector.on_tile = advance.tiles

        def on_error(sample: Sample, error: ZsadError) -> None:
            outcome.errors.append(error)
            writer.write_error(sample.image, str(error))
            if not (alone and not outcome.skipped):
                note(f"zsad: skipped: {printable(error)}")
            advance(1)

        def finish_first() -> None:
            prediction, future = waiting.popleft()
            overlay = future.result()
            source = Path(str(prediction.source))
            writer.write(prediction, overlay=overlay, state=file_state(source))
            prediction.picture = None
            if outcome.scored == 0:
                say(header_line(prediction))
            outcome.count(prediction, detector)
            say(result_line(prediction, base=base))
            advance(1)

        try:
            predictions = detector.predict_samples(samples, batch_size=options.batch_size, on_error=on_error)
            for prediction in chain(predictions, _frames(detector, videos, writer, outcome, on_error)):
                waiting.append((prediction, pool.submit(_overlay_job(prediction, writer, options))))
                while len(waiting) >= _WAITING or (waiting and waiting[0][1].done()):
                    finish_first()
            while waiting:
                finish_first()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _frames(
    detector: Detector,
    videos: Videos,
    writer: RunWriter,
    outcome: Outcome,
    on_error: Callable[[Sample, ZsadError], None],
) -> Iterator[Prediction]:
    """Yields the predictions of frames that are not finished yet."""
    for name in videos.sources:
        live = is_stream(name)
        source = name if live else os.path.abspath(name)  # noqa: PTH100 - links stay as they are

        def finished(address: str, *, live: bool = live) -> bool:
            done = not live and writer.is_finished(address)
            outcome.skipped += done
            return done

        try:
            yield from detector.predict_video(source, every=videos.every, skip=finished)
        except ImageError as error:
            on_error(Sample(Path(source)), error)


def _overlay_job(prediction: Prediction, writer: RunWriter, options: Options) -> Callable[[], Path | None]:
    def job() -> Path | None:
        if not options.overlay:
            return None
        path = writer.overlay_path(str(prediction.source))
        content = io.BytesIO()
        try:
            picture = prediction.overlay(max_side=options.max_overlay_side)
        except ImageError as error:  # gone or changed since it was scored
            note(f"zsad: no overlay: {printable(error)}")
            return None
        picture.save(content, format="JPEG", quality=88)
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.write_bytes(content.getvalue())
            except OSError:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                raise
        return path

    return job


def look_at(
    detector: Detector,
    *,
    region: RegionOfInterest | None = None,
    shows: str | None = None,
    pixel_threshold: float | None = None,
    min_area: float = 0.0,
) -> None:
    """Sets what the user asks for; where a calibration was made otherwise, its promises would not hold.

    Raises:
        CalibrationError: the calibration has another region of interest or word.
        ConfigError: a number that makes no sense.
    """
    if min_area < 0:
        raise ConfigError(f"--min-area is {min_area:g}, expected 0 or more pixels")
    if pixel_threshold is not None and not math.isfinite(pixel_threshold):
        raise ConfigError(f"--pixel-threshold is {pixel_threshold:g}, expected a map value between 0 and 1")
    made = detector.calibration
    for asked, own, option in (
        (region, detector.region, "--roi or --ignore"),
        (shows, detector.shows, "--object"),
    ):
        if made is not None and asked is not None and asked != own:
            raise CalibrationError(
                f"the calibration was made with another {option}; calibrate with the same, leave it out to take "
                "the calibration's, or go without by --calibration none"
            )
    detector.region, detector.shows = region or detector.region, shows or detector.shows
    detector.min_area = min_area
    if pixel_threshold is not None:
        detector.pixel_threshold = pixel_threshold


def judging_settings(detector: Detector) -> dict[str, str | float]:
    """What changes verdicts and regions, as settings of a run; nothing where there is neither."""
    settings: dict[str, str | float] = {}
    if detector.calibration is not None:
        settings["calibration"] = detector.calibration.digest()
    if detector.region is not None:
        settings["region"] = detector.region.digest()
    if detector.pixel_threshold is not None:
        settings["pixel_threshold"] = detector.pixel_threshold
        settings["min_area"] = detector.min_area
    return settings


def judging_details(detector: Detector) -> dict[str, Any]:
    """Calibration and region of interest as run.json keeps them, for those who read the run later."""
    details: dict[str, Any] = {}
    if detector.calibration is not None:
        details["calibration"] = detector.calibration.model_dump(
            mode="json", by_alias=True, exclude={"scores", "peaks", "region"}
        )
        details["promises"] = detector.calibration.summary()
    if detector.region is not None:
        details["region"] = detector.region.model_dump(mode="json")
    return details


def header_line(prediction: Prediction) -> str:
    """The headline over the lines of images like this one."""
    judged = f"{'p-value':>8}  " if prediction.p_value is not None else ""
    counted = f"{'regions':>7}  " if prediction.regions is not None else ""
    return f"{'score':>6}  {'time':>8}  {'verdict':<9}  {judged}{counted}image"


def result_line(prediction: Prediction, *, base: Path) -> str:
    """The line of one image: score, time of the model, verdict, p-value, regions, path below `base`."""
    source = Path(str(prediction.source))
    shown = printable(source.relative_to(base) if source.is_relative_to(base) else source)
    verdict = prediction.verdict or "-"
    judged = f"{prediction.p_value:8.2g}  " if prediction.p_value is not None else ""
    counted = f"{len(prediction.regions):7d}  " if prediction.regions is not None else ""
    return f"{prediction.score:6.3f}  {1000 * prediction.seconds:5.0f} ms  {verdict:<9}  {judged}{counted}{shown}"


def _base(paths: list[Path]) -> Path:
    """The folder against which paths are shown: the working folder, or else the deepest that holds them all."""
    working = Path.cwd()
    if not paths or any(path.is_relative_to(working) for path in paths):
        return working
    try:
        return Path(os.path.commonpath([path.parent for path in paths]))
    except ValueError:  # several drives on Windows
        return working


def model_identity(detector: Detector) -> str:
    """See `Detector.identity`."""
    return detector.identity()


def conclude(outcome: Outcome, *, options: Options) -> None:
    """Writes the report and says what there is now."""
    rate = (
        f", {outcome.scored / outcome.seconds:.1f} a second" if outcome.seconds > 0 and outcome.scored else ""
    )
    failed = f", {len(outcome.errors)} skipped as unusable" if outcome.errors else ""
    judged = f", {outcome.anomalous} anomalous" if outcome.anomalous is not None else ""
    say(f"{plural(outcome.scored, 'image')} scored in {clock(outcome.seconds)}{rate}{judged}{failed}")
    files = ["predictions.jsonl", "scores.csv"] + (["overlays/"] if options.overlay else [])
    if options.regions:
        from zsad.runs.region_files import write_regions

        files += [path.name for path in write_regions(options.out, options.regions)]
    if options.report:
        if find_spec("jinja2") is None:
            note("zsad: no report.html: it needs jinja2, get it with: pip install 'zsad[report]'")
        else:
            from zsad.runs.page import write_report

            files.append(write_report(options.out).name)
    say(f"wrote {', '.join(files)} into {printable(options.out)}")
