"""One self-contained HTML page about a run: opens anywhere, without network, from the run's folder alone."""

from __future__ import annotations

import base64
import heapq
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from zsad.errors import ConfigError, DataError, ImageError
from zsad.files import write_bytes
from zsad.methods.registry import sources_note
from zsad.nn.maps import MapSpec
from zsad.predict.overlay import colour_table
from zsad.predict.prediction import Prediction
from zsad.runs.store import (
    GRIDS_FILE,
    REPORT_FILE,
    read_grids,
    read_rows,
    read_run_file,
    region_of_run,
    restore,
)

_TEMPLATES = Path(__file__).parent / "templates"
THUMBNAIL_SIDE = 360
_TABLE_ROWS = 3000
_BINS = 25


@dataclass(frozen=True, slots=True)
class ReportLimits:
    """Numbers of images with pictures and of rows in the table; the page says what is left out."""

    worst: int = 60
    best: int = 12
    rows: int = _TABLE_ROWS


class Thumbnails:
    """Small pictures of the images that a report will show, kept while they are scored so that none is read again.

    Args:
        limits: how many images with the highest and the lowest scores are kept.
    """

    def __init__(self, limits: ReportLimits | None = None) -> None:
        limits = limits or ReportLimits()
        self._limits = (limits.worst + limits.best, limits.best)
        # Heaps of (key, source, picture) whose first entry is the next to leave: highest scores, and lowest.
        self._highest: list[tuple[float, _Reversed, Image.Image]] = []
        self._lowest: list[tuple[float, str, Image.Image]] = []

    def add(self, prediction: Prediction) -> None:
        """Keep the picture of a prediction as far as it may be shown."""
        if prediction.picture is None:
            return
        picture, source = prediction.thumbnail(max_side=THUMBNAIL_SIDE), str(prediction.source)
        heapq.heappush(self._highest, (prediction.score, _Reversed(source), picture))
        heapq.heappush(self._lowest, (-prediction.score, source, picture))
        if len(self._highest) > self._limits[0]:
            heapq.heappop(self._highest)
        if len(self._lowest) > self._limits[1]:
            heapq.heappop(self._lowest)

    def by_source(self) -> dict[str, Image.Image]:
        """Return the pictures by their sources."""
        return {str(source): picture for _, source, picture in (*self._highest, *self._lowest)}


class _Reversed(str):
    """A source that compares the other way round: of equal scores the last by name leaves first."""

    __slots__ = ()

    def __lt__(self, other: str) -> bool:
        return str.__gt__(self, other)


def write_report(
    folder: str | Path, *, limits: ReportLimits | None = None, thumbnails: Thumbnails | None = None
) -> Path:
    """Writes report.html into the folder of a run and returns its path.

    Args:
        folder: of the run, with run.json, predictions.jsonl and grids.npy.
        limits: how many images are shown.
        thumbnails: pictures that were kept while they were scored; others are read again.

    Raises:
        ConfigError: jinja2 is not installed.
        DataError: the folder holds no run, or one without results.
        StorageError: the page cannot be written.
    """
    path = Path(folder) / REPORT_FILE
    page = render_report(
        Path(folder), limits=limits or ReportLimits(), pictures=thumbnails.by_source() if thumbnails else None
    )
    write_bytes(path, page.encode("utf-8", "backslashreplace"))
    return path


def render_report(
    folder: Path, *, limits: ReportLimits, pictures: Mapping[str, Image.Image] | None = None
) -> str:
    """The page as text; errors as `write_report`."""
    run = read_run_file(folder)
    rows: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    for row in read_rows(folder):
        (errors if "error" in row else rows).append(row)
    if not rows:
        raise DataError(f"{folder} holds no finished predictions, so there is nothing to report")
    rows.sort(key=lambda row: (-row["score"], row["source"]))
    return render_page(
        _TEMPLATES / "report.html", _content(folder, run, rows, errors, limits, pictures or {})
    )


