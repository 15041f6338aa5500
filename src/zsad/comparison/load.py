"""Comparisons of a detector from files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from zsad.comparison.batch import Mutual, chosen, collect_mutual
from zsad.comparison.references import Pick, References, collect_references
from zsad.errors import ConfigError, ZsadError
from zsad.images.inputs import expand_inputs
from zsad.predict.pipeline import OnError, read
from zsad.predict.view import Model, View
from zsad.types import Sample

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from zsad.comparison.compare import Scale

    Parts = list[npt.NDArray[np.float32]]


def load_or_collect(
    model: Model,
    view: View,
    references: str | Path | Iterable[Sample],
    *,
    limit: int,
    pick: Pick,
    scale: Scale,
    on_error: OnError,
) -> References:
    """The memory that a file holds, or that images make; as `Detector.with_references`."""
    if isinstance(references, str | Path) and Path(references).suffix == ".safetensors":
        return References.read(references, identity=plain_identity(model, view))
    pictures = _pictures(model, view, _samples(references), on_error)
    return collect_references(model.method, pictures, limit=limit, pick=pick, scale=scale)


def save_references(model: Model, view: View, path: str | Path) -> Path:
    """Writes the references of a detector, to be read with the same model later.

    Raises:
        ConfigError: it has none.
        StorageError: the disk is full or the folder cannot be written.
    """
    references = model.comparison
    if not isinstance(references, References):
        raise ConfigError("there are no references to save; make them with Detector.with_references")
    return references.save(path, identity=plain_identity(model, view), model=model.name)


def collect_batch(
    model: Model,
    view: View,
    samples: str | Path | Iterable[Sample],
    *,
    others: int,
    scale: Scale,
    on_error: OnError,
) -> Mutual:
    """Return the comparison of the images of a batch with each other; as `Detector.with_mutual`."""
    if others < 2:
        raise ConfigError(f"others is {others}, expected 2 images or more")
    if view.options.tiling is not None:
        raise ConfigError("images in tiles are not compared with each other; leave out --tile or --mutual")
    paths = chosen((sample.image for sample in _samples(samples)), others)
    pictures = (parts[0] for parts in _pictures(model, view, [Sample(path) for path in paths], on_error))
    return collect_mutual(model.method, pictures, scale=scale)


def plain_identity(model: Model, view: View) -> str:
    """Return the identity of a model without what it compares images with."""
    from zsad.backends.torch import TorchBackend

    return replace(model, backend=TorchBackend(model.method)).identity(view.options)


def _samples(given: str | Path | Iterable[Sample]) -> list[Sample]:
    return expand_inputs([given]) if isinstance(given, str | Path) else list(given)


def _pictures(model: Model, view: View, samples: Iterable[Sample], on_error: OnError) -> Iterator[Parts]:
    """Yield the parts (3, H, W) of each picture that can be read, as the model will see it: the whole, then tiles."""
    for sample in samples:
        try:
            with closing(read(sample, model, view)) as ready:
                # Tiles that overlap would meet themselves where distances between normal patches are taken.
                layout = ready.layout(model, model.method.grid, overlap=0.0)
                yield [ready.pixels, *(ready.tiles(model, layout) if layout is not None else ())]
        except ZsadError as error:
            on_error(sample, error)
