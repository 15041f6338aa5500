"""Results of finished cells as JSON: one method with one set of weights on one target.

| file below the work folder | content |
|---|---|
| cells/KEY.json | a `CellResult` |
| cells/KEY.scores.npz | in order of images: image, class_name (str), label (int8, -1: unknown), score (float64) |
| cells/KEY.curves.npz | pixel level, at most 256 points: CLASS/roc_x, roc_y, pr_x, pr_y, pro_x, pro_y |
| cells/KEY.pixels.npz | pixels of each image by groups of scores: see `zsad.studies.benchmark.pixel_counts` |
| cells/KEY.grids/ | a run's folder as `zsad.runs.store` reads it: rows and score grids |

Names of images are relative to their data set's folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from zsad.errors import DataError
from zsad.files import write_json, write_text

VERSION = 1
CELLS = "cells"
LIST_FILE = "cells.json"


class FileProblem(BaseModel, frozen=True, extra="forbid"):
    """A file that could not be used as it is."""

    path: str = Field(description="of the file; empty where it is about the whole target")
    reason: str = Field(description="one line")

    @property
    def line(self) -> str:
        """Path and reason, the path once."""
        return self.reason if not self.path or self.path in self.reason else f"{self.path}: {self.reason}"


class ClassRow(BaseModel, frozen=True, extra="forbid"):
    """The metrics of one class."""

    name: str
    normal: int = Field(ge=0, description="normal images measured")
    anomalous: int = Field(ge=0, description="anomalous images measured")
    masks: int = Field(ge=0, description="anomalous images with a mask that could be read")
    metrics: dict[str, float | None] = Field(
        description="by the columns of zsad.metrics.table.COLUMNS, in [0, 1]; None: undefined"
    )
    bounds: dict[str, float] = Field(
        default_factory=dict, description="how far a value may be from the true one, where it is not exact"
    )


class CellFiles(BaseModel, frozen=True, extra="forbid"):
    """Files beside the result, relative to the work folder; None where there is none."""

    scores: str | None = None
    curves: str | None = None
    pixels: str | None = None
    grids: str | None = None


class CellResult(BaseModel, frozen=True, extra="forbid"):
    """One method (weights) on one target data set with one seed."""

    version: int = VERSION
    key: str = Field(description="hash of all that decides the result; the name of the file")
    method: str = Field(description="name in the registry")
    label: str = Field(description="how it is shown: the method, or what the user named the weights")
    backbone: str
    backbone_sha256: str
    settings: dict[str, Any] = Field(default_factory=dict, description="of the method, all of them")
    training: dict[str, Any] | None = Field(
        default=None, description="settings of the training; None: not trained here"
    )
    protocol: str = Field(default="", description="name of the pairing, empty where given by hand")
    trained_on: tuple[str, ...] = Field(default=(), description="auxiliary sets; empty: without training")
    target: str
    seed: int | None = Field(default=None, description="of the training; None where it decides nothing")
    seen: bool = Field(
        default=False, description="the target overlaps with what was trained on; marked in every table"
    )
    related: str = Field(
        default="", description="what is to be known of a set whose other classes were trained on"
    )
    provenance: str = Field(
        default="", description='"" or e.g. "re-designed": how far the numbers speak for the paper'
    )
    pro: str = Field(default="aupro", description="which PRO stands in the column pixel_pro")
    rows: tuple[ClassRow, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[FileProblem, ...] = ()
    state: Literal["done", "failed"] = "done"
    reason: str = Field(default="", description="why it failed, one line")
    seconds_per_image: float | None = Field(
        default=None, description="of the whole model, image by image; None: not measured"
    )
    seconds_training: float | None = None
    peak_memory_mb: float | None = Field(
        default=None, description="of the process, or of the GPU where it runs there"
    )
    environment: dict[str, Any] = Field(default_factory=dict)
    files: CellFiles = CellFiles()

    def mean(self, column: str) -> float | None:
        """Return the unweighted mean over the classes for which a metric is defined; None where for none."""
        values = [value for row in self.rows if (value := row.metrics.get(column)) is not None]
        return sum(values) / len(values) if values else None


def common_pro(cells: Iterable[CellResult]) -> str:
    """Return the PRO of some results.

    Raises:
        DataError: they hold different ones.
    """
    pros = {cell.pro for cell in cells if cell.mean("pixel_pro") is not None}
    if len(pros) > 1:
        raise DataError(
            f"results with different PROs ({', '.join(sorted(pros))}) lie in one folder: take another --out, or run "
            "all of the benchmark again"
        )
    return pros.pop() if pros else "aupro"


def cell_path(work: Path, key: str) -> Path:
    """Return the file of a key's result."""
    return work / CELLS / f"{key}.json"


def write_cell(work: Path, cell: CellResult) -> Path:
    """Write a result, whole or not at all.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    path = cell_path(work, cell.key)
    write_text(path, json.dumps(cell.model_dump(mode="json"), indent=1) + "\n")
    return path


def read_cell(path: Path) -> CellResult:
    """Read a result.

    Raises:
        DataError: it cannot be read, or is of another version.
    """
    try:
        return CellResult.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = f"{error.error_count()} wrong fields" if isinstance(error, ValidationError) else str(error)
        raise DataError(
            f"{path} is no result of this version of the benchmark ({reason}); remove it to compute it anew"
        ) from error


def read_cells(work: Path) -> list[CellResult]:
    """Read the finished and failed cells that a work folder's list names, by target, label, sets and seed.

    What was computed of data or settings that have changed since is left out; without a list nothing is.

    Raises:
        DataError: a result that cannot be read.
    """
    paths = sorted((work / CELLS).glob("*.json"))
    listed = set(read_list(work).values())
    results = [read_cell(path) for path in paths if not listed or path.stem in listed]
    return sorted(
        results, key=lambda c: (c.target, c.label, c.trained_on, -1 if c.seed is None else c.seed, c.key)
    )


def read_list(work: Path) -> dict[str, str]:
    """Return the keys of a work folder's cells by their titles: method, auxiliary sets, target and seed."""
    try:
        document = json.loads((work / LIST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    cells = document.get("cells") if isinstance(document, dict) else None
    return cells if isinstance(cells, dict) else {}


def write_list(work: Path, keys: dict[str, str]) -> None:
    """Put cells into the list, in the place of former ones of the same name.

    Raises:
        StorageError: the folder cannot be written.
    """
    write_json(work / LIST_FILE, {"cells": {**read_list(work), **keys}})
