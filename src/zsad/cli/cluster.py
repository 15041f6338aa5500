"""Scoring by `predict --engine ray`: images through workers into the folder of a run, and its table as Parquet."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

from zsad.cli.console import Printer, print_summary, printable, progress, say
from zsad.cli.options import ModelOptions
from zsad.detector import Detector
from zsad.device import available_cores, thread_count
from zsad.errors import ConfigError, ZsadError
from zsad.runs.folder import RunWriter, file_state
from zsad.runs.predict_run import (
    Outcome,
    RunOptions,
    check_regions,
    run_details,
    run_settings,
    write_products,
)
from zsad.scale.parquet import write_table
from zsad.scale.predictor import Loading
from zsad.scale.ray_engine import Cluster, need_ray, predict_with_ray
from zsad.scale.sources import ImageFiles, ParquetFiles, find_images


@dataclass(frozen=True, slots=True)
class ClusterRequest:
    """Options of the model and the cluster."""

    model: str
    tower: ModelOptions
    calibration: str
    address: str | None
    workers: int | None
    column: str | None

    def cluster(self) -> Cluster:
        """Return the cluster; by default workers are placed as if this machine's cores were shared out to them.

        Raises:
            ConfigError: fewer than one worker.
        """
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"--workers is {self.workers}, expected 1 or more")
        cores = self.tower.threads or max(1, available_cores() // (self.workers or 1))
        return Cluster(self.address, self.workers, cores)

    def loading(self, detector: Detector) -> Loading:
        """The model and how it judges, for workers that may start in another folder.

        It has as many threads as one process would have here, whatever a worker's share of the cores: the last bits of
        a score depend on their number.
        """
        return Loading(
            model=_everywhere(self.model),
            backbone=None if self.tower.backbone is None else _everywhere(self.tower.backbone),
            weights=None if self.tower.weights is None else _everywhere(str(self.tower.weights)),
            device=self.tower.device,
            calibration=_everywhere(self.calibration),
            backend=detector.backend.name,
            precision=detector.backend.precision,
            threads=thread_count(self.tower.threads),
            domain=self.tower.domain,
            object_name=detector.object_name,
            pixel_threshold=detector.view.pixel_threshold,
            min_area=detector.view.min_area,
            region=detector.view.region,
            options=detector.view.options,
        )


def _everywhere(name: str) -> str:
    """A path from the root, where a name is a path."""
    return str(Path(name).absolute()) if Path(name).exists() else name


def score_on_ray(
    detector: Detector, inputs: list[str], *, request: ClusterRequest, options: RunOptions
) -> int:
    """Scores images into the run's folder; finished ones of the same run are left out. Returns the exit code.

    Args:
        detector: the model as it is loaded here, to know it by; workers load their own.
        inputs: images, folders, patterns, addresses or Parquet.
        request: model and cluster.
        options: where and how results are written; overlays and report are not.

    Raises:
        ConfigError: Ray is not installed, or impossible numbers.
        DataError: no images, none that can be used, or the folder holds another run.
        EngineError: the cluster cannot be reached or broke down; finished rows are kept.
        StorageError: the disk is full or the folder cannot be written.
    """
    need_ray()
    check_regions(options, detector)
    if detector.comparison is not None:
        raise ConfigError("--engine ray scores each image alone; leave out --references, or --engine")
    cluster, plain = request.cluster(), replace(options, overlay=False, report=False)
    images = find_images(inputs, column=request.column)
    named = [name if "://" in name else os.path.abspath(name) for name in inputs]  # noqa: PTH100 - patterns
    settings = run_settings(detector, inputs=named, options=plain)
    details = run_details(detector, title=", ".join(inputs[:3]))
    loading = request.loading(detector)
    with RunWriter(plain.out, settings=settings, details=details, overwrite=plain.overwrite) as writer:
        outcome = _score(images, writer, loading=loading, detector=detector, cluster=cluster, options=plain)
    outcome.check(len(images))
    outcome.files = write_products(plain)
    code = print_summary(outcome, plain)
    say(f"wrote {printable(write_table(plain.out))}")
    return code


def _score(
    images: ImageFiles | ParquetFiles,
    writer: RunWriter,
    *,
    loading: Loading,
    detector: Detector,
    cluster: Cluster,
    options: RunOptions,
) -> Outcome:
    finished = frozenset(source for source in writer.finished_sources if writer.is_finished(source))
    todo = images.without(finished)
    outcome = Outcome(skipped=len(images) - len(todo))
    with progress("scoring", len(images)) as advance:
        printer = Printer(detector, Path.cwd(), advance)
        if outcome.skipped:
            printer.resumed(outcome.skipped)
        if not len(todo):
            return outcome
        start = time.perf_counter()
        results = predict_with_ray(
            todo, loading, detector.model.preprocess, cluster=cluster, images_a_pass=options.batch_size
        )
        for name, result in results:
            if isinstance(result, ZsadError):
                outcome.errors.append(result)
                writer.write_error(name, str(result))
                printer.skipped(result, alone=False)
            else:
                writer.write(result, overlay=None, state=file_state(Path(name)))
                outcome.count(result)
                printer.scored(result)
    outcome.seconds = time.perf_counter() - start
    return outcome
