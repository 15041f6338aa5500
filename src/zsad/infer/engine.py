"""Images in, predictions out: one by one, in order, in constant memory.

Files are read and resized by threads ahead of the model; what a broken file gives is handed to `on_error`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from zsad.data.image import Preprocess
from zsad.data.loader import iter_batches
from zsad.errors import ImageError, ZsadError
from zsad.infer.prediction import Prediction
from zsad.methods.base import Method, Output
from zsad.types import Sample

OnError = Callable[[Sample, ZsadError], None]


def predict_samples(
    method: Method,
    samples: Iterable[Sample],
    preprocess: Preprocess,
    *,
    on_error: OnError,
    batch_size: int,
    workers: int = 2,
) -> Iterator[Prediction]:
    """Yields the prediction of each sample, in order.

    Args:
        method: in evaluation mode; pixels are moved to its device and dtype.
        samples: the images.
        preprocess: what the method was trained with.
        on_error: called with each sample that cannot be read or scored, which is then skipped.
        batch_size: images a pass.
        workers: threads that read files.
    """
    batches = iter_batches(list(samples), preprocess, batch_size=batch_size, workers=workers)
    with closing(batches):
        for batch in batches:
            for sample, error in batch.errors:
                on_error(sample, error)
            if not batch.samples:
                continue
            words = tuple(sample.word for sample in batch.samples)
            results = predict_pixels(method, batch.pixels, sizes=batch.sizes, words=words)
            for sample, prediction in zip(batch.samples, results, strict=True):
                if not math.isfinite(prediction.score):
                    on_error(sample, _not_finite(sample))
                    continue
                prediction.source, prediction.label = str(sample.image), sample.label
                yield prediction


def _not_finite(sample: Sample) -> ZsadError:
    return ImageError(f"{sample.image} has no finite score: the model overflowed on it; try --device cpu")


def predict_pixels(
    method: Method,
    pixels: npt.NDArray[np.float32],
    *,
    sizes: list[tuple[int, int]],
    words: tuple[str, ...] | None = None,
) -> list[Prediction]:
    """Predictions of preprocessed pixels (B, 3, H, W).

    Args:
        method: in evaluation mode.
        pixels: normalised as the method's preprocessing does.
        sizes: (H, W) of each original image.
        words: what each image shows, for methods whose prompts name it; None: an object.
    """
    start = time.perf_counter()
    output = _run(method, pixels, words)
    grids = output.logits.float().cpu().numpy()
    scores = output.score.float().cpu().tolist()
    routing = {name: weights.float().cpu().numpy() for name, weights in (output.routing or {}).items()}
    terms = {name: values.float().cpu().tolist() for name, values in (output.terms or {}).items()}
    seconds = (time.perf_counter() - start) / len(sizes)
    spec = method.map_spec
    return [
        Prediction(
            source=None,
            size=size,
            score=float(scores[index]),
            verdict=None,
            seconds=seconds,
            grid=np.ascontiguousarray(grids[index]),
            spec=spec,
            routing={name: weights[index] for name, weights in routing.items()} or None,
            terms={name: values[index] for name, values in terms.items()} or None,
        )
        for index, size in enumerate(sizes)
    ]


@torch.inference_mode()
def _run(method: Method, pixels: npt.NDArray[np.float32], words: tuple[str, ...] | None) -> Output:
    weight = next(method.parameters())
    batch = torch.from_numpy(pixels).to(device=weight.device, dtype=weight.dtype)
    result: Output = method(replace(method.features(batch), words=words))
    return result
