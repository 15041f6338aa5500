"""Findings on the modules of a model in words, their table and their JSON."""

from __future__ import annotations

from typing import Any

from zsad.studies.benchmark.text_table import TextTable
from zsad.studies.explain.explanation_json import plain
from zsad.studies.explain.liveness import FUSION, Change, Liveness, ModuleResult, PoolLayer

LEAST_MAPS = 0.05
MOST_RANKS = 0.97
"""A module lives if the maps change by at least the former, or if the scores' ranks correlate less than the latter."""
LEAST_OTHER = 0.001
LEAST_TEXT = 0.01
LEAST_MOVE = 0.01
LEAST_CHOSEN = 0.02
MOST_ALONE = 0.7
MOST_ALIKE = 0.9
LEAST_KL = 1.0
MODULES_FILE = "modules.json"


def findings(result: Liveness) -> dict[str, str]:
    """Sentences on what does not live, by a short name of what is found; empty for a model that lives as a whole.

    Names are `MODULE: off`, `MODULE: other image`, `MODULE: moved`, `POOL, LAYER: EXPERT`, `POOL, LAYER: alike`, `KL`.
    """
    found: dict[str, str] = {}
    method = result.model["method"]
    for line in result.modules:
        found |= _of_module(line, method)
    for layer in result.pools:
        found |= _of_pool(layer)
    if result.kl is not None and result.kl < LEAST_KL:
        found["KL"] = (
            f"the posterior tells {result.kl:.3f} nats of an image, less than {LEAST_KL:g}: it has collapsed"
        )
    return found


def _of_module(line: ModuleResult, method: str) -> dict[str, str]:
    found = {}
    name, off, other = line.name, line.off, line.other
    if off.maps < LEAST_MAPS and off.ranks >= MOST_RANKS:
        extent = "nothing" if off.maps < 1e-6 and off.score < 1e-6 else "next to nothing"
        found[f"{name}: off"] = (
            f"{name} of {method} changes {extent}: without it ({line.module.means}) maps change by {off.maps:.2%} and "
            f"the order of the images stays (Spearman {off.ranks:.3f})"
        )
    if other is not None and name != FUSION:
        if other.maps < LEAST_OTHER and other.ranks > 1 - LEAST_OTHER:
            found[f"{name}: other image"] = (
                f"{name} of {method} gives every image the same: that of another image changes maps by {other.maps:.3%}"
            )
        if line.module.text and (other.text or 0.0) < LEAST_TEXT:
            found[f"{name}: text"] = (
                f"{name} of {method} hardly moves text: with another image's, its cosine is {1 - (other.text or 0):.7f}"
            )
    if line.moved is not None and line.moved < LEAST_MOVE:
        found[f"{name}: moved"] = (
            f"training moved the parameters of {name} by {line.moved:.2%} of their length"
        )
    return found


def _of_pool(layer: PoolLayer) -> dict[str, str]:
    found = {}
    place = f"{layer.pool}, {layer.layer}"
    for name, chosen, alone in zip(layer.experts, layer.chosen, layer.alone, strict=True):
        if chosen < LEAST_CHOSEN:
            found[f"{place}: {name}"] = (
                f"expert {name} (pool {place}) is chosen for {chosen:.1%} of the {layer.unit} only"
            )
        if alone > MOST_ALONE:
            found[f"{place}: {name}"] = (
                f"expert {name} (pool {place}) speaks alone for {alone:.0%} of the {layer.unit}"
            )
    if layer.alike is not None and layer.alike > MOST_ALIKE:
        found[f"{place}: alike"] = (
            f"the experts of the pool {place} put out the same: mean cosine {layer.alike:.3f}"
        )
    return found


def notes(result: Liveness) -> list[str]:
    """Sentences on what is to be known of the numbers."""
    said = []
    lost = [
        line.name
        for line in result.modules
        if line.off.fused_ranks is not None and line.off.fused_ranks > 0.999 and line.off.ranks < MOST_RANKS
    ]
    if lost:
        said.append(
            f"the score with cues fused in is made of maps and cues alone, so it does not follow {', '.join(lost)}"
        )
    if any(line.moved is not None for line in result.modules):
        said.append(
            "moved is a distance from the start over the larger length: 1 from a start of 0, 1.4 for a new draw"
        )
    return said


def module_table(result: Liveness) -> TextTable:
    """Table of the modules."""
    headings = ["module", "switched off", "maps", "text", "ranks", "score", "fused ranks"]
    headings += ["other: maps", "other: text", "other: ranks", "moved"]
    table = TextTable(headings, left=2)
    for line in result.modules:
        off, other = line.off, line.other
        cells = [
            f"{off.maps:.1%}",
            _text(off),
            f"{off.ranks:.3f}",
            f"{off.score:.3f}",
            _number(off.fused_ranks),
        ]
        cells += ["", "", ""] if other is None else [f"{other.maps:.1%}", _text(other), f"{other.ranks:.3f}"]
        table.rows.append([line.name, line.module.means, *cells, _number(line.moved)])
    return table


def pool_table(result: Liveness) -> TextTable:
    """Table of the experts: each pool in each layer."""
    table = TextTable(["experts", "layer", "least chosen", "most chosen", "most alone", "alike"], left=2)
    for layer in result.pools:
        shares = [f"{share:.1%}" for share in (layer.chosen.min(), layer.chosen.max(), layer.alone.max())]
        table.rows.append([layer.pool, layer.layer, *shares, _number(layer.alike)])
    return table


def _text(change: Change) -> str:
    return "" if change.text is None else f"{change.text:.4f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def liveness_json(result: Liveness) -> dict[str, Any]:
    """All numbers as plain values, with findings and notes."""
    return {
        "model": result.model,
        "images": result.datasets,
        "modules": [
            {
                "name": line.name,
                "switched_off": line.module.means,
                "off": _change(line.off),
                "other_image": None if line.other is None else _change(line.other),
                "moved": plain(line.moved),
            }
            for line in result.modules
        ],
        "experts": [
            {
                "pool": layer.pool,
                "layer": layer.layer,
                "unit": layer.unit,
                "experts": list(layer.experts),
                "chosen": plain(layer.chosen),
                "alone": plain(layer.alone),
                "mean_cosine": plain(layer.alike),
            }
            for layer in result.pools
        ],
        "kl": plain(result.kl),
        "findings": findings(result),
        "notes": notes(result),
        "skipped": [{"file": file, "reason": reason} for file, reason in result.skipped],
    }


def _change(change: Change) -> dict[str, Any]:
    return {name: plain(getattr(change, name)) for name in ("maps", "text", "ranks", "score", "fused_ranks")}
