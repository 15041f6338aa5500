"""Images of a benchmark with their masks and every method's map: the best, the median and the worst of a target.

Nobody chooses them: an image is as good as the methods, on average, rank it against those of the other label in its
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
from zsad.studies.report.canvas import Drawing, shortened, text_width

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
    """An image of a target with what all methods say of it; pictures are None where files are missing."""

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
class _Shelf:
    """What is kept of one cell: rows and grids by the images' names relative to the data set."""

    rows: dict[str, dict[str, Any]]
    grids: NDArray[np.float16]
    spec: MapSpec
    table: dict[str, dict[str, tuple[int, float]]]
    root: Path | None

    @classmethod
    def open(cls, work: Path, cell: CellResult) -> _Shelf | None:
        """That of a cell, None where it kept no grids or no scores."""
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
        found, root = {}, None
        for row in rows:
            parts = Path(row["source"]).parts
            for start in range(len(parts)):
                if (name := "/".join(parts[start:])) in known:
                    found[name] = row
                    root = Path(*parts[:start]) if start else Path()
                    break
        return cls(found, grids, spec, table.by_class(), root)


@dataclass(slots=True)
class _Target:
    """The shelves of a target by method, and the masks of its images."""

    name: str
    shelves: dict[str, _Shelf]
    masks: dict[str, Path] = field(default_factory=dict)

    def labels(self) -> dict[str, tuple[str, int]]:
        """Class and label of each image that some method has scored."""
        return {
            image: (class_name, label)
            for shelf in self.shelves.values()
            for class_name, images in shelf.table.items()
            for image, (label, _) in images.items()
        }


def examples(summary: Summary, work: Path) -> list[Example]:
    """The best, median and worst anomalous image of each target, and its worst normal one.

    Of a method with several seeds the first is shown.
    """
    found = []
    for name in summary.targets:
        target = _open(summary, work, name)
        if target.shelves:
            labels = target.labels()
            found += [
                _example(target, image, *labels[image], kind, right)
                for kind, (image, right) in _chosen(target).items()
            ]
    return found


def _open(summary: Summary, work: Path, name: str) -> _Target:
    shelves = {}
    for method in summary.names:
        seeds = summary.finished(method, name)
        shelf = _Shelf.open(work, next(iter(seeds.values()))) if seeds else None
        if shelf is not None and shelf.rows:
            shelves[method] = shelf
    roots = [shelf.root for shelf in shelves.values() if shelf.root is not None]
    return _Target(name, shelves, _masks(roots[0]) if roots else {})


