"""Images in, predictions out: one by one, in order, in constant memory.

Files are read and resized by threads ahead of the model; what a broken file gives is handed to `on_error`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zsad.backends.backend import Backend
from zsad.backends.wrap import as_backend
from zsad.errors import ImageError, ZsadError
from zsad.images.loader import iter_batches
from zsad.images.preprocess import Preprocess
from zsad.predict.options import SQUARE, InputOptions
from zsad.predict.prediction import Prediction
from zsad.types import Sample

if TYPE_CHECKING:
    from zsad.methods.base import Method
    from zsad.predict.tiles import OnTile

OnError = Callable[[Sample, ZsadError], None]


def predict_samples(
    model: Backend | Method,
    samples: Iterable[Sample],
    preprocess: Preprocess,
    *,
    on_error: OnError,
    batch_size: int,
    workers: int = 2,
    looking: InputOptions = SQUARE,
    config: Mapping[str, Any] | None = None,
    on_tile: OnTile | None = None,
) -> Iterator[Prediction]:
    """Yields the prediction of each sample, in order.

    Args:
        model: a backend, or a method as it is.
        samples: the images.
        preprocess: what the model was trained with.
        on_error: called with each sample that cannot be read or scored, which is then skipped.
        batch_size: images a pass.
        workers: threads that read files.
        looking: whether pictures are cut into tiles (then one after the other) or keep their proportions, and how
            files are read.
        config: the method's settings, as its card has them; needed for tiles.
        on_tile: called as the tiles of a large picture are done.
    """
    backend = as_backend(model)
    if looking.tiling is not None:
        from zsad.predict.tiles import predict_large

        def look(sample: Sample) -> Prediction:
            return predict_large(
                backend,
                sample.image,
                preprocess,
                looking,
                config=config or {},
                words=sample.word,
                batch_size=batch_size,
                on_tile=on_tile,
            )

        for sample in samples:
            yield from _one_large(look, sample, on_error)
        return
    batches = iter_batches(
        list(samples),
        preprocess,
        batch_size=batch_size,
        workers=workers,
        reading=looking.reading,
        patch=backend.patch if looking.keep_aspect else None,
    )
    with closing(batches):
        for batch in batches:
            for sample, error in batch.errors:
                on_error(sample, error)
            if not batch.samples:
                continue
            words = tuple(sample.word for sample in batch.samples)
            results = predict_pixels(backend, batch.pixels, sizes=batch.sizes, words=words)
            for sample, prediction in zip(batch.samples, results, strict=True):
                if not math.isfinite(prediction.score):
                    on_error(sample, _not_finite(sample))
                    continue
                prediction.source, prediction.label = str(sample.image), sample.label
                prediction.reading = looking.reading
                yield prediction


def _one_large(
    look: Callable[[Sample], Prediction], sample: Sample, on_error: OnError
) -> Iterator[Prediction]:
    """The prediction of a picture in tiles, or nothing."""
    try:
        prediction = look(sample)
        if not math.isfinite(prediction.score):
            raise _not_finite(sample)
    except ZsadError as error:
        on_error(sample, error)
        return
    prediction.source, prediction.label = str(sample.image), sample.label
    yield prediction


def _not_finite(sample: Sample) -> ZsadError:
    return ImageError(f"{sample.image} has no finite score: the model overflowed on it; try --device cpu")


def predict_pixels(
    model: Backend | Method,
    pixels: npt.NDArray[np.float32],
    *,
    sizes: list[tuple[int, int]],
    words: tuple[str, ...] | None = None,
) -> list[Prediction]:
    """Predictions of preprocessed pixels (B, 3, H, W).

    Args:
        model: a backend, or a method as it is.
        pixels: normalised as the model's preprocessing does.
        sizes: (H, W) of each original image.
        words: what each image shows, for methods whose prompts name it; None: an object.
    """
    backend = as_backend(model)
    start = time.perf_counter()
    answer = backend.run(pixels, words)
    seconds = (time.perf_counter() - start) / len(sizes)
    spec = backend.spec_of((pixels.shape[-2], pixels.shape[-1]))
    return [
        Prediction(
            source=None,
            size=size,
            score=float(answer.score[index]),
            verdict=None,
            seconds=seconds,
            grid=np.ascontiguousarray(answer.logits[index]),
            spec=spec,
            routing={name: weights[index] for name, weights in answer.routing.items()} or None,
            terms={name: float(values[index]) for name, values in answer.terms.items()} or None,
        )
        for index, size in enumerate(sizes)
    ]
