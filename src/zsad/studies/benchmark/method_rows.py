"""Rows of the tables: methods with a backbone and a choice of auxiliary sets, under names that tell them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from zsad.studies.benchmark.cell_results import CellResult

_LONG = 30  # characters of names of auxiliary sets beyond which a letter stands for them


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One row of the tables: a method with a backbone and a choice of auxiliary sets, over all seeds."""

    name: str
    label: str
    method: str
    backbone: str
    protocol: str
    provenance: str


def identity(cell: CellResult) -> tuple[object, ...]:
    """Return what a row's cells have in common: within a protocol the auxiliary sets go with the target."""
    trained_on = () if cell.protocol else cell.trained_on
    return cell.label, cell.method, cell.backbone, cell.backbone_sha256, cell.protocol, trained_on


def letters_of(cells: Sequence[CellResult]) -> dict[str, str]:
    """Return choices of auxiliary sets that are too long for a name, each with a letter that stands for it."""
    texts = dict.fromkeys(" + ".join(cell.trained_on) for cell in cells)
    long = [text for text in texts if len(text) > _LONG]
    return {text: ascii_uppercase[i] if i < 26 else f"A{i}" for i, text in enumerate(long)}


def named(cells: Sequence[CellResult], letters: Mapping[str, str]) -> dict[tuple[object, ...], MethodRow]:
    """Return the rows by identity, with names that tell them apart, those without training first."""
    firsts: dict[tuple[object, ...], CellResult] = {}
    trained: set[tuple[object, ...]] = set()
    for cell in cells:
        firsts.setdefault(identity(cell), cell)
        if cell.trained_on:
            trained.add(identity(cell))
    names = {key: cell.label for key, cell in firsts.items()}
    for field in ("method", "backbone", "protocol", "trained_on", "backbone_sha256"):
        suffixes = {key: _suffix(cell, field, letters) for key, cell in firsts.items()}
        _lengthen(names, suffixes)
    rows = {
        key: MethodRow(names[key], cell.label, cell.method, cell.backbone, cell.protocol, cell.provenance)
        for key, cell in firsts.items()
    }
    return dict(sorted(rows.items(), key=lambda item: (item[0] in trained, item[1].name.lower())))


def _suffix(cell: CellResult, field: str, letters: Mapping[str, str]) -> str:
    if field == "trained_on":
        text = " + ".join(cell.trained_on)
        return letters.get(text, text) or "no training"
    return str(getattr(cell, field))[:24] or "no protocol"


def _lengthen(names: dict[tuple[object, ...], str], suffixes: Mapping[tuple[object, ...], str]) -> None:
    """Add suffixes to those equal names that they tell apart."""
    for name in set(names.values()):
        keys = [key for key, shared in names.items() if shared == name]
        if len({suffixes[key] for key in keys}) > 1:
            for key in keys:
                names[key] = f"{name} ({suffixes[key]})"
