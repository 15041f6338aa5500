"""Pictures far larger than a model's input: tiles at their own resolution, stitched, and the whole picture fused in.

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
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from zsad.backends.backend import Backend
from zsad.errors import ConfigError
from zsad.images.decode import Source
from zsad.images.large import Box, LargePicture, open_large
from zsad.images.preprocess import Preprocess
from zsad.nn.maps import MapSpec, interpolation_matrix, render_map_numpy
from zsad.predict.options import InputOptions
from zsad.predict.pipeline import predict_pixels
from zsad.predict.prediction import Prediction

Float32 = npt.NDArray[np.float32]

MAX_PIXELS = 20_000 * 20_000
_AUTO_FROM = 2.0  # sides of a tile that a picture must exceed before `auto` cuts it
_MAX_CELLS = 2048  # a side of the stitched grid
_MAX_MAP = 2048  # a side of the stitched map
_PREVIEW = 2048  # a side of the picture that is kept for drawing
OnTile = Callable[[int, int], None]
"""Called with the number of tiles of a picture that are done, and of all of them."""

_MAP_SHARE = {"map": 1.0, "map_and_global": 0.5, "map_and_cosine": 0.5}


@dataclass(frozen=True, slots=True)
class Tiling:
    """How large pictures are cut.

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
        """What a user says: "auto", "off" or None, or a side in pixels.

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
        """What changes scores, as plain JSON values."""
        return {"size": self.size, "overlap": self.overlap, "whole": self.whole}


@dataclass(frozen=True, slots=True)
class Layout:
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

    def places(self) -> Iterator[tuple[int, int]]:
        """Yields number of row and column of each tile."""
        for row in range(len(self.starts[0])):
            for column in range(len(self.starts[1])):
                yield row, column

    def box(self, row: int, column: int) -> Box:
        """Where a tile lies in the picture."""
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
        found = np.zeros((len(starts), self.cells[axis]))
        for number, start in enumerate(starts):
            found[number, start : start + length] = ramp
        return np.asarray(found / found.sum(axis=0), dtype=np.float32)


def lay_out(
    size: tuple[int, int], *, tile: tuple[int, int], side: int, overlap: float, max_cells: int = _MAX_CELLS
) -> Layout:
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
    return Layout(size, (cells[0], cells[1]), tile, (starts[0], starts[1]))


def map_rule(config: Mapping[str, Any]) -> tuple[float, bool] | None:
    """The share of the map's maximum in a method's score, and whether that map is smoothed; None: another rule.

    Args:
        config: the method's settings, as its card has them.
    """
    share = _MAP_SHARE.get(str(config.get("score")))
    if share is None or config.get("oddness", "off") != "off":
        return None
    smoothed = config.get("score_map") == "smoothed" or config.get("smooth") == "grid"
    return share, smoothed


def stitched_spec(spec: MapSpec, layout: Layout, *, max_map: int = _MAX_MAP) -> MapSpec:
    """How a stitched grid becomes a map: as a tile's does, but at a bounded size."""
    pixels = spec.size[0] / layout.tile[0]
    kept = min(pixels, max(max_map, *spec.size) / max(layout.cells))
    size = (max(1, round(layout.cells[0] * kept)), max(1, round(layout.cells[1] * kept)))
    sigma = spec.sigma * kept / pixels if spec.smooth == "map" else spec.sigma
    return spec.model_copy(update={"size": size, "sigma": sigma})


def predict_large(
    backend: Backend,
    source: Source,
    preprocess: Preprocess,
    looking: InputOptions,
    *,
    config: Mapping[str, Any],
    words: str | None = None,
    batch_size: int | None = None,
    on_tile: OnTile | None = None,
) -> Prediction:
    """The prediction of one picture, cut into tiles if it is large enough, without `source`.

    Args:
        backend: that runs the model.
        source: a path, an image, or an array.
        preprocess: what the model was trained with.
        looking: how it is cut, resized and read.
        config: the method's settings, which say how its score is made.
        words: what the picture shows, for methods whose prompts name it.
        batch_size: tiles a pass; None takes what suits the device.
        on_tile: called after each pass.

    Raises:
        ImageError: it cannot be read, or has more pixels than the tiling allows.
    """
    tiling = looking.tiling or Tiling()
    reading = replace(looking.reading, max_pixels=tiling.max_pixels)
    with open_large(source, reading=reading) as picture:
        start = time.perf_counter()
        fitted = preprocess.fitted(picture.size, backend.patch) if looking.keep_aspect else preprocess
        pixels = fitted(picture.whole(fitted.image_size))[None]
        prediction = predict_pixels(backend, pixels, sizes=[picture.size], words=_named(words, 1))[0]
        prediction.reading = reading
        side = tiling.side(picture.size, preprocess.image_size)
        if side is not None:
            layout = lay_out(
                picture.size, tile=_tile_grid(prediction, preprocess), side=side, overlap=tiling.overlap
            )
            stitched, highest = _stitch(
                backend,
                _tiles(picture, layout, preprocess),
                layout,
                words=words,
                batch_size=batch_size or backend.batch_size,
                on_tile=on_tile,
            )
            stitches = _Stitched(stitched, stitched_spec(backend.spec, layout), highest, layout)
            _fuse(prediction, stitches, whole=tiling.whole, rule=map_rule(config))
        prediction.seconds = time.perf_counter() - start
        prediction.picture = picture.preview(_PREVIEW)
        return prediction


