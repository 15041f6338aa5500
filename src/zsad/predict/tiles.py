"""Geometry of pictures far larger than a model's input: tiles at their own resolution, stitched, the whole fused in.

The picture is laid out in cells, one for each patch of a tile. Tiles are windows of cells, so that stitching never
resamples; they overlap, and where they do their logits are blended by weights that fall smoothly to the border of a
tile and sum to one at every cell. The whole picture, shrunk to the model's input, goes through the model, too: what is
odd as a whole shows only there. The stitched logits are

    (1 - whole) * tiles + whole * upsampled logits of the whole picture

and become a map as the method's own do, at a bounded size.

Image score. A method whose score is `share * max(map) + (1 - share) * g`, g of the picture as a whole, keeps that rule:
the map's maximum is taken of the stitched map, g is that of the whole picture. For every other method (scores without
the map, of the highest patches, of a fitted curve) it is the highest of all parts' scores, the whole being one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from zsad.errors import ConfigError
from zsad.images.picture import Box
from zsad.nn.maps import MapSpec, interpolation_matrix, render_map_numpy
from zsad.predict.prediction import Prediction, as_written

Float32 = npt.NDArray[np.float32]

MAX_PIXELS = 20_000 * 20_000
_AUTO_FROM = 2.0  # sides of a tile that a picture must exceed before `auto` cuts it
_MAX_CELLS = 2048  # a side of the stitched grid
_MAX_MAP = 2048  # a side of the stitched map
OnTile = Callable[[int, int], None]
"""Called with the number of tiles of a picture that are done, and of all of them."""

_MAP_SHARE = {"map": 1.0, "map_and_global": 0.5, "map_and_cosine": 0.5}


@dataclass(frozen=True, slots=True)
class Tiling:
    """Settings by which large pictures are cut.

    Attributes:
        size: side of a tile in pixels of the picture; "auto" is the model's input, for pictures of which a side is more
            than twice that. With a number, every picture with a longer side is cut.
        overlap: share of a tile that the next one covers again, at least.
        whole: weight of the whole picture's pass in the map.
        max_pixels: larger pictures are refused.

    Raises:
        ConfigError: a number that makes no sense.
    """

    size: int | Literal["auto"] = "auto"
    overlap: float = 0.25
    whole: float = 0.2
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if self.size != "auto" and (not isinstance(self.size, int) or self.size < 16):
            raise ConfigError(f"tile is {self.size!r}, expected auto, off, or a side of 16 pixels or more")
        if not 0 <= self.overlap <= 0.75:
            raise ConfigError(f"overlap is {self.overlap:g}, expected a share between 0 and 0.75")
        if not 0 <= self.whole < 1:
            raise ConfigError(f"whole is {self.whole:g}, expected a weight of at least 0 and below 1")
        if self.max_pixels < 1:
            raise ConfigError(f"max_pixels is {self.max_pixels}, expected at least 1")

    @classmethod
    def of(cls, tile: Tiling | str | int | None, *, overlap: float = 0.25) -> Tiling | None:
        """Return the tiling that a user names: "auto", "off" or None, or a side in pixels.

        Raises:
            ConfigError: another word, or a number that makes no sense.

        Example:
            >>> Tiling.of("off") is None, Tiling.of("640").size
            (True, 640)
        """
        if tile is None or isinstance(tile, Tiling) or tile == "off":
            return tile if isinstance(tile, Tiling) else None
        if tile == "auto":
            return cls(overlap=overlap)
        if isinstance(tile, str) and not tile.isdecimal():
            raise ConfigError(f"tile is {tile!r}, expected auto, off, or a side in pixels")
        return cls(int(tile), overlap=overlap)

    def side(self, size: tuple[int, int], image: tuple[int, int]) -> int | None:
        """Side of the tiles of a picture of `size` (H,W) for a model's input of `image` (H,W); None: not cut."""
        wanted = max(image) if self.size == "auto" else self.size
        limit = wanted * (_AUTO_FROM if self.size == "auto" else 1.0)
        # A thin picture is cut into tiles as high as it is, which the model sees enlarged.
        return max(1, min(wanted, *size)) if max(size) > limit else None

    def to_dict(self) -> dict[str, Any]:
        """Return what changes scores, as plain JSON values."""
        return {"size": self.size, "overlap": self.overlap, "whole": self.whole}


@dataclass(frozen=True, slots=True)
class TileLayout:
    """Tiles over a picture.

    Attributes:
        size: (H,W) of the picture.
        cells: rows and columns of cells.
        tile: rows and columns of the cells of a tile.
        starts: first rows, and first columns, of the tiles.
    """

    size: tuple[int, int]
    cells: tuple[int, int]
    tile: tuple[int, int]
    starts: tuple[tuple[int, ...], tuple[int, ...]]

    def __len__(self) -> int:
        return len(self.starts[0]) * len(self.starts[1])

    def positions(self) -> Iterator[tuple[int, int]]:
        """Yields number of row and column of each tile."""
        for row in range(len(self.starts[0])):
            for column in range(len(self.starts[1])):
                yield row, column

    def box(self, row: int, column: int) -> Box:
        """Return the box of a tile in the picture."""
        y, x = (side / cells for side, cells in zip(self.size, self.cells, strict=True))
        top, left = self.starts[0][row], self.starts[1][column]
        return top * y, left * x, (top + self.tile[0]) * y, (left + self.tile[1]) * x

    def weights(self, axis: int) -> Float32:
        """(tiles, cells) along rows (0) or columns (1): what a tile counts at a cell; sums to one at every cell."""
        starts, length = self.starts[axis], self.tile[axis]
        steps = [after - before for before, after in pairwise(starts)]
        shared = max(1, length - min(steps, default=length))
        inside = np.minimum(np.arange(length) + 0.5, length - 0.5 - np.arange(length))
        ramp = np.sin(0.5 * np.pi * np.minimum(1.0, inside / shared)) ** 2
        weights = np.zeros((len(starts), self.cells[axis]))
        for number, start in enumerate(starts):
            weights[number, start : start + length] = ramp
        return np.asarray(weights / weights.sum(axis=0), dtype=np.float32)


