"""The papers' result tables as data, with their sources, their own slips, and what is to be known before comparing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from pydantic import BaseModel, Field, model_validator

from zsad.errors import ConfigError
from zsad.files import parse_toml
from zsad.metrics.classes import Pro
from zsad.metrics.table import COLUMNS
from zsad.studies.benchmark.pairing import find_protocol

_SUFFIX = ".toml"


class Recipe(BaseModel, frozen=True, extra="forbid"):
    """Settings of a method and its training where they differ from the method's defaults."""

    settings: dict[str, Any] = Field(default_factory=dict, description="of the method")
    training: dict[str, Any] = Field(default_factory=dict, description="fields of TrainConfig")


class Slip(BaseModel, frozen=True, extra="forbid"):
    """A printed mean that does not follow from the printed rows."""

    column: str
    metric: str
    printed: float = Field(description="in percent")
    of_the_rows: float = Field(description="the mean of the printed rows, in percent, to two digits")


class PaperTable(BaseModel, frozen=True, extra="forbid"):
    """A table of results, or a block of one."""

    number: str = Field(description="As the paper numbers it, or what it is called here.")
    title: str
    of: str | None = Field(
        default=None, description="The set whose classes are the rows; None: rows are sets."
    )
    metrics: tuple[str, ...]
    columns: tuple[str, ...] = Field(description="Methods as the paper names them.")
    mean: tuple[tuple[float, ...], ...] | None = Field(
        default=None, description="As printed; None where not."
    )
    rows: dict[str, tuple[tuple[float, ...], ...]] = Field(
        description="In percent; NaN where none is printed."
    )
    slips: tuple[Slip, ...] = ()

    @model_validator(mode="after")
    def _whole(self) -> PaperTable:
        if unknown := set(self.metrics) - set(COLUMNS):
            raise ValueError(f"unknown metrics {unknown}")
        for name, row in [*self.rows.items(), *([] if self.mean is None else [("mean", self.mean)])]:
            if len(row) != len(self.columns) or {len(cells) for cells in row} != {len(self.metrics)}:
                raise ValueError(f"row {name!r} must hold {self.metrics} for each of {self.columns}")
        return self

    def values(self, row: str, column: str) -> dict[str, float]:
        """Return the values of a set or class by metric, in percent; what is not printed is left out."""
        cells = self.rows[row][self.columns.index(column)]
        return {
            metric: cell for metric, cell in zip(self.metrics, cells, strict=True) if not math.isnan(cell)
        }

    def printed_mean(self, column: str, metric: str) -> float | None:
        """Return the printed mean of a column in percent; None where there is none."""
        if self.mean is None:
            return None
        value = self.mean[self.columns.index(column)][self.metrics.index(metric)]
        return None if math.isnan(value) else value


class Paper(BaseModel, frozen=True, extra="forbid"):
    """A paper's results."""

    paper: str = Field(description="Name and reference.")
    method: str = Field(description="The paper's own, by its name in the registry.")
    protocol: str = Field(description="Which sets it trains on for which.")
    backbone: str
    image_size: int
    pro: Pro = Field(description="The PRO that the paper prints, or would: by its code or its family's.")
    seeds: str
    recipes: dict[str, Recipe] = Field(
        default_factory=dict, description="What makes a method the one of the printed column, by its name."
    )
    ablations: tuple[str, ...] = Field(
        default=(), description="Further tables of it, in zsad.studies.ablations."
    )
    caveats: tuple[str, ...] = Field(description="What holds for all of its numbers.")
    columns: dict[str, str] = Field(description="Names of methods in the registry, by the paper's.")
    notes: dict[str, str] = Field(default_factory=dict, description="What is to be known of single sets.")
    counts: dict[str, tuple[int, int, int]] = Field(
        default_factory=dict, description="Classes, normal and anomalous images of each set, as printed."
    )
    counts_table: str = Field(default="", description="The number of the table that prints `counts`.")
    tables: tuple[PaperTable, ...] = ()

    def blocks(self, number: str) -> list[PaperTable]:
        """Return the blocks of a table of results.

        Raises:
            ConfigError: there is none of that number; the message lists those there are.
        """
        blocks = [table for table in self.tables if table.number == number]
        if number in self.ablations:
            raise ConfigError(
                f"table {number} of {self.paper} is an ablation: zsad ablate {self.method} --table {number}"
            )
        if not blocks:
            listed = ", ".join(dict.fromkeys(table.number for table in self.tables)) or "none"
            raise ConfigError(f"{self.paper} has no table {number!r} of results; there is {listed}")
        return blocks

    def trained_on(self, target: str) -> tuple[str, ...]:
        """Return the auxiliary sets behind the paper's numbers on a set, by catalogue names."""
        pairs = find_protocol(self.protocol).pairs
        auxiliary = next((pair.train for pair in pairs if target in pair.test), None)
        return pairs[0].train if auxiliary is None else auxiliary


@dataclass(frozen=True, slots=True)
class Printed:
    """The values that a paper prints for a method on a set or one of its classes, in percent, and the place."""

    paper: Paper
    table: PaperTable
    column: str
    row: str
    values: dict[str, float]

    @property
    def source(self) -> str:
        """The place where it is printed."""
        number = self.table.number
        return f"{self.paper.paper}, {f'Table {number}' if number.isdecimal() else number}"


@cache
def papers() -> dict[str, Paper]:
    """Return all papers by the method they are about."""
    by_method = {}
    for entry in sorted(files(__name__).iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(_SUFFIX):
            by_method[entry.name[: -len(_SUFFIX)]] = Paper.model_validate(
                parse_toml(entry.read_text(encoding="utf-8"))
            )
    return by_method


def paper_of(method: str) -> Paper | None:
    """Return a method's own paper, or the first with results of it; None where none is known."""
    return papers_on(method)[0] if method in covered() else None


def papers_pro(methods: Iterable[str]) -> Pro:
    """Return the PRO that the methods' papers print; "aupro" where no paper is known.

    Raises:
        ConfigError: papers that differ.
    """
    pros = {paper.pro for method in methods if (paper := paper_of(method)) is not None}
    if len(pros) > 1:
        raise ConfigError(
            f"the papers print different PROs ({', '.join(sorted(pros))}): choose one with --pro"
        )
    return pros.pop() if pros else "aupro"


def covered() -> tuple[str, ...]:
    """Return the methods of which some paper prints results, or says why there are none."""
    return tuple(sorted({name for paper in papers().values() for name in paper.columns.values()}))


def papers_on(method: str) -> list[Paper]:
    """Return the papers with results of a method, its own first.

    Raises:
        ConfigError: there are none.
    """
    matching = [paper for paper in papers().values() if method in paper.columns.values()]
    if not matching:
        raise ConfigError(
            f"no published results of {method!r} are known; there are those of {', '.join(covered())}"
        )
    return sorted(matching, key=lambda paper: paper.method != method)


def printed(method: str, target: str) -> list[Printed]:
    """Return what papers print for a method on a set (a catalogue name), its classes after the set itself."""
    sets, classes = [], []
    for paper in papers_on(method):
        for table in paper.tables:
            for column in table.columns:
                if paper.columns.get(column) != method:
                    continue
                if table.of is None and target in table.rows:
                    sets.append(Printed(paper, table, column, target, table.values(target, column)))
                elif table.of == target:
                    classes += [
                        Printed(paper, table, column, row, table.values(row, column)) for row in table.rows
                    ]
    return sets + classes
