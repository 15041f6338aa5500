"""Example images of a benchmark with masks and every method's map: the best, median and worst of a target.

They are chosen by rank: an image is as good as the methods, on average, rank it against those of the other label in its
class; where a target has one label only, as far as its map tells the pixels of its mask from the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zsad.errors import ZsadError
from zsad.images.decode import load_image
from zsad.metrics.functional import auroc
from zsad.nn.maps import MapSpec
from zsad.runs.store import GRIDS_FILE, read_grids, read_rows, read_run_file, restore
from zsad.studies.benchmark.cell_results import CellResult
from zsad.studies.benchmark.sampling import ImageTable
from zsad.studies.benchmark.summary import Summary
from zsad.studies.report.drawing import FAINT, INK, Drawing, shortened, styled, text_width

Kind = Literal["best", "median", "worst", "false alarm"]
KINDS: dict[Kind, str] = {
    "best": "the anomalous image that the methods find most easily",
    "median": "the anomalous image in the middle",
    "worst": "the anomalous image that they miss most",
    "false alarm": "the normal image that they like least",
}
SIDE = 176
_MOST_MASKS = 60  # images of a target whose masks are read to order them


@dataclass(frozen=True, slots=True)
class Example:
    """An image of a target with the maps and scores of all methods; pictures are None where files are missing."""

    target: str
    class_name: str
    image: str
    label: int
    kind: Kind
    right: float
    picture: Image.Image | None
    mask: Image.Image | None
    maps: Mapping[str, Image.Image | None]
    scores: Mapping[str, float]


@dataclass(slots=True)
class _CellImages:
    """The stored rows and grids of one cell, by the images' names relative to the data set."""

    rows: dict[str, dict[str, Any]]
    grids: NDArray[np.float16]
    spec: MapSpec
    table: dict[str, dict[str, tuple[int, float]]]
    root: Path | None

    @classmethod
    def open(cls, work: Path, cell: CellResult) -> _CellImages | None:
        """Read those of a cell; None where it has no grids or no scores."""
        table = ImageTable.read(work, cell)
        if table is None or cell.files.grids is None:
            return None
        folder = work / cell.files.grids
        try:
            spec = MapSpec.model_validate(read_run_file(folder)["map_spec"])
            grids = read_grids(folder / GRIDS_FILE)
            rows = [row for row in read_rows(folder) if "error" not in row and row["grid"] < len(grids)]
        except (ZsadError, OSError, ValueError, KeyError):
            return None
        known = set(table.image.tolist())
        by_name, root = {}, None
        for row in rows:
            parts = Path(row["source"]).parts
            for start in range(len(parts)):
                if (name := "/".join(parts[start:])) in known:
                    by_name[name] = row
                    root = Path(*parts[:start]) if start else Path()
                    break
        return cls(by_name, grids, spec, table.by_class(), root)


@dataclass(slots=True)
class _Target:
    """The images of a target by method, and their masks."""

    name: str
    cells: dict[str, _CellImages]
    masks: dict[str, Path] = field(default_factory=dict)

    def labels(self) -> dict[str, tuple[str, int]]:
        """Class and label of each image that some method has scored."""
        return {
            image: (class_name, label)
            for cell in self.cells.values()
            for class_name, images in cell.table.items()
            for image, (label, _) in images.items()
        }


def examples(summary: Summary, work: Path) -> list[Example]:
    """Return the best, median and worst anomalous image of each target, and its worst normal one.

    Of a method with several seeds the first is shown.
    """
    chosen = []
    for name in summary.targets:
        target = _open(summary, work, name)
        if target.cells:
            labels = target.labels()
            chosen += [
                _example(target, image, *labels[image], kind, right)
                for kind, (image, right) in _chosen(target).items()
            ]
    return chosen


def _open(summary: Summary, work: Path, name: str) -> _Target:
    cells = {}
    for method in summary.names:
        seeds = summary.finished(method, name)
        cell = _CellImages.open(work, next(iter(seeds.values()))) if seeds else None
        if cell is not None and cell.rows:
            cells[method] = cell
    roots = [cell.root for cell in cells.values() if cell.root is not None]
    return _Target(name, cells, _masks(roots[0]) if roots else {})


def _masks(root: Path) -> dict[str, Path]:
    """The masks of a data set by the images' names, none where it is not there any more."""
    from zsad.datasets.manifest import discover

    try:
        samples = discover(root, missing="keep").samples
    except (ZsadError, OSError):
        return {}
    return {
        sample.image.relative_to(root).as_posix(): sample.mask
        for sample in samples
        if sample.mask is not None and sample.image.is_relative_to(root)
    }


