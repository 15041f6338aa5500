"""One path from pictures to predictions: `read`, `score`, `judge`, and `stream`, which does all three for many.

    ready = read("photo.jpg", model, view)      # processor, any thread: decoded, upright, resized, normalised
    [prediction] = score(model, [ready])        # the model, one pass
    judge(prediction, view)                     # region of interest, calibration, thresholds

Nothing else in zsad turns pictures into predictions. A large picture is read as a whole and, while it is scored, tile
by tile.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from zsad.backends.backend import BackendOutput
from zsad.errors import ConfigError, ImageError, ZsadError
from zsad.images.inputs import read_ahead
from zsad.images.open import Source, open_picture
from zsad.images.picture import ImagePixels, Picture
from zsad.images.pixels import PLAIN, Reading
from zsad.predict.prediction import Prediction
from zsad.predict.view import Model, View
from zsad.types import Sample

if TYPE_CHECKING:
    from zsad.predict.tiles import OnTile, TileLayout, Tiling

Float32 = npt.NDArray[np.float32]
OnError = Callable[[Sample, ZsadError], None]

_BATCHES_AHEAD = 2  # batches that threads may have ready before the model asks for them
PREVIEW_SIDE = 2048
"""Longest side of the picture that is kept of one in tiles."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A picture that was decoded elsewhere: upright RGB, perhaps reduced, and the (H, W) it has in full."""

    image: Image.Image
    size: tuple[int, int]


@dataclass(slots=True)
class Ready:
    """A picture, ready for the model.

    Attributes:
        pixels: (3, H, W), normalised as the model wants them.
        size: (H, W) of the upright picture.
        sample: the picture as part of a data set; None for one given as bytes, array or Pillow image.
        name: of the picture, for messages and results.
        object_name: object in the picture, for methods whose prompts name it; None: an object.
        picture: the picture itself, reduced, as far as somebody will draw it.
        reading: how its file is read again for drawing.
        large: the open picture where it is to be cut into tiles.
        tiling: how it is cut.
    """

    pixels: Float32
    size: tuple[int, int]
    sample: Sample | None = None
    name: str | None = None
    object_name: str | None = None
    picture: Image.Image | None = None
    reading: Reading = PLAIN
    large: Picture | None = None
    tiling: Tiling | None = None
    _open: ExitStack = field(default_factory=ExitStack, repr=False)

    def tiles(self, model: Model, layout: TileLayout) -> Iterator[Float32]:
        """Yield each tile (3, H, W) of a large picture, ready for the model."""
        assert self.large is not None
        size, resample = (
            model.preprocess.image_size,
            Image.Resampling[model.preprocess.interpolation.upper()],
        )
        for position in layout.positions():
            yield model.preprocess(self.large.part(layout.box(*position), size, resample=resample))

    def layout(
        self, model: Model, tile: tuple[int, int], *, overlap: float | None = None
    ) -> TileLayout | None:
        """Return the tiles of a large picture, None where it is not cut.

        Args:
            model: that will score them.
            tile: rows and columns of the patches of a tile.
            overlap: share of a tile that its neighbour covers; None: the tiling's.
        """
        if self.large is None or self.tiling is None:
            return None
        from zsad.predict.tiles import lay_out

        side = self.tiling.side(self.size, model.preprocess.image_size)
        if side is None:
            return None
        overlap = self.tiling.overlap if overlap is None else overlap
        return lay_out(self.size, tile=tile, side=side, overlap=overlap)

    def close(self) -> None:
        """Close the file of a large picture."""
        self._open.close()


