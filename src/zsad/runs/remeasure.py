"""Metrics taken again from what a run kept, its scores and score grids: without the model, in seconds.

What an evaluation counted of each class is kept beside the grids, so that other metrics of it, whatever their limits,
take no map at all. Where it is not there, maps are made again and counted. Their masks, at the size of the maps, are
kept then, some hundred bytes each, so that the next time reads no picture. Classes are cut into parts that processes
measure (threads would wait for each other in Python), this one among them; what is counted are whole numbers, so that
the parts together give the numbers of the whole to the last digit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import zsad
from zsad.datasets.manifest import DataSet
from zsad.errors import DataError
from zsad.metrics.classes import ClassScores, Pro
from zsad.metrics.evaluation import (
    Metrics,
    Progress,
    check_settings,
    chosen_samples,
    empty_groups,
    evaluate_scores,
)
from zsad.metrics.streaming import PixelMetrics
from zsad.metrics.table import ResultTable
from zsad.nn.maps import MapSpec
from zsad.runs.folder import file_state
from zsad.runs.metric_cache import (
    MASKS_FILE,
    STATES_FILE,
    MaskCache,
    StateCache,
    digest,
    mask_key,
)
from zsad.runs.store import GRIDS_FILE, read_grids, read_rows, read_run_file, restore
from zsad.types import Sample

_PART = 64  # images a process measures before it takes the next
_AHEAD = 6  # parts for each process that may be in work at once: what they counted takes some megabytes
_Pair = tuple[Sample, dict[str, Any]]
_Kind = tuple[str, str]  # names of data set and class


def measure_again(
    folder: str | Path,
    data: DataSet,
    *,
    classes: Sequence[str] | None = None,
    progress: Progress | None = None,
    metrics: Metrics = "streaming",
    pro: Pro = "aupro",
    limit: float = 0.3,
    also: Sequence[str] = (),
    micro: bool = False,
    processes: int = 1,
) -> ResultTable:
    """The table that `evaluate` gives, from the folder that an evaluation, a prediction or a benchmark's cell left.

    Args:
        folder: with run.json, predictions.jsonl and grids.npy; masks and what was counted are kept there, too.
        data: the data set, found where it lay when it was scored.
        classes: as in `evaluate`, like all that follow but the last.
        processes: that measure at once, this one included. More than one need, as always with `multiprocessing`, a
            script that guards its main part by `if __name__ == "__main__"`; exact metrics, which keep every pixel, take
            one.

    Raises:
        DataError: no run there; nothing of the data set in it; an image that has changed since.
        ConfigError: an unknown setting.
        MetricError: an impossible limit, or maps with NaN.
        StorageError: nothing can be kept.
    """
    also = check_settings(metrics=metrics, pro=pro, limit=limit, also=also)
    folder = Path(folder)
    samples = chosen_samples(data, classes)
    run = ScoredRun.of(folder)
    scored = run.by_class(samples, data)
    if not scored:
        raise DataError(
            f"{folder} holds no scores of {data.root}: give the data as they were given when scored"
        )
    groups = empty_groups(samples, fallback=data.name, metrics=metrics, limit=limit)
    masks = MaskCache.of(folder / MASKS_FILE)
    states = StateCache(folder / STATES_FILE)
    keys: dict[_Kind, str] = {}
    tasks: list[_Task] = []
    done, total = 0, sum(map(len, scored.values()))
    for kind, pairs in scored.items():
        group = groups[kind]
        key = run.key(pairs) if isinstance(group.pixels, PixelMetrics) else ""
        if key and _filled(group, pairs, run, states, key):
            done += len(pairs)
            continue
        keys[kind] = key
        tasks += [
            _Task(pairs[start : start + _PART], _emptied(group, limit))
            for start in range(0, len(pairs), _PART)
        ]
    if progress is not None and done:
        progress(done, total)
    alone = processes < 2 or metrics == "exact" or len(tasks) < 2
    results = _here(tasks, run, masks) if alone else _shared(tasks, run, masks, processes)
    for task, scores in zip(tasks, results, strict=True):
        groups[scores.dataset, scores.name].merge(scores)
        done += len(task.pairs)
        if progress is not None:
            progress(done, total)
    masks.write(folder / MASKS_FILE)
    for kind, key in keys.items():
        states.put(groups[kind], key)
    states.write()
    notes = list(data.notes)
    if total < len(samples):
        notes.append(f"{len(samples) - total} of {len(samples)} images were not scored and are left out")
    table = evaluate_scores(groups.values(), pro=pro, also=also, micro=micro, notes=notes)
    table.unreadable = len(samples) - total + sum(len(group.unread_masks) for group in groups.values())
    return table


def keep_states(run: ScoredRun, data: DataSet, measured: Iterable[ClassScores]) -> None:
    """Keeps what was counted of a run's classes, so that measuring it again takes no map.

    Args:
        run: finished.
        data: what was measured.
        measured: the classes, with all of their scored images.

    Raises:
        DataError: an image has changed since.
        StorageError: the run's folder cannot be written.
    """
    states, scored = StateCache(run.folder / STATES_FILE), run.by_class(data.samples, data)
    for scores in measured:
        if isinstance(scores.pixels, PixelMetrics):
            states.put(scores, run.key(scored.get((scores.dataset, scores.name), [])))
    states.write()


@dataclass(frozen=True, slots=True)
class ScoredRun:
    """Scores and grids in a run's folder; rows by the path of their image, as it was given and as it is on the disk."""

    folder: Path
    spec: MapSpec
    grids: NDArray[np.float16]
    rows: dict[str, dict[str, Any]]
    places: dict[Path, str]

    @classmethod
    def of(cls, folder: Path) -> ScoredRun:
        run = read_run_file(folder)
        if "map_spec" not in run:
            raise DataError(f"{folder} was written by no prediction, evaluation or benchmark; choose another")
        rows = {row["source"]: row for row in read_rows(folder) if "error" not in row}
        grids = read_grids(folder / GRIDS_FILE)
        return cls(folder, MapSpec.model_validate(run["map_spec"]), grids, rows, {})

    def row(self, sample: Sample) -> dict[str, Any] | None:
        """The row of a sample, None where it was not scored."""
        row = self.rows.get(str(sample.image))
        if row is None:
            if not self.places:
                self.places.update({Path(source).resolve(): source for source in self.rows})
            row = self.rows.get(self.places.get(sample.image.resolve(), ""))
        if row is not None and list(row["file"]) != file_state(sample.image):
            raise DataError(f"{sample.image} has changed since it was scored: score it again")
        return row

    def by_class(self, samples: Iterable[Sample], data: DataSet) -> dict[_Kind, list[_Pair]]:
        """The scored ones of a data set's samples with their rows, by the names of data set and class."""
        pairs: dict[_Kind, list[_Pair]] = {}
        for sample in samples:
            if (row := self.row(sample)) is not None:
                pairs.setdefault((sample.dataset or data.name, sample.class_name), []).append((sample, row))
        return pairs

    def key(self, pairs: Iterable[_Pair]) -> str:
        """A key of all that decides what is counted of the images of a class."""

        def lines() -> Iterator[object]:
            yield zsad.__version__, self.spec.model_dump_json(), file_state(self.folder / GRIDS_FILE)
            for sample, row in pairs:
                grid = file_state(self.folder / row["grid"]) if isinstance(row["grid"], str) else row["grid"]
                size = (row["size"][0], row["size"][1])
                mask = None if sample.mask is None else mask_key(sample.mask, self.spec.size, size)
                yield sample.image, sample.label, row["file"], grid, row.get("map_spec"), mask

        return digest(lines())

    def add(self, scores: ClassScores, sample: Sample, row: dict[str, Any], masks: MaskCache) -> None:
        """Adds a scored image to its class."""
        prediction = restore(row, self.grids, self.spec, folder=self.folder)
        prediction.sample = sample

        def read_mask(path: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
            return masks.read(path, size, image=sample.image, full=prediction.size)

        scores.add(sample, prediction, read_mask=read_mask)


def _filled(group: ClassScores, pairs: list[_Pair], run: ScoredRun, states: StateCache, key: str) -> bool:
    """Adds all images of a class whose pixels were counted before; whether they were."""
    known = ClassScores(group.dataset, group.name)
    if group.pixels is None or not states.fill(known, key, limit=group.pixels.limit):
        return False
    pixels, known.pixels = known.pixels, None
    for sample, row in pairs:
        run.add(known, sample, row, MaskCache())  # without pixels: its score alone
    known.pixels = pixels
    group.merge(known)
    return True


@dataclass(frozen=True, slots=True)
class _Task:
    """Images of one class, and the empty scores that they are added to."""

    pairs: list[_Pair]
    empty: ClassScores


def _emptied(whole: ClassScores, limit: float) -> ClassScores:
    """Empty scores of the same class and kind."""
    scores = ClassScores(whole.dataset, whole.name)
    if whole.pixels is not None:
        scores.pixels = type(whole.pixels)(limit=limit)
    return scores


def _here(tasks: Iterable[_Task], run: ScoredRun, masks: MaskCache) -> Iterator[ClassScores]:
    """Scores of all tasks, one after the other."""
    for task in tasks:
        for sample, row in task.pairs:
            run.add(task.empty, sample, row, masks)
        yield task.empty


def _shared(tasks: list[_Task], run: ScoredRun, masks: MaskCache, processes: int) -> Iterator[ClassScores]:
    """Scores of all tasks, in order, measured here and by other processes; masks that these had to read are kept."""
    # Spawned, not forked: a forked process must not touch the threads that libraries may have started here.
    pool = ProcessPoolExecutor(
        min(processes, len(tasks)) - 1,
        mp_context=get_context("spawn"),
        initializer=_open,
        initargs=(run.folder,),
    )
    ahead: deque[_InWork] = deque()
    rest = iter(tasks)
    try:
        while True:
            for task in islice(rest, _AHEAD * processes - len(ahead)):
                ahead.append(_InWork(task, pool.submit(_measured, task)))
            if not ahead:
                return
            if not ahead[0].ready() and (
                waiting := next((one for one in reversed(ahead) if one.take()), None)
            ):
                # Others are at the first tasks, or are only just starting: the last one is done here.
                [waiting.scores] = _here([waiting.task], run, masks)
                continue
            yield ahead.popleft().result(masks)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass(slots=True)
class _InWork:
    """A task that another process measures, or did; or, once it is taken back, this one."""

    task: _Task
    future: Future[tuple[ClassScores, dict[str, bytes]]]
    scores: ClassScores | None = None

    def ready(self) -> bool:
        return self.scores is not None or self.future.done()

    def take(self) -> bool:
        """Takes the task back; whether it could be."""
        return self.scores is None and self.future.cancel()

    def result(self, masks: MaskCache) -> ClassScores:
        """Return the scores, waited for; masks that were read for them go into `masks`."""
        if self.scores is None:
            self.scores, read = self.future.result()
            masks.packed.update(read)
            masks.new |= bool(read)
        return self.scores


_opened: tuple[ScoredRun, MaskCache] | None = None  # of a measuring process


def _open(folder: Path) -> None:
    global _opened
    _opened = ScoredRun.of(folder), MaskCache.of(folder / MASKS_FILE)


def _measured(task: _Task) -> tuple[ClassScores, dict[str, bytes]]:
    """Scores of a task, and the masks that were read for it."""
    assert _opened is not None  # by the pool
    run, masks = _opened
    known = set(masks.packed)
    [scores] = _here([task], run, masks)
    return scores, {key: mask for key, mask in masks.packed.items() if key not in known}
