"""Works through the cells of a plan, alone or beside other processes that share the work folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from zsad.errors import DataError
from zsad.studies.benchmark.cell_results import CellResult, cell_path, read_cell, write_cell
from zsad.studies.benchmark.cell_runner import CellRunner
from zsad.studies.benchmark.claims import Busy, Claims, claimed
from zsad.studies.benchmark.plan import Cell, Plan

State = Literal["done", "failed", "busy"]
_POLL_SECONDS = 1.0


@dataclass(slots=True)
class Runner:
    """One process' work on a plan.

    Attributes:
        plan: the cells.
        claims: what this process has taken on.
        workshop: makes the results.
        started: time of the benchmark's start; cells that failed before are tried again.
        finished: called with each finished cell and how many of all are.
        pause: waits until others may have finished something.
    """

    plan: Plan
    claims: Claims
    workshop: CellRunner
    started: float
    finished: Callable[[Cell, CellResult, int, float | None], None]
    pause: Callable[[float], None] = time.sleep
    _tried: set[str] = field(default_factory=set)
    _done: set[str] = field(default_factory=set)

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
                began, self.workshop.aside = time.perf_counter(), 0.0
                result = self.workshop.result(cell)
                self._tried.add(cell.key)
                write_cell(self.work, result)
        except Busy:
            return "busy"
        count = 0 if cell.target.data is None else len(cell.target.data.samples)
        self.workshop.estimate.scored(
            cell.candidate.label, count, time.perf_counter() - began - self.workshop.aside
        )
        self._tell(cell, result)
        return result.state

    def _tell(self, cell: Cell, result: CellResult) -> None:
        states = [self.state(other) for other in self.plan.cells]
        left = [cell for cell, state in zip(self.plan.cells, states, strict=True) if state is None]
        runs = {
            cell.run.key: cell.run
            for cell in left
            if cell.run is not None and self.workshop.trained(cell.run) is None
        }
        seconds = self.workshop.estimate.left(
            cells=[
                (cell.candidate.label, 0 if cell.target.data is None else len(cell.target.data.samples))
                for cell in left
            ],
            runs=[run.candidate.label for run in runs.values()],
            images=sum(
                len(self.workshop.samples(target))
                for target, _ in self.plan.needed().values()
                if target.path not in self.workshop.filled
                and any(cell.target is target or (cell.run and target in cell.run.auxiliary) for cell in left)
            ),
            workers=max(1, self.claims.active()),
        )
        self.finished(cell, result, len(states) - len(left), seconds)