def render_page(template: Path, content: dict[str, Any]) -> str:
    """Render a page from a template that extends `base.html`, which has the style sheet of all pages.

    Raises:
        ConfigError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise ConfigError("the report needs jinja2, get it with: pip install 'zsad[report]'") from error
    environment = Environment(
        loader=FileSystemLoader([template.parent, _TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["integer"] = lambda value: f"{value:,}"
    return str(environment.get_template(template.name).render(content))


def _content(
    folder: Path,
    run: dict[str, Any],
    rows: list[dict[str, Any]],
    errors: list[dict[str, Any]],
    limits: ReportLimits,
    pictures: Mapping[str, Image.Image],
) -> dict[str, Any]:
    spec = MapSpec.model_validate(run["map_spec"])
    chosen = _chosen(len(rows), limits)
    grids, region = read_grids(folder / GRIDS_FILE), region_of_run(run)
    predictions = {index: restore(rows[index], grids, spec, region=region, folder=folder) for index in chosen}
    names = _short_names([row["source"] for row in rows])
    layers = list(run["card"]["config"].get("layers", ()))
    for index in chosen:
        predictions[index].picture = pictures.get(rows[index]["source"])
    cards = [_card(rows[index], index, names[index], predictions[index], layers) for index in chosen]
    scores = [row["score"] for row in rows]
    labels = [row.get("label") for row in rows]
    with_picture = set(chosen)
    return {
        "title": run.get("title", "run"),
        "run": run,
        "worst": [card for card in cards if card["rank"] <= limits.worst],
        "best": [card for card in cards if card["rank"] > limits.worst],
        "rows": [
            {**_facts(row, index, names[index]), "shown": index in with_picture}
            for index, row in enumerate(rows[: limits.rows])
        ],
        "left_out": max(0, len(rows) - limits.rows),
        "errors": errors,
        "tiles": _tiles(rows, errors, labels),
        "labelled": any(label is not None for label in labels),
        "has_verdict": any(row["verdict"] for row in rows),
        "has_regions": any("regions" in row for row in rows),
        "histogram": histogram(scores, labels, threshold=rows[0].get("threshold")),
        "gradient": _gradient(),
        "scale": predictions[chosen[0]].scale,
        "pixel_threshold": rows[0].get("pixel_threshold"),
        "promises": run.get("promises", []),
        "region": region is not None,
        "model": _model_facts(run),
        "notes": _model_notes(run),
    }


def _chosen(count: int, limits: ReportLimits) -> list[int]:
    """Indices, by falling score, of the images shown with pictures."""
    if count <= limits.worst + limits.best:
        return list(range(count))
    return [*range(limits.worst), *range(count - limits.best, count)]


def _short_names(sources: Sequence[str]) -> list[str]:
    """Paths without the folders that all of them share."""
    parents = [Path(source).parent.parts for source in sources]
    shared = 0
    for parts in zip(*parents, strict=False):
        if len(set(parts)) > 1:
            break
        shared += 1
    return ["/".join(Path(source).parts[shared:]) for source in sources]


def _facts(row: dict[str, Any], index: int, name: str) -> dict[str, Any]:
    height, width = row["size"]
    return {
        "rank": index + 1,
        "name": name,
        "source": row["source"],
        "score": row["score"],
        "verdict": row["verdict"],
        "p_value": row.get("p_value"),
        "regions": len(row["regions"]) if "regions" in row else None,
        "label": row.get("label"),
        "ms": row["ms"],
        "size": f"{width} × {height}",
    }


def _card(
    row: dict[str, Any], index: int, name: str, prediction: Prediction, layers: list[int]
) -> dict[str, Any]:
    picture = overlay = None
    try:
        picture = prediction.thumbnail(max_side=THUMBNAIL_SIDE)
        overlay = prediction.overlay(picture)
    except ImageError:
        pass  # the file has gone since: the numbers are still worth showing
    routing = []
    for pool, weights in (prediction.routing or {}).items():
        numbers = layers if len(layers) == len(weights) else list(range(1, len(weights) + 1))
        routing.append({"pool": pool, "rows": routing_rows(weights, numbers)})
    return {
        **_facts(row, index, name),
        "picture": data_uri(picture),
        "overlay": data_uri(overlay),
        "peak": float(prediction.canonical_map().max()),
        "routing": routing,
    }


def histogram(
    scores: Sequence[float], labels: Sequence[int | None], *, threshold: float | None = None
) -> dict[str, Any]:
    """Counts of scores in 25 bins over [0, 1], stacked by label, for the macro of `charts.html`.

    Args:
        scores: image scores.
        labels: 0, 1 or None for each.
        threshold: score at which a line is drawn.
    """
    below = np.zeros(_BINS, dtype=np.int64)
    bars = []
    for label, group in ((0, "normal"), (1, "anomalous"), (None, "unknown")):
        values = [score for score, known in zip(scores, labels, strict=True) if known == label]
        counts = np.histogram(np.clip(values, 0, 1), bins=_BINS, range=(0, 1))[0]
        for index in np.flatnonzero(counts).tolist():
            bars.append(
                {"group": group, "bin": index, "below": int(below[index]), "count": int(counts[index])}
            )
        below += counts
    summary = f"Histogram of {len(scores)} image scores between {min(scores):.2f} and {max(scores):.2f}"
    if threshold is not None:
        summary += f", threshold {threshold:.3f}"
    return {"bars": bars, "highest": int(max(1, below.max())), "threshold": threshold, "summary": summary}


def routing_rows(weights: npt.NDArray[np.float32], layers: Sequence[int]) -> list[dict[str, Any]]:
    """Weights (L, E) of the experts by layer, for the macro of `charts.html`."""
    return [
        {"layer": layer, "weights": row.tolist(), "strongest": int(row.argmax())}
        for layer, row in zip(layers, weights, strict=True)
    ]


def data_uri(image: Image.Image | None) -> str | None:
    """A picture as JPEG within a page; None stays None."""
    if image is None:
        return None
    content = io.BytesIO()
    image.save(content, format="JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode("ascii")


def _gradient() -> str:
    table = colour_table()
    return ", ".join("#{:02x}{:02x}{:02x}".format(*table[place]) for place in range(0, 256, 15))


def _tiles(
    rows: list[dict[str, Any]], errors: list[dict[str, Any]], labels: list[int | None]
) -> list[tuple[str, str, str]]:
    """(value, name, explanation) of the numbers on top of the page."""
    scores = [row["score"] for row in rows]
    tiles = [
        (f"{len(rows):,}", "images", "scored in this run"),
        (f"{max(scores):.3f}", "highest score", "0 is normal, 1 is anomalous"),
        (f"{median(scores):.3f}", "median score", f"lowest {min(scores):.3f}"),
        (f"{median(row['ms'] for row in rows):,.0f} ms", "per image", "median time of the model"),
    ]
    if rows[0].get("threshold") is not None:
        above = sum(row["verdict"] == "anomalous" for row in rows)
        tiles.insert(1, (f"{above:,}", "anomalous", f"score above {rows[0]['threshold']:.3f}"))
    known = [(score, label) for score, label in zip(scores, labels, strict=True) if label is not None]
    if {label for _, label in known} == {0, 1}:
        from zsad.metrics.functional import auroc

        value = auroc([score for score, _ in known], [label for _, label in known])
        anomalous = sum(label for _, label in known)
        counts = f"{len(known) - anomalous} normal, {anomalous} anomalous"
        tiles.append((f"{100 * value:.1f} %", "image AUROC", counts))
    if errors:
        tiles.append((f"{len(errors):,}", "skipped", "files that could not be used"))
    return tiles


def _model_facts(run: dict[str, Any]) -> list[tuple[str, str]]:
    card = run["card"]
    size = card["preprocess"].get("image_size", ["?", "?"])
    facts = [
        ("Model", str(run["model_name"])),
        ("Method", f"{card['method']} ({card['provenance']})" if card.get("provenance") else card["method"]),
        ("Backbone", f"{card['backbone']['name']} (sha256 {card['backbone']['sha256'][:16]}…)"),
        ("Input", f"{size[1]} × {size[0]} pixels, {card['preprocess'].get('interpolation', '')}"),
        ("Layers", ", ".join(str(layer) for layer in card["config"].get("layers", ())) or "-"),
    ]
    training = card.get("training")
    if not training:
        return [*facts, ("Training", "none recorded")]
    return [
        *facts,
        ("Trained on", ", ".join(training["datasets"]) or "not recorded"),
        ("Classes seen", ", ".join(training["classes"]) or "not recorded"),
        ("Training images", f"{training['samples']:,}, {training['epochs']} epochs, seed {training['seed']}"),
    ]


def _model_notes(run: dict[str, Any]) -> list[str]:
    """Return remarks on method and backbone for readers of the results."""
    card = run["card"]
    notes = [said] if (said := sources_note(card["method"], card.get("provenance", ""))) else []
    if card["backbone"]["name"] == "zsad-tiny":
        notes.append(
            "This run used the small model that ships with the package. It is a stand-in that makes everything run "
            "anywhere in seconds, not a detector to rely on: for real work use ViT-L/14@336."
        )
    return notes