def _chosen(target: _Target) -> dict[Kind, tuple[str, float]]:
    """Image and its mean rightness by kind."""
    labels = target.labels()
    right = _ranked(target) or _separated(target, [image for image, (_, label) in labels.items() if label])
    anomalous = sorted(
        (image for image in right if labels[image][1]), key=lambda image: (-right[image], image)
    )
    normal = sorted(
        (image for image in right if not labels[image][1]), key=lambda image: (right[image], image)
    )
    kinds: dict[Kind, str] = {}
    if anomalous:
        kinds = {"best": anomalous[0], "median": anomalous[len(anomalous) // 2], "worst": anomalous[-1]}
    if normal:
        kinds["false alarm"] = normal[0]
    return {kind: (image, right[image]) for kind, image in kinds.items()}


def _ranked(target: _Target) -> dict[str, float]:
    """The share of images of the other label in its class that an image is ranked rightly against."""
    shares: dict[str, list[float]] = {}
    for cell in target.cells.values():
        for images in cell.table.values():
            scores = {value: [s for label, s in images.values() if label == value] for value in (0, 1)}
            for image, (label, score) in images.items() if scores[0] and scores[1] else ():
                others = np.array(scores[1 - label])
                beaten = others < score if label else others > score
                shares.setdefault(image, []).append(float((beaten + (others == score) / 2).mean()))
    return {image: float(np.mean(values)) for image, values in shares.items()}


def _separated(target: _Target, images: Sequence[str]) -> dict[str, float]:
    """Pixel AUROC within an image, on the grid, of at most `_MOST_MASKS` evenly spread images."""
    known = sorted(image for image in images if image in target.masks)
    areas: dict[str, float] = {}
    for image in known[:: -(-len(known) // _MOST_MASKS) or 1]:
        values = []
        for cell in target.cells.values():
            row = cell.rows.get(image)
            if row is not None:
                grid = np.asarray(cell.grids[row["grid"]], np.float32).mean(axis=0)
                inside = _foreground(target.masks[image], grid.shape)
                values.append(auroc(grid, inside) if inside is not None else np.nan)
        if values and not np.isnan(values).all():
            areas[image] = float(np.nanmean(values))
    return areas


def _foreground(path: Path, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    mask = _read_mask(path, (shape[1], shape[0]))
    if mask is None:
        return None
    small = np.asarray(mask)
    return np.asarray(small > min(100, int(small.max()) / 2))


def _example(target: _Target, image: str, class_name: str, label: int, kind: Kind, right: float) -> Example:
    rows = {name: cell.rows[image] for name, cell in target.cells.items() if image in cell.rows}
    picture = mask = None
    if rows:
        picture = _picture(Path(next(iter(rows.values()))["source"]))
    if image in target.masks and picture is not None:
        mask = _read_mask(target.masks[image], picture.size)
    maps: dict[str, Image.Image | None] = {}
    for name, row in rows.items():
        cell = target.cells[name]
        prediction = restore(row, cell.grids, cell.spec)
        maps[name] = prediction.overlay(picture) if picture is not None else None
    scores = {
        name: cell.table[class_name][image][1]
        for name, cell in target.cells.items()
        if image in cell.table.get(class_name, {})
    }
    return Example(target.name, class_name, image, label, kind, right, picture, mask, maps, scores)


def _picture(path: Path) -> Image.Image | None:
    try:
        picture = load_image(str(path), target=(SIDE, SIDE))
    except (ZsadError, OSError):
        return None
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return picture


def _read_mask(path: Path, size: tuple[int, int]) -> Image.Image | None:
    """The share of marked pixels as grey values in the given size (width, height); None where it cannot be read."""
    try:
        with Image.open(path) as opened:
            mask = opened.convert("L").point(lambda value: 255 if value else 0)
    except (OSError, ValueError):
        return None
    shrunk: Image.Image = mask.resize(size, Image.Resampling.BOX)
    return shrunk


@styled
def maps_figure(shown: Sequence[Example], names: Sequence[str]) -> Drawing | None:
    """Draw the median image of each target: a column for each, below it the mask and every method's map."""
    medians = [example for example in shown if example.kind == "median" and example.picture is not None]
    if not medians:
        return None
    side, gap, top = 116, 6, 34
    rows = ["image", "mask", *names]
    left = round(26 + min(150.0, max(text_width(name, 13) for name in rows)))
    title = f"Maps of {', '.join(names)} on {', '.join(example.target for example in medians)}"
    width, height = left + len(medians) * (side + gap) + 12, top + len(rows) * (side + gap) + 12
    drawing = Drawing(width, height, title)
    for index, row in enumerate(rows):
        middle = top + index * (side + gap) + side / 2 + 4
        drawing.text(left - 10, middle, shortened(row, 13, left - 20), fontsize=13, color=INK, ha="right")
    for column, example in enumerate(medians):
        x = left + column * (side + gap)
        name = shortened(example.target, 13, side - 8, bold=True)
        heading = {"fontsize": 13, "fontweight": "bold", "color": INK, "ha": "center"}
        drawing.text(x + side / 2, top - 12, name, **heading)
        pictures = [example.picture, example.mask, *(example.maps.get(name) for name in names)]
        for index, picture in enumerate(pictures):
            _draw_picture(drawing, picture, x, top + index * (side + gap), side)
    return drawing


def _draw_picture(drawing: Drawing, picture: Image.Image | None, x: int, y: int, side: int) -> None:
    """A picture in a square, its proportions kept; an empty square with a dash where there is none."""
    drawing.rectangle(x, y, side, side, facecolor=FAINT)
    if picture is None:
        drawing.text(x + side / 2, y + side / 2 + 4, "-", ha="center")
        return
    scale = side / max(picture.size)
    width, height = picture.width * scale, picture.height * scale
    drawing.image(picture, x + (side - width) / 2, y + (side - height) / 2, width, height)
