"""Files of an explanation: one self-contained page, all numbers, and each figure as SVG, PDF and PNG."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zsad.files import storage_errors, write_bytes, write_json
from zsad.studies.explain.explanation import Contrast, Explanation
from zsad.studies.explain.explanation_json import explanation_json

if TYPE_CHECKING:
    from zsad.studies.explain.figure_parts import ExplanationFigure

PAGE_FILE = "explain.html"
NUMBERS_FILE = "explain.json"
_FOLDED = frozenset({"weights"})
_FIGURE_NAME = re.compile(r"[a-z0-9_-]{1,80}")
_FORMS = ("svg", "pdf", "png")


def write_explanation(explanation: Explanation, folder: str | Path) -> list[str]:
    """Write the page, the numbers and the figures, in place of those of a former explanation.

    Without matplotlib there are no figures and no page, without jinja2 no page; everything else is written.

    Args:
        explanation: as `explain` returns it.
        folder: created where missing.

    Returns:
        The names of the files.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    folder = Path(folder)
    figures: list[ExplanationFigure] = []
    charts = find_spec("matplotlib") is not None
    if charts:
        from zsad.studies.explain.figures import all_figures

        figures = list(all_figures(explanation))
    _remove_former(folder, keep={figure.name for figure in figures})
    written = []
    for figure in figures:
        for name, content in figure.drawing.files(figure.name).items():
            write_bytes(folder / name, content)
            written.append(name)
    document = {**explanation_json(explanation), "figures": [figure.name for figure in figures]}
    write_json(folder / NUMBERS_FILE, document)
    written.append(NUMBERS_FILE)
    if charts and find_spec("jinja2") is not None:
        page = render_explanation(explanation, figures)
        write_bytes(folder / PAGE_FILE, page.encode("utf-8", "backslashreplace"))
        written.append(PAGE_FILE)
    return written


def _remove_former(folder: Path, *, keep: set[str]) -> None:
    """Removes the page, and the figures that a former explanation listed and this one does not have."""
    try:
        former = json.loads((folder / NUMBERS_FILE).read_text(encoding="utf-8"))["figures"]
    except (OSError, ValueError, KeyError, TypeError):
        former = []
    names = [name for name in former if isinstance(name, str)] if isinstance(former, list) else []
    gone = [name for name in names if _FIGURE_NAME.fullmatch(name) and name not in keep]
    for file in (PAGE_FILE, *(f"{name}.{form}" for name in gone for form in _FORMS)):
        with storage_errors(folder), suppress(FileNotFoundError):
            (folder / file).unlink()


def render_explanation(explanation: Explanation, figures: Sequence[ExplanationFigure]) -> str:
    """Return the page as text.

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
        counts_text = f"{normal:,} normal, {anomalous:,} anomalous" + (
            f", {unknown:,} unlabelled" if unknown else ""
        )
        sets = len(explanation.datasets)
        tiles.append((f"{collected.images:,}", "images", counts_text))
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
