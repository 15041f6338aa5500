"""Loss terms of a training run over its steps, read from the run's log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zsad.errors import DataError
from zsad.files import parse_json
from zsad.train.state import LOG_FILE, RUN_FILE
from zsad.train.validation import VALIDATION_METRIC

_RAW = "raw_"
_NO_TERMS = frozenset({"step", "epoch", "lr", "seconds"})
_MAIN_TERMS = ("classify", "focal", "dice", "total")
_POINTS = 80
IMAGE_AUROC = "image AUROC"
"""Name of the curve of what was measured on other data, after every epoch."""

Array = npt.NDArray[np.float64]


@dataclass(slots=True)
class LossCurve:
    """A loss term, or a measurement, over the steps of a run; many steps of a term are averaged into each point.

    Attributes:
        term: its name in the log.
        weight: its factor in the loss, which the curve is without; None: the curve is as logged.
        steps: (n,) the middle step of each point.
        mean: (n,) of the term.
        low: (n,) its least value.
        high: (n,) its greatest value.
    """

    term: str
    weight: float | None
    steps: Array
    mean: Array
    low: Array
    high: Array


@dataclass(slots=True)
class RunCurves:
    """All curves of a run, auxiliary terms first; `unrecorded` are terms of weight 0 that its log does not hold."""

    name: str
    steps: int
    epochs: int
    curves: dict[str, LossCurve]
    unrecorded: tuple[str, ...] = ()


def read_curves(folder: Path, *, name: str, weights: Mapping[str, str]) -> RunCurves:
    """Read the curves of a run, auxiliary terms first.

    Args:
        folder: of the run, with log.jsonl and run.json.
        name: label of the run.
        weights: for some terms the setting of the method that is their weight.

    Raises:
        DataError: no log, or one without a step.
    """
    rows, measured = _read_log(folder / LOG_FILE)
    settings = _settings(folder / RUN_FILE)
    terms = list(dict.fromkeys(term.removeprefix(_RAW) for row in rows for term in row))
    terms = [term for term in terms if term not in _NO_TERMS]
    terms.sort(key=lambda term: _MAIN_TERMS.index(term) if term in _MAIN_TERMS else -1)
    steps = np.array([row["step"] for row in rows])
    curves: dict[str, LossCurve] = {}
    unrecorded = []
    for term in terms:
        weight = settings.get(weights.get(term, ""))
        key = f"{_RAW}{term}" if weight == 0 else term
        values = np.array([row.get(key, math.nan) for row in rows]) / (weight or 1)
        known = np.isfinite(values)
        if known.any():
            curves[term] = _binned(term, weight, steps[known], values[known])
        else:
            unrecorded.append(term)
    if measured:
        after, values = (np.array([row[key] for row in measured]) for key in ("step", VALIDATION_METRIC))
        curves[IMAGE_AUROC] = LossCurve(IMAGE_AUROC, None, after, values, values, values)
    epochs = int(max(row.get("epoch", 0) for row in rows)) + 1
    return RunCurves(name, int(steps.max()), epochs, curves, tuple(unrecorded))


def _read_log(path: Path) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """The numbers of each step, and of each measurement on other data; half lines of a killed run and other records
    are passed over.
    """
    rows, measured = [], []
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            for line in stream:
                numbers = _numbers(line)
                if numbers.get("step", 0) >= 1 and "total" in numbers:
                    rows.append(numbers)
                elif "step" in numbers and VALIDATION_METRIC in numbers:
                    measured.append(numbers)
    except OSError as error:
        raise DataError(
            f"{path.parent} holds no readable {path.name} ({error.strerror}): give the folder of a training run"
        ) from error
    if not rows:
        raise DataError(f"{path} holds no finished training step: give the folder of another run")
    return rows, measured


def _numbers(line: str) -> dict[str, float]:
    try:
        record = parse_json(line)
    except ValueError:
        return {}
    if not isinstance(record, dict):
        return {}
    return {
        key: float(value)
        for key, value in record.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _settings(path: Path) -> dict[str, float]:
    """The numeric settings of the method of a run; none where the file cannot be read."""
    try:
        config: Any = parse_json(path.read_text(encoding="utf-8")).get("config", {})
        return {key: float(value) for key, value in config.items() if isinstance(value, int | float)}
    except (OSError, ValueError, AttributeError):
        return {}


def _binned(term: str, weight: float | None, steps: Array, values: Array) -> LossCurve:
    """At most `_POINTS` points, each over equally many steps."""
    pieces: Sequence[Array] = np.array_split(np.arange(len(steps)), min(_POINTS, len(steps)))
    return LossCurve(
        term,
        weight,
        *(
            np.array([float(take(source[piece])) for piece in pieces])
            for source, take in ((steps, np.mean), (values, np.mean), (values, np.min), (values, np.max))
        ),
    )
