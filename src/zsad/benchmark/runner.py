"""Works through the cells of a plan, alone or beside other processes that share the work folder."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from zsad.benchmark.claims import Claims
from zsad.benchmark.cost import cost
from zsad.benchmark.estimate import Estimate
from zsad.benchmark.listener import Listener, Told
from zsad.benchmark.measure import measure
from zsad.benchmark.plan import Cell, Entrant, Plan, Run, Target
from zsad.benchmark.results import CellResult, Problem, cell_path, read_cell, write_cell
from zsad.data.manifest import DataSet
from zsad.data.overlap import overlap_of
from zsad.device import describe_environment
from zsad.errors import DataError, StorageError, ZsadError
from zsad.files import write_json
from zsad.methods.base import Method
from zsad.methods.registry import find
from zsad.train.checkpoint import BackboneReference, Card, load_checkpoint, read_card
from zsad.train.config import RUN_FIELDS
from zsad.train.loop import train
from zsad.train.samples import chosen
from zsad.types import Sample

State = Literal["done", "failed", "busy"]
_POLL_SECONDS = 1.0
_COST_IMAGES = 10


class Busy(Exception):
    """Another process is at it; what needs it comes later."""


@contextmanager
def claimed(claims: Claims, name: str) -> Iterator[None]:
    """Work that nobody else does meanwhile.

    Raises:
        Busy: somebody does.
    """
    if not claims.take(name):
        raise Busy
    try:
        yield
    finally:
        claims.release(name)


@dataclass(slots=True)
class Runner:
    """One process' work on a plan.

    Attributes:
        plan: the cells.
        claims: what this process has taken on.
        listener: told of all that happens.
        started: time of the benchmark's start; cells that failed before are tried again.
        finished: called with each finished cell and how many of all are.
        pause: waits until others may have finished something.
    """

    plan: Plan
    claims: Claims
    listener: Listener
    started: float
    finished: Callable[[Cell, CellResult, int, float | None], None]
    pause: Callable[[float], None] = time.sleep
    _tried: set[str] = field(default_factory=set)
    _filled: set[str] = field(default_factory=set)
    _said: set[str] = field(default_factory=set)
    _done: set[str] = field(default_factory=set)
    _broken: dict[str, ZsadError] = field(default_factory=dict)  # trainings that failed here
    _methods: dict[str, Method] = field(default_factory=dict)
    _readers: dict[int, list[Method]] = field(default_factory=dict)
    _estimate: Estimate = field(default_factory=Estimate)

    @property
    def work(self) -> Path:
        """The folder of all."""
        return self.plan.request.work

    def run(self) -> None:
        """Until every cell is done or has failed, here or elsewhere.

        Raises:
            StorageError: the disk is full, or a folder cannot be written.
        """
        waiting = list(self.plan.cells)
        while waiting:
            rest = [cell for cell in waiting if self._attempt(cell) == "busy"]
            if len(rest) == len(waiting):
                self.pause(_POLL_SECONDS)
            waiting = rest

    def state(self, cell: Cell) -> State | None:
        """What there is of a cell; a failure of a former start is nothing."""
        if cell.key in self._done:
            return "done"
        path = cell_path(self.work, cell.key)
        try:
            found = read_cell(path)
            fresh = path.stat().st_mtime >= self.started
        except (DataError, OSError):
            return None
        if found.state == "done":
            self._done.add(cell.key)
            return "done"
        return "failed" if fresh or cell.key in self._tried else None

    def _attempt(self, cell: Cell) -> State:
        there = self.state(cell)
        if there is not None:
            return there
        try:
            with claimed(self.claims, f"cell-{cell.key}"):
                there = self.state(cell)
                if there is not None:
                    return there
                began = time.perf_counter()
                result = self._result(cell)
                self._tried.add(cell.key)
                write_cell(self.work, result)
        except Busy:
            return "busy"
        count = 0 if cell.target.data is None else len(cell.target.data.samples)
        self._estimate.scored(cell.entrant.label, count, time.perf_counter() - began)
        self._tell(cell, result)
        return result.state

    def _tell(self, cell: Cell, result: CellResult) -> None:
        states = [self.state(other) for other in self.plan.cells]
        left = [cell for cell, state in zip(self.plan.cells, states, strict=True) if state is None]
        runs = {
            cell.run.key: cell.run
            for cell in left
            if cell.run is not None and self._trained(cell.run) is None
        }
        seconds = self._estimate.left(
            cells=[
                (cell.entrant.label, 0 if cell.target.data is None else len(cell.target.data.samples))
                for cell in left
            ],
            runs=[run.entrant.label for run in runs.values()],
            workers=max(1, self.claims.active()),
        )
        self.finished(cell, result, len(states) - len(left), seconds)

    def _result(self, cell: Cell) -> CellResult:
        """The result of a cell, also where it fails; only a full disk ends everything."""
        try:
            return self._measured(cell)
        except StorageError as error:
            if "another zsad is writing" in str(error):
                raise Busy from error
            raise
        except ZsadError as error:
            return self._base(cell).model_copy(update={"state": "failed", "reason": str(error)})

    def _measured(self, cell: Cell) -> CellResult:
        target = cell.target
        if target.data is None:
            raise DataError(target.reason)
        for part in () if cell.run is None else cell.run.auxiliary:
            if part.data is None:
                raise DataError(f"not trained: {part.reason}")
        self._fill(target)
        method, card, told = self._weights(cell)
        overlap = overlap_of(card, target.data)
        if overlap and not self.plan.request.allow_seen:
            raise DataError(
                f"{cell.entrant.label} {overlap.sentence()}: not unseen; --allow-seen measures it, marked"
            )
        found = measure(
            cell.entrant.bench,
            method,
            target.data,
            work=self.work,
            key=cell.key,
            card=card,
            report=lambda done, total: self.listener.moved(f"measuring on {target.name}", done, total),
        )
        for fault in found.faults:
            self._remark(f"{target.name}: {fault.path}: {fault.reason}")
        notes = [*found.notes, *(f"training: {line}" for line in told.get("left_out", ()))]
        return self._base(cell).model_copy(
            update={
                "seen": bool(overlap) or bool(cell.overlap),
                "rows": found.rows,
                "notes": tuple(notes),
                "problems": tuple(dict.fromkeys(fault.problem for fault in found.faults)),
                "seconds_training": told.get("seconds"),
                "files": found.files,
                **self._cost(cell.entrant, target.data),
            }
        )

    def _base(self, cell: Cell) -> CellResult:
        entrant, bench = cell.entrant, cell.entrant.bench
        training = None
        if cell.run is not None:
            training = cell.run.training.model_dump(mode="json", exclude=set(RUN_FIELDS))
        elif entrant.card is not None and entrant.card.training is not None:
            training = entrant.card.training.settings
        failed = (
            [Problem(path=cell.target.path, reason=cell.target.reason)] if cell.target.data is None else []
        )
        return CellResult(
            key=cell.key,
            method=entrant.method,
            label=entrant.label,
            backbone=bench.backbone.name,
            backbone_sha256=bench.backbone.sha256,
            settings=entrant.config.model_dump(mode="json"),
            training=training,
            protocol=cell.protocol,
            trained_on=cell.trained_on,
            target=cell.target.name,
            seed=cell.seed,
            seen=bool(cell.overlap),
            provenance=find(entrant.method).provenance,
            problems=tuple(failed),
            environment={**describe_environment(bench.device), "workers": self.plan.request.jobs},
        )

    def _weights(self, cell: Cell) -> tuple[Method, Card, dict[str, Any]]:
        """The method of a cell with its weights, its card, and what is known of its training."""
        entrant, told = cell.entrant, {}
        if cell.run is None:
            path = entrant.checkpoint
        else:
            told = self._train(cell.run)
            path = self._run_folder(cell.run) / "model.safetensors"
        if path is None:
            method = self._built(entrant)
            return method, self._card_of_untrained(entrant, method), told
        name = str(path)
        if name not in self._methods:
            self._methods.clear()  # one model at a time: cells of one come one after the other
            method = self._built(entrant)
            load_checkpoint(path, method, backbone_sha256=entrant.bench.backbone.sha256)
            self._methods[name] = method
        return self._methods[name], read_card(path), told

    def _built(self, entrant: Entrant) -> Method:
        return entrant.bench.build(entrant.method, entrant.config).eval()

    def _card_of_untrained(self, entrant: Entrant, method: Method) -> Card:
        backbone = entrant.bench.backbone
        return Card(
            method=entrant.method,
            config=entrant.config.model_dump(mode="json"),
            backbone=BackboneReference(name=backbone.name, sha256=backbone.sha256),
            preprocess=entrant.bench.parts(method).preprocess.to_dict(),
            map_spec=method.map_spec,
            created="",
        )

    def _run_folder(self, run: Run) -> Path:
        return self.work / "runs" / run.key

    def _trained(self, run: Run) -> dict[str, Any] | None:
        """What was kept of a finished training."""
        try:
            found: dict[str, Any] = json.loads(
                (self._run_folder(run) / "finished.json").read_text(encoding="utf-8")
            )
        except (OSError, ValueError):
            return None
        return found

    def _train(self, run: Run) -> dict[str, Any]:
        kept = self._trained(run)
        if kept is not None:
            return kept
        if run.key in self._broken:
            raise self._broken[run.key]
        for part in run.auxiliary:
            self._fill(part)
        with claimed(self.claims, f"run-{run.key}"):
            kept = self._trained(run)
            if kept is not None:
                return kept
            began = time.perf_counter()
            try:
                told = self._trained_now(run)
            except StorageError:
                raise
            except ZsadError as error:
                self._broken[run.key] = error
                raise
            seconds = time.perf_counter() - began
            kept = {"seconds": seconds, "broken": told.broken, "left_out": told.left_out}
            write_json(self._run_folder(run) / "finished.json", kept)
        self._estimate.trained(run.entrant.label, seconds)
        for line in told.left_out:
            self._remark(line)
        return kept

    def _trained_now(self, run: Run) -> Told:
        """Trains, from the last saved state where there is one; what was left out."""
        method, told = self._built(run.entrant), Told(self.listener)
        train(
            method,
            [part.data for part in run.auxiliary if part.data is not None],
            config=run.training,
            out=self._run_folder(run),
            card_parts=run.entrant.bench.parts(method),
            progress=told,
        )
        return told

    def _fill(self, target: Target) -> None:
        """Computes the features that all methods need of a set's images, in one pass over them."""
        if target.path in self._filled or target.data is None:
            return
        needed, whole = self.plan.needed()[target.path]
        samples = needed.data.samples if whole and needed.data is not None else self._learnt_from(target)
        with claimed(self.claims, f"features-{target.fingerprint}"):
            for bench in {id(entrant.bench): entrant.bench for entrant in self.plan.entrants}.values():
                if id(bench) not in self._readers:
                    own = [entrant for entrant in self.plan.entrants if entrant.bench is bench]
                    self._readers[id(bench)] = [self._built(entrant) for entrant in own]
                bench.fill(
                    self._readers[id(bench)],
                    samples,
                    report=lambda done, total: self.listener.moved(f"reading {target.name}", done, total),
                )
        self._filled.add(target.path)

    def _learnt_from(self, target: Target) -> list[Sample]:
        """The images of a set that some training asks for, in their order."""
        wanted: set[Sample] = set()
        for run in self.plan.runs:
            if any(part.path == target.path for part in run.auxiliary):
                samples = [sample for part in run.auxiliary if part.data for sample in part.data.samples]
                wanted.update(chosen(samples, run.training))
        own: Sequence[Sample] = () if target.data is None else target.data.samples
        return [sample for sample in own if sample in wanted]

    def _cost(self, entrant: Entrant, data: DataSet) -> dict[str, float | None]:
        """Time and memory of a method, measured once for all its weights, on some of the first target's images."""
        request, bench = self.plan.request, entrant.bench
        own = bench.backbone.name == request.backbone
        asked = {
            "method": entrant.method,
            "config": entrant.config.model_dump(mode="json"),
            "backbone": bench.backbone.name if not own else request.backbone,
            "weights": str(request.weights) if own and request.weights is not None else None,
            "device": str(bench.device),
            "threads": request.threads,
            "images": [[str(sample.image), sample.word] for sample in data.samples[:_COST_IMAGES]],
        }
        decides = {name: value for name, value in asked.items() if name != "images"} | {
            "sha": bench.backbone.sha256
        }
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
        return cost(self.work / "cost" / f"{entrant.method}-{digest}.json", asked)

    def _remark(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self.listener.remark(line)