def _masks(root: Path) -> dict[str, Path]:
    """The masks of a data set by the images' names, none where it is not there any more."""
    from zsad.datasets.manifest import discover

    try:
        samples = discover(root, missing="keep").samples
    except (ZsadError, OSError):
        return {}
    found = {}
    for sample in samples:
        if sample.mask is not None and sample.image.is_relative_to(root):
            found[sample.image.relative_to(root).as_posix()] = sample.mask
    return found


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
    places: dict[Kind, str] = {}
    if anomalous:
        places = {"best": anomalous[0], "median": anomalous[len(anomalous) // 2], "worst": anomalous[-1]}
    if normal:
        places["false alarm"] = normal[0]
    return {kind: (image, right[image]) for kind, image in places.items()}


def _ranked(target: _Target) -> dict[str, float]:
    """The share of images of the other label in its class that an image is ranked rightly against."""
    shares: dict[str, list[float]] = {}
    for shelf in target.shelves.values():
        for images in shelf.table.values():
            scores = {value: [s for label, s in images.values() if label == value] for value in (0, 1)}
            for image, (label, score) in images.items() if scores[0] and scores[1] else ():
                others = np.array(scores[1 - label])
                beaten = others < score if label else others > score
                shares.setdefault(image, []).append(float((beaten + (others == score) / 2).mean()))
    return {image: float(np.mean(values)) for image, values in shares.items()}


def _separated(target: _Target, images: Sequence[str]) -> dict[str, float]:
    """Pixel AUROC within an image, on the grid, of at most `_MOST_MASKS` evenly spread images."""
    known = sorted(image for image in images if image in target.masks)
    found: dict[str, float] = {}
    for image in known[:: -(-len(known) // _MOST_MASKS) or 1]:
        values = []
        for shelf in target.shelves.values():
            row = shelf.rows.get(image)
            if row is not None:
                grid = np.asarray(shelf.grids[row["grid"]], np.float32).mean(axis=0)
                inside = _foreground(target.masks[image], grid.shape)
                values.append(auroc(grid, inside) if inside is not None else np.nan)
        if values and not np.isnan(values).all():
            found[image] = float(np.nanmean(values))
    return found


def _foreground(path: Path, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    try:
        with Image.open(path) as opened:
            mask = opened.convert("L").point(lambda value: 255 if value else 0)
    except (OSError, ValueError):
        return None
    small = np.asarray(mask.resize((shape[1], shape[0]), Image.Resampling.BOX))
    return np.asarray(small > min(100, int(small.max()) / 2))


def _example(target: _Target, image: str, class_name: str, label: int, kind: Kind, right: float) -> Example:
    rows = {name: shelf.rows[image] for name, shelf in target.shelves.items() if image in shelf.rows}
    picture = mask = None
    if rows:
        picture = _picture(Path(next(iter(rows.values()))["source"]))
    if image in target.masks and picture is not None:
        mask = _mask_picture(target.masks[image], picture.size)
    maps: dict[str, Image.Image | None] = {}
    for name, row in rows.items():
        shelf = target.shelves[name]
        prediction = restore(row, shelf.grids, shelf.spec)
        maps[name] = prediction.overlay(picture) if picture is not None else None
    scores = {
        name: shelf.table[class_name][image][1]
        for name, shelf in target.shelves.items()
        if image in shelf.table.get(class_name, {})
    }
    return Example(target.name, class_name, image, label, kind, right, picture, mask, maps, scores)


def _picture(path: Path) -> Image.Image | None:
    try:
        picture = load_image(str(path), target=(SIDE, SIDE))
    except (ZsadError, OSError):
        return None
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return picture


def _mask_picture(path: Path, size: tuple[int, int]) -> Image.Image | None:
    try:
        with Image.open(path) as opened:
            mask = opened.convert("L").point(lambda value: 255 if value else 0)
    except (OSError, ValueError):
        return None
    shrunk: Image.Image = mask.resize(size, Image.Resampling.BOX).convert("RGB")
    return shrunk


def maps_figure(found: Sequence[Example], names: Sequence[str]) -> Drawing | None:
    """The median image of each target: a column for each, below it the mask and every method's map."""
    shown = [example for example in found if example.kind == "median" and example.picture is not None]
    if not shown:
        return None
    side, gap, top = 116.0, 6.0, 34.0
    rows = ["image", "mask", *names]
    left = 26 + min(150.0, max(text_width(name, 13) for name in rows))
    told = f"Maps of {', '.join(names)} on {', '.join(example.target for example in shown)}"
    sheet = Drawing(left + len(shown) * (side + gap) + 12, top + len(rows) * (side + gap) + 12, told)
    for index, row in enumerate(rows):
        middle = top + index * (side + gap) + side / 2 + 4
        sheet.text(left - 10, middle, shortened(row, 13, left - 20), size=13, fill="ink", anchor="end")
    for column, example in enumerate(shown):
        x = left + column * (side + gap)
        name = shortened(example.target, 13, side)
        sheet.text(x + side / 2, top - 12, name, size=13, fill="ink", anchor="middle", bold=True)
        pictures = [example.picture, example.mask, *(example.maps.get(name) for name in names)]
        for row_index, picture in enumerate(pictures):
            _place(
                sheet, picture, x, top + row_index * (side + gap), side, f"{rows[row_index]}, {example.image}"
            )
    return sheet


def _place(sheet: Drawing, picture: Image.Image | None, x: float, y: float, side: float, title: str) -> None:
    """A picture in a square, its proportions kept; an empty square with a dash where there is none."""
    sheet.rect(x, y, side, side, "faint")
    if picture is None:
        sheet.text(x + side / 2, y + side / 2 + 4, "-", size=13, anchor="middle")
        return
    scale = side / max(picture.size)
    width, height = picture.width * scale, picture.height * scale
    sheet.picture(x + (side - width) / 2, y + (side - height) / 2, width, height, picture, title=title)