def read(
    source: Sample | Source | Decoded,
    model: Model,
    view: View,
    *,
    name: str | None = None,
    draw_side: int | None = None,
    draft: bool = False,
) -> Ready:
    """Read one picture for a model; needs the processor alone and may run in any thread.

    Args:
        source: a sample, a path, the content of an image file, a Pillow image, an array, or a picture decoded before.
        model: decides size and normalisation.
        view: decides how the picture is read, cut and resized, and the object where a sample does not name it.
        name: of a picture that is not a file, for messages and results.
        draw_side: keep the picture, no side longer, for drawing; None keeps what was given in memory, as it is.
        draft: decode large JPEGs at a reduced scale, at least twice the model's size.

    Raises:
        ImageError: it cannot be read or used, or has more pixels than the view allows.
    """
    sample = source if isinstance(source, Sample) else None
    given = source.image if isinstance(source, Sample) else source
    is_file = isinstance(given, str | Path)
    ready = Ready(
        np.empty(0, np.float32),
        (0, 0),
        sample=sample if sample is not None or not is_file else Sample(Path(str(given))),
        name=name or (str(given) if is_file else None),
        object_name=sample.word_for(model.card.method)
        if sample is not None
        else (view.object_name or model.object_name),
        reading=view.options.reading,
    )
    if view.options.tiling is not None and not isinstance(given, Decoded):
        return _read_large(ready, given, model, view, preview=draw_side is not None or not is_file)
    if isinstance(given, Decoded):
        ready.size, picture = given.size, Picture(ImagePixels(given.image), "the image")
        return _read_whole(ready, picture, model, view, draw_side, keep=True)
    with open_picture(given, ready.reading, name=name or "image given as bytes") as picture, picture.alone():
        ready.size = picture.size
        if draft:
            height, width = model.preprocess.image_size
            picture.draft((2 * height, 2 * width))
        return _read_whole(ready, picture, model, view, draw_side, keep=not is_file)


def _read_whole(
    ready: Ready, picture: Picture, model: Model, view: View, draw_side: int | None, *, keep: bool
) -> Ready:
    """Resize a picture for the model, and keep it as far as somebody will draw it."""
    ready.pixels = _pixels(picture, ready.size, model, view)
    if draw_side is not None:
        ready.picture = picture.preview(draw_side)
    elif keep:
        ready.picture = picture.rgb()
    return ready


def _pixels(picture: Picture, size: tuple[int, int], model: Model, view: View) -> Float32:
    preprocess = model.preprocess
    if view.options.keep_aspect:
        preprocess = preprocess.fitted(size, model.backend.patch)
    return preprocess(picture)


def _read_large(ready: Ready, source: Source, model: Model, view: View, *, preview: bool) -> Ready:
    """Open a picture that may be cut into tiles, and read it as a whole; `preview` keeps it, reduced, for drawing."""
    ready.tiling = view.options.tiling
    assert ready.tiling is not None  # asked by `read`
    ready.reading = replace(ready.reading, max_pixels=ready.tiling.max_pixels)
    try:
        ready.large = ready._open.enter_context(open_picture(source, ready.reading))
        ready.size = ready.large.size
        ready.pixels = _pixels(ready.large, ready.size, model, view)
        if preview:
            ready.picture = ready.large.preview(PREVIEW_SIDE)
    except BaseException:
        ready.close()
        raise
    return ready


def score(
    model: Model, batch: Sequence[Ready], *, batch_size: int | None = None, on_tile: OnTile | None = None
) -> list[Prediction | ImageError]:
    """Score pictures, in order; the only place that runs a backend and asks whether scores are finite.

    Args:
        model: that scores them.
        batch: pictures that `read` gave; neighbours of one shape share a pass, large ones are closed.
        batch_size: tiles in a pass; None takes what suits the device.
        on_tile: called after each pass over tiles of a large picture.

    Returns:
        For each picture a prediction without a verdict, or an error where a tile cannot be decoded or a score is not
        finite.
    """
    predictions: list[Prediction | ImageError] = []
    for _, group in groupby(batch, key=lambda ready: ready.pixels.shape):
        alike = list(group)
        start = time.perf_counter()
        answer = _run(model, np.stack([ready.pixels for ready in alike]), [r.object_name for r in alike])
        seconds = (time.perf_counter() - start) / len(alike)
        for index, ready in enumerate(alike):
            prediction = _prediction(model, ready, answer, index, seconds)
            try:
                if ready.large is not None:
                    _score_tiles(model, ready, prediction, batch_size or model.backend.batch_size, on_tile)
                if not math.isfinite(prediction.score):
                    name = ready.name or "the image"
                    raise ImageError(
                        f"{name} has no finite score: the model overflowed on it; try device cpu"
                    )
                predictions.append(prediction)
            except ImageError as error:
                predictions.append(error)
            finally:
                ready.close()
    return predictions


def _run(model: Model, pixels: Float32, names: Sequence[str | None]) -> BackendOutput:
    """Run the backend on pixels (B, 3, H, W); a picture without an object's name shows an object."""
    words = tuple(name or "object" for name in names) if any(names) else None
    return model.backend.run(pixels, words)


