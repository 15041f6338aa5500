"""Execution of a plan: its steps in this process, or through another executor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from zsad.errors import LockedError, StorageError, ZsadError
from zsad.studies.benchmark.cell_results import CellResult
from zsad.studies.benchmark.cell_runner import CellRunner
from zsad.studies.benchmark.cells import Cell, Step

Steps = Mapping[Step, Sequence[Step]]  # in an order that will do, each with the steps that it needs
_LOCKED_SECONDS = 60  # for which a step waits for workers of a killed benchmark to end


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """The outcome of a step: `result` of a cell, or `error`; `remarks` are lines about the data."""

    step: Step
    result: CellResult | None = None
    error: ZsadError | None = None
    remarks: tuple[str, ...] = ()


Executor = Callable[[CellRunner, Steps], Iterator[StepOutcome]]


def run_cells(
    runner: CellRunner,
    execute: Executor,
    *,
    remark: Callable[[str], None],
    keep_failures: bool,
) -> Iterator[tuple[Cell, CellResult]]:
    """Yield each cell with its result: those that are there already, then the others as they are finished.

    Args:
        runner: of the plan.
        execute: does the steps.
        remark: called with each line about the data, once.
        keep_failures: a cell that cannot be measured has a result that says so; else its error is raised.

    Raises:
        StorageError: the disk is full, a folder cannot be written, or another process writes into it.
    """
    cells = {cell.key: cell for cell in runner.plan.cells}
    finished = {key: result for key, cell in cells.items() if (result := runner.kept(cell)) is not None}
    for key, result in finished.items():
        yield cells[key], result
    known_remarks: set[str] = set()
    for outcome in execute(runner, dict(runner.steps([cells[key] for key in cells if key not in finished]))):
        for line in outcome.remarks:
            if line not in known_remarks:
                known_remarks.add(line)
                remark(line)
        error = outcome.error
        if error is not None and (isinstance(error, StorageError) or not keep_failures):
            raise error
        if outcome.step.kind == "cell":
            cell = cells[outcome.step.key]
            yield cell, outcome.result or runner.failed(cell, str(error))


def in_process(runner: CellRunner, steps: Steps) -> Iterator[StepOutcome]:
    """Do steps one after the other in this process."""
    failed: dict[Step, ZsadError] = {}
    for step, needed in steps.items():
        outcome = blocked(step, needed, failed) or attempt(runner, step)
        if outcome.error is not None:
            failed[step] = outcome.error
        yield outcome


def blocked(step: Step, needed: Sequence[Step], failed: Mapping[Step, ZsadError]) -> StepOutcome | None:
    """Return the failure of a step that needs a failed one; None where it can be done."""
    return next((StepOutcome(step, error=failed[other]) for other in needed if other in failed), None)


def attempt(runner: CellRunner, step: Step) -> StepOutcome:
    """Do a step; an error is part of the outcome."""
    before = len(runner.remarks)
    try:
        result, error = _when_free(lambda: runner.do(step)), None
    except ZsadError as caught:
        result, error = None, caught
    return StepOutcome(step, result, error, tuple(runner.remarks[before:]))


def _when_free(action: Callable[[], CellResult | None]) -> CellResult | None:
    """Do something as soon as no other process is at it, which may be a worker of a killed benchmark."""
    deadline = time.monotonic() + _LOCKED_SECONDS
    while True:
        try:
            return action()
        except LockedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1.0)