def _named(words: str | None, count: int) -> tuple[str, ...] | None:
    return None if words is None else (words,) * count


def _tile_grid(whole: Prediction, preprocess: Preprocess) -> tuple[int, int]:
    """Rows and columns of the patches of a tile, from those of the whole picture, which may be a rectangle."""
    rows, columns = (
        round(cells * own / shown)
        for cells, own, shown in zip(
            whole.grid.shape[-2:], preprocess.image_size, whole.spec.size, strict=True
        )
    )
    return rows, columns


def _tiles(picture: LargePicture, layout: Layout, preprocess: Preprocess) -> Iterator[Float32]:
    """Yields each tile (3, H, W), ready for the model."""
    resample = Image.Resampling[preprocess.interpolation.upper()]
    for row, column in layout.places():
        yield preprocess(picture.part(layout.box(row, column), preprocess.image_size, resample=resample))


def _stitch(
    backend: Backend,
    tiles: Iterator[Float32],
    layout: Layout,
    *,
    words: str | None,
    batch_size: int,
    on_tile: OnTile | None,
) -> tuple[Float32, float]:
    """Blended logits (L, rows, columns) of all tiles, and the highest of their scores."""
    rows, columns = layout.weights(0), layout.weights(1)
    stitched, highest, done = None, -math.inf, 0
    places = layout.places()
    while group := list(islice(tiles, batch_size)):
        answer = backend.run(np.stack(group), _named(words, len(group)))
        highest = max(highest, float(answer.score.max()))
        if stitched is None:
            stitched = np.zeros((answer.logits.shape[1], *layout.cells), np.float32)
        for logits, (row, column) in zip(answer.logits, places, strict=False):
            down = slice(layout.starts[0][row], layout.starts[0][row] + layout.tile[0])
            across = slice(layout.starts[1][column], layout.starts[1][column] + layout.tile[1])
            stitched[:, down, across] += logits * np.outer(rows[row, down], columns[column, across])
        done += len(group)
        if on_tile is not None:
            on_tile(done, len(layout))
    assert stitched is not None  # a layout has at least one tile
    return stitched, highest


@dataclass(frozen=True, slots=True)
class _Stitched:
    """All tiles' logits (L, rows, columns), how they become a map, the highest of their scores."""

    grid: Float32
    spec: MapSpec
    highest: float
    layout: Layout


def _fuse(prediction: Prediction, tiles: _Stitched, *, whole: float, rule: tuple[float, bool] | None) -> None:
    """Puts grid, map and score of the stitched picture in the place of the whole picture's."""
    own, spec, stitched, highest = prediction.grid, prediction.spec, tiles.grid, tiles.highest
    down, across = (
        interpolation_matrix(own.shape[axis + 1], tiles.layout.cells[axis], align_corners=False).astype(
            np.float32
        )
        for axis in (0, 1)
    )
    stitched *= np.float32(1 - whole)
    stitched += np.float32(whole) * (down @ own @ across.T)
    prediction.grid, prediction.spec = stitched, tiles.spec
    score = prediction.score
    prediction.terms = {**(prediction.terms or {}), "whole": score, "tiles": highest}
    if rule is None:
        prediction.score = max(score, highest)
        return
    share, smooth = rule
    before = float(render_map_numpy(own, spec, smooth=smooth).max())
    after = float(render_map_numpy(stitched, prediction.spec, smooth=smooth).max())
    prediction.score = float(np.clip(score + share * (after - before), 0, 1))