def _prediction(model: Model, ready: Ready, answer: BackendOutput, index: int, seconds: float) -> Prediction:
    """Make the prediction of one picture of a pass."""
    return Prediction(
        source=ready.name,
        size=ready.size,
        score=float(answer.score[index]),
        verdict=None,
        seconds=seconds,
        grid=np.ascontiguousarray(answer.logits[index]),
        spec=model.backend.spec_of((ready.pixels.shape[-2], ready.pixels.shape[-1])),
        routing={name: weights[index] for name, weights in answer.routing.items()} or None,
        terms={name: float(values[index]) for name, values in answer.terms.items()} or None,
        sample=ready.sample,
        picture=ready.picture,
        reading=ready.reading,
    )


def _score_tiles(
    model: Model, ready: Ready, prediction: Prediction, batch_size: int, on_tile: OnTile | None
) -> None:
    """Score the tiles of a large picture and fuse them into the prediction of the whole."""
    from zsad.predict.tiles import Stitcher, fuse_tiles, map_rule

    start = time.perf_counter()
    layout = ready.layout(model, _tile_grid(prediction, model.preprocess.image_size))
    if layout is None or ready.tiling is None:
        return
    stitcher, highest, done = Stitcher(layout, model.backend.spec), -math.inf, 0
    tiles = ready.tiles(model, layout)
    while group := list(islice(tiles, batch_size)):
        answer = _run(model, np.stack(group), [ready.object_name] * len(group))
        highest = max(highest, float(answer.score.max()))
        stitcher.add(answer.logits)
        done += len(group)
        if on_tile is not None:
            on_tile(done, len(layout))
    rule = map_rule(model.score_settings)
    fuse_tiles(prediction, stitcher, highest=highest, whole=ready.tiling.whole, rule=rule)
    prediction.seconds += time.perf_counter() - start


def _tile_grid(whole: Prediction, image_size: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of the patches of a tile, from those of the whole picture, which may be a rectangle."""
    rows, columns = (
        round(cells * side / whole_side)
        for cells, side, whole_side in zip(whole.grid.shape[-2:], image_size, whole.spec.size, strict=True)
    )
    return rows, columns


def judge(prediction: Prediction, view: View) -> Prediction:
    """Apply region of interest, calibration and thresholds to a prediction that `score` gave, and return it.

    Raises:
        ImageError: the region does not fit the picture.
    """
    prediction.min_area = view.min_area
    prediction.confine(view.region)
    if view.calibration is not None:
        view.calibration.judge(prediction)
    prediction.pixel_threshold = view.map_threshold
    return prediction


def stream(
    model: Model,
    samples: Iterable[Sample],
    view: View,
    *,
    on_error: OnError,
    batch_size: int | None = None,
    workers: int = 2,
    draw_side: int | None = None,
    on_tile: OnTile | None = None,
) -> Iterator[Prediction]:
    """Yield the prediction of each sample, in order and in constant memory.

    Args:
        model: that scores them.
        samples: read as far as needed.
        view: how they are read and judged.
        on_error: called with each sample that cannot be read, scored or judged, which is then skipped.
        batch_size: pictures in a pass; None takes what suits the device.
        workers: threads that read files; pictures that may be cut into tiles are read one by one.
        draw_side: as in `read`.
        on_tile: as in `score`.

    Raises:
        ConfigError: a batch size below 1.
    """

    def attempt(sample: Sample) -> Ready | ZsadError:
        try:
            return read(sample, model, view, draw_side=draw_side)
        except ZsadError as error:
            return error

    size = model.backend.batch_size if batch_size is None else batch_size
    if size < 1:
        raise ConfigError(f"batch_size is {size}, expected at least 1")
    tiled = view.options.tiling is not None
    ahead = _BATCHES_AHEAD * size + workers
    with closing(read_ahead(samples, attempt, ahead=ahead, workers=0 if tiled else workers)) as results:
        while group := list(islice(results, 1 if tiled else size)):
            for sample, result in group:
                if isinstance(result, ZsadError):
                    on_error(sample, result)
            batch = [result for _, result in group if isinstance(result, Ready)]
            for ready, scored in zip(
                batch, score(model, batch, batch_size=size, on_tile=on_tile), strict=True
            ):
                try:
                    if isinstance(scored, ImageError):
                        raise scored
                    yield judge(scored, view)
                except ImageError as error:
                    on_error(ready.sample or Sample(Path()), _named(error, ready.name))


def _named(error: ImageError, name: str | None) -> ImageError:
    """Return an error whose message names the picture."""
    return error if name is None or name in str(error) else ImageError(f"{name}: {error}")
