"""Writes an explanation into a folder: one self-contained page, all numbers, each figure as SVG and PNG."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zsad.files import storage_errors, write_bytes, write_json, write_text
from zsad.studies.explain.charts import Figure
from zsad.studies.explain.explanation import Contrast, Explanation
from zsad.studies.explain.figures import all_figures

PAGE_FILE = "explain.html"
NUMBERS_FILE = "explain.json"
_FOLDED = frozenset({"weights"})  # shown only when asked for
_FIGURE_NAME = re.compile(r"[a-z0-9_-]{1,80}")


def write_explanation(explanation: Explanation, folder: str | Path) -> list[str]:
    """Writes the page, the numbers and the figures, in place of those of a former explanation.

    Without jinja2 there is no page; everything else is written all the same.

    Args:
        explanation: what `explain` found.
        folder: created where missing.

    Returns:
        The names of the files.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    folder = Path(folder)
    figures = list(all_figures(explanation))
    _remove_former(folder, keep={figure.name for figure in figures})
    written = []
    for figure in figures:
        write_text(folder / f"{figure.name}.svg", figure.drawing.to_svg())
        write_bytes(folder / f"{figure.name}.png", figure.drawing.to_png())
        written += [f"{figure.name}.svg", f"{figure.name}.png"]
    document = {**explanation.to_dict(), "figures": [figure.name for figure in figures]}
    write_json(folder / NUMBERS_FILE, document)
    written.append(NUMBERS_FILE)
    if find_spec("jinja2") is not None:
        page = render_explanation(explanation, figures)
        write_bytes(folder / PAGE_FILE, page.encode("utf-8", "backslashreplace"))
        written.append(PAGE_FILE)
    return written


def _remove_former(folder: Path, *, keep: set[str]) -> None:
    """Removes the figures that a former explanation listed and this one does not have."""
    try:
        former = json.loads((folder / NUMBERS_FILE).read_text(encoding="utf-8"))["figures"]
    except (OSError, ValueError, KeyError, TypeError):
        former = []
    for name in former if isinstance(former, list) else []:
        if isinstance(name, str) and _FIGURE_NAME.fullmatch(name) and name not in keep:
            for suffix in ("svg", "png"):
                with storage_errors(folder), suppress(FileNotFoundError):
                    (folder / f"{name}.{suffix}").unlink()
    with storage_errors(folder), suppress(FileNotFoundError):
        (folder / PAGE_FILE).unlink()


def render_explanation(explanation: Explanation, figures: list[Figure]) -> str:
    """The page as text.

    Raises:
        ConfigError: jinja2 is not installed.
    """
    from markupsafe import Markup

    from zsad.runs.page import render_page

    sections = [
        {
            "name": figure.name,
            "title": figure.title,
            "caption": figure.caption,
            "svg": Markup(figure.drawing.to_svg(inline=True)),
            "folded": figure.name in _FOLDED,
        }
        for figure in figures
    ]
    content = {
        "model": explanation.model,
        "tiles": _tiles(explanation),
        "sections": sections,
        "contrasts": [_contrast_row(explanation, line) for line in explanation.contrasts],
        "by_patch": any(pool.unit == "patch" for pool in explanation.pools.values()),
        "facts": _facts(explanation),
        "notes": explanation.notes,
        "skipped": explanation.collected.skipped,
    }
    return render_page(Path(__file__).parents[1] / "templates" / "explain.html", content)


def _contrast_row(explanation: Explanation, line: Contrast) -> list[str]:
    distances = (line.datasets, line.labels, line.pixels)
    effective = f"{line.effective:.1f} of {len(explanation.pools[line.pool].experts)}"
    return [line.pool, effective, *("-" if value is None else f"{value:.3f}" for value in distances)]


def _tiles(explanation: Explanation) -> list[tuple[str, str, str]]:
    """(value, name, explanation) of the numbers on top of the page."""
    tiles = []
    collected = explanation.collected
    if collected.images:
        normal, anomalous, unknown = (
            sum(counts) for counts in zip(*explanation.datasets.values(), strict=True)
        )
        told = f"{normal:,} normal, {anomalous:,} anomalous" + (
            f", {unknown:,} unlabelled" if unknown else ""
        )
        sets = len(explanation.datasets)
        tiles.append((f"{collected.images:,}", "images", told))
        tiles.append(
            (f"{sets}", "data sets" if sets > 1 else "data set", ", ".join(explanation.datasets)[:80])
        )
    for name, pool in explanation.pools.items():
        layers = f"{len(pool.layers)} layer" + ("s" if len(pool.layers) > 1 else "")
        title = "experts" if name == "experts" else f"experts: {name}"
        tiles.append((f"{len(pool.experts)}", title, f"{layers}, chosen for each {pool.unit}"))
    for run in explanation.runs:
        tiles.append((f"{run.steps:,}", "training steps", f"{run.name}, {run.epochs} epochs"))
    if collected.skipped:
        tiles.append((f"{len(collected.skipped):,}", "skipped", "files that could not be used"))
    return tiles


def _facts(explanation: Explanation) -> list[tuple[str, str]]:
    model = explanation.model
    facts: list[tuple[str, Any]] = [
        ("Model", model["name"]),
        ("Method", model["method"]),
        ("Backbone", f"{model['backbone']} (sha256 {model['backbone_sha256'][:16]}…)"),
        ("Layers", ", ".join(str(layer) for layer in model["config"].get("layers", ())) or "-"),
    ]
    for name in ("experts", "top_k"):
        if name in model["config"]:
            facts.append((name, model["config"][name]))
    training = model["training"]
    if training:
        facts.append(("Trained on", ", ".join(training["datasets"]) or "not recorded"))
        facts.append(("Classes seen", ", ".join(training["classes"]) or "not recorded"))
    return [(name, str(value)) for name, value in facts]