def lay_out(
    size: tuple[int, int], *, tile: tuple[int, int], side: int, overlap: float, max_cells: int = _MAX_CELLS
) -> TileLayout:
    """Tiles of about `side` pixels over a picture of `size` (H,W).

    Args:
        size: of the picture.
        tile: rows and columns of the patches of a tile.
        side: of a tile in pixels; somewhat larger where the picture would have more than `max_cells` cells.
        overlap: share of a tile that its neighbour covers, at least.
        max_cells: a side of the stitched grid.

    Example:
        >>> found = lay_out((600, 900), tile=(20, 20), side=320, overlap=0.25)
        >>> found.cells, found.starts
        ((38, 56), ((0, 9, 18), (0, 12, 24, 36)))
    """
    cells, starts = [], []
    for length, patches in zip(size, tile, strict=True):
        count = min(max(round(length * patches / side), patches), max(max_cells, patches))
        step = max(1, math.floor(patches * (1 - overlap)))
        tiles = 1 + math.ceil((count - patches) / step)
        cells.append(count)
        starts.append(tuple(round(x) for x in np.linspace(0, count - patches, tiles)))
    return TileLayout(size, (cells[0], cells[1]), tile, (starts[0], starts[1]))


def map_rule(config: Mapping[str, Any]) -> tuple[float, bool] | None:
    """The share of the map's maximum in a method's score, and whether that map is smoothed; None: another rule.

    Args:
        config: the method's settings, as its card has them.
    """
    share = _MAP_SHARE.get(str(config.get("score")))
    if share is None or config.get("oddness", "off") != "off":
        return None
    smoothed = config.get("score_map") == "smoothed" or config.get("smooth", "map") != "map"
    return share, smoothed


def stitched_spec(spec: MapSpec, layout: TileLayout, *, max_map: int = _MAX_MAP) -> MapSpec:
    """Return how a stitched grid becomes a map: as a tile's does, but at a bounded size."""
    pixels = spec.size[0] / layout.tile[0]
    kept = min(pixels, max(max_map, *spec.size) / max(layout.cells))
    size = (max(1, round(layout.cells[0] * kept)), max(1, round(layout.cells[1] * kept)))
    sigma = spec.sigma * kept / pixels if spec.smooth == "map" else spec.sigma
    return spec.model_copy(update={"size": size, "sigma": sigma})


class Stitcher:
    """Blends the logits of tiles into one grid, in constant memory over any number of tiles.

    Args:
        layout: of the tiles, which are added in the order of its `positions`.
        spec: how the grid of a tile becomes a map.
    """

    def __init__(self, layout: TileLayout, spec: MapSpec) -> None:
        self.layout, self.spec = layout, spec
        self._rows, self._columns = layout.weights(0), layout.weights(1)
        self._positions = layout.positions()
        self._grid: Float32 | None = None

    def add(self, logits: Float32) -> None:
        """Add the logits (B, L, h, w) of the next B tiles."""
        (down, across), (tops, lefts) = self.layout.tile, self.layout.starts
        if self._grid is None:
            self._grid = np.zeros((logits.shape[1], *self.layout.cells), np.float32)
        for tile, (row, column) in zip(logits, self._positions, strict=False):
            rows = slice(tops[row], tops[row] + down)
            columns = slice(lefts[column], lefts[column] + across)
            self._grid[:, rows, columns] += tile * np.outer(
                self._rows[row, rows], self._columns[column, columns]
            )

    @property
    def grid(self) -> Float32:
        """The blended logits (L, rows, columns) of all tiles."""
        assert self._grid is not None  # a layout has at least one tile
        return self._grid


def fuse_tiles(
    prediction: Prediction,
    stitcher: Stitcher,
    *,
    highest: float,
    whole: float,
    rule: tuple[float, bool] | None,
) -> None:
    """Put grid, map and score of the stitched picture in the place of the whole picture's.

    Args:
        prediction: of the whole picture; changed.
        stitcher: with all tiles.
        highest: the highest score of a tile.
        whole: weight of the whole picture's pass in the map.
        rule: see `map_rule`.
    """
    layout, stitched = stitcher.layout, stitcher.grid
    whole_grid, whole_spec, score = prediction.grid, prediction.spec, prediction.score
    down, across = (
        interpolation_matrix(whole_grid.shape[axis + 1], layout.cells[axis], align_corners=False).astype(
            np.float32
        )
        for axis in (0, 1)
    )
    stitched *= np.float32(1 - whole)
    stitched += np.float32(whole) * (down @ whole_grid @ across.T)
    prediction.grid, prediction.spec = stitched, stitched_spec(stitcher.spec, layout)
    prediction.terms = {**(prediction.terms or {}), "whole": score, "tiles": highest}
    if rule is None:
        prediction.score = as_written(max(score, highest))
        return
    share, smooth = rule
    before = float(render_map_numpy(whole_grid, whole_spec, smooth=smooth).max())
    after = float(render_map_numpy(stitched, prediction.spec, smooth=smooth).max())
    prediction.score = as_written(float(np.clip(score + share * (after - before), 0, 1)))
