"""Hits, misses and normal images of every class, drawn by lot: an adapter's heat maps of classes it never saw.

    python benchmarks/systems.py run DATA --work WORK --also SCENES --methods promptmoe --seeds 111
    python benchmarks/contact_sheet.py DATA --work WORK --also SCENES [--pictures] [--out FILE]

Five of each, by a lot of fixed seed. A hit has the hottest pixel of its map within a patch of the mask; where a class
has no masks, a score above that of nine in ten of its normal images. A class is shown by the adapter trained on
the other fold (those of neither: on fold A). Its colour scale is calibrated as `zsad calibrate --pixel-rule pixels
--pixel-fpr 0.03` does, with every second normal image of the class, none of which is shown. Without `--pictures` only
the maps and boxes around what is marked are drawn: the licences of most sets forbid to spread their pictures, so the
sheet in `docs/images/` shows none.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from systems import FOLDS, Bench, KeptSource, Scorer, fused_run, read_once
from zsad.images.decode import load_image
from zsad.images.masks import load_mask
from zsad.nn.maps import render_map_numpy
from zsad.predict.overlay import anchored_scale, blend
from zsad.studies.report.drawing import INK, Drawing, styled
from zsad.train.fitting import colour_scale
from zsad.types import Sample

MOST = 5
SIDE = 84
PIXEL_FPR = 0.03
Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Tile:
    """One image of a class: its map, and boxes (left, top, right, bottom) of what is marked, as shares of the sides."""

    sample: Sample
    score: float
    values: Float32
    boxes: tuple[tuple[float, float, float, float], ...]
    hit: bool | None


def main() -> None:
    """Reads the command line, draws and writes the sheet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--also", nargs="*", type=Path, default=[])
    parser.add_argument("--method", default="promptmoe")
    parser.add_argument("--seed", type=int, default=111)
    parser.add_argument("--pictures", action="store_true", help="the maps over their pictures, to look at")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent.parent / "docs" / "images" / "contact-sheet.png"
    )
    options = parser.parse_args()
    bench = Bench(options.work)
    read_once()
    rows: dict[str, tuple[list[Tile], tuple[float, float]]] = {}
    for fold in FOLDS:
        for label, tiles, scale in classes(options, bench, fold):
            rows.setdefault(label, (tiles, scale))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(sheet(rows, pictures=options.pictures).to_png(scale=1))
    print(f"wrote {options.out}")


def classes(
    options: argparse.Namespace, bench: Bench, fold: str
) -> Iterator[tuple[str, list[Tile], tuple[float, float]]]:
    """Every class that the fold's adapter never saw: name, tiles of all its images, colour scale."""
    run = fused_run(options, bench, options.method, fold, options.seed)
    method = run.method
    source: Any = KeptSource(method, bench, run.config)
    scale = colour_scale(source, run.training, report=lambda done, total: None)
    patch = method.map_spec.size[0] // bench.stems.grid[0]
    for dataset in run.others:
        for name in sorted({sample.class_name for sample in dataset.samples}):
            samples = [sample for sample in dataset.samples if sample.class_name == name]
            scored = zip(samples, Scorer(method, bench).predict_samples(samples), strict=True)
            tiles = [_tile(sample, found.score, found.grid, found.spec, patch) for sample, found in scored]
            yield f"{dataset.name} / {name}", *_calibrated(_judged(tiles), scale)


def _tile(sample: Sample, score: float, grid: Float32, spec: Any, patch: int) -> Tile:
    values = render_map_numpy(grid, spec)
    if sample.label == 0 or sample.mask is None:
        return Tile(sample, score, values, (), None)
    mask = load_mask(sample.mask, size=values.shape)
    near = ndimage.binary_dilation(mask, structure=np.ones((3, 3)), iterations=patch)
    parts = ndimage.find_objects(ndimage.label(mask, structure=np.ones((3, 3)))[0])
    height, width = values.shape
    boxes = [(x.start / width, y.start / height, x.stop / width, y.stop / height) for y, x in parts]
    return Tile(sample, score, values, tuple(boxes), bool(near.flat[int(values.argmax())]))


def _calibrated(tiles: Sequence[Tile], scale: tuple[float, float]) -> tuple[list[Tile], tuple[float, float]]:
    """The scale that starts where 3 % of the pixels of every second normal image lie, and the tiles without these."""
    held = {id(tile) for tile in [tile for tile in tiles if tile.sample.label == 0][::2]}
    if not held:
        return list(tiles), scale
    values = np.concatenate([tile.values[::4, ::4].ravel() for tile in tiles if id(tile) in held])
    threshold = float(np.quantile(values, 1 - PIXEL_FPR))
    return [tile for tile in tiles if id(tile) not in held], anchored_scale(scale, threshold)


def _judged(tiles: Sequence[Tile]) -> list[Tile]:
    """Those without masks judged by their scores."""
    normal = [tile.score for tile in tiles if tile.sample.label == 0]
    if not normal:
        return list(tiles)
    limit = float(np.quantile(normal, 0.9))
    return [
        Tile(tile.sample, tile.score, tile.values, tile.boxes, tile.score > limit)
        if tile.hit is None and tile.sample.label == 1
        else tile
        for tile in tiles
    ]


def drawn(tiles: Sequence[Tile]) -> dict[str, tuple[list[Tile], int]]:
    """Up to five of each kind by lot, and how many there are."""
    groups = {
        "hits": [tile for tile in tiles if tile.hit],
        "misses": [tile for tile in tiles if tile.hit is False],
        "normal images": [tile for tile in tiles if tile.sample.label == 0],
    }
    lot = random.Random(0)
    return {
        kind: (
            lot.sample(sorted(group, key=lambda tile: str(tile.sample.image)), min(MOST, len(group))),
            len(group),
        )
        for kind, group in groups.items()
    }


@styled
def sheet(rows: dict[str, tuple[list[Tile], tuple[float, float]]], *, pictures: bool) -> Drawing:
    """Draw a row for each class: hits, misses, normal images."""
    gap, top, line, apart = 4, 26, SIDE + 34, 22
    block = MOST * (SIDE + gap) + apart
    size = (12 + 3 * block, top + line * len(rows) + 8)
    page = Drawing(*size, "Heat maps of hits, misses and normal images of every class")
    for index, (label, (tiles, scale)) in enumerate(rows.items()):
        y = top + index * line
        page.text(12, y - 6, label, fontsize=13, color=INK, fontweight="bold")
        for place, (kind, (shown, count)) in enumerate(drawn(tiles).items()):
            x = 12 + place * block
            page.text(x + block - apart - gap, y - 6, f"{count} {kind}", fontsize=11, ha="right")
            for number, tile in enumerate(shown):
                picture = _picture(tile, scale, pictures=pictures)
                page.image(picture, x + number * (SIDE + gap), y, SIDE, SIDE)
    return page


def _picture(tile: Tile, scale: tuple[float, float], *, pictures: bool) -> Image.Image:
    side = (2 * SIDE, 2 * SIDE)
    ground = load_image(tile.sample.image).resize(side) if pictures else Image.new("RGB", side, "#e9e7e2")
    laid = blend(ground, tile.values, scale=scale)
    draw = ImageDraw.Draw(laid)
    for left, top, right, bottom in tile.boxes:
        corners = [share * 2 * SIDE for share in (left, top, right, bottom)]
        box = [corners[0] - 3, corners[1] - 3, corners[2] + 2, corners[3] + 2]
        draw.rectangle(box, outline="#ffffff" if pictures else "#1d1b22", width=1)
    return laid


if __name__ == "__main__":
    with torch.inference_mode():
        main()
