"""From files to what a detector compares images with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from zsad.comparison.batch import Mutual, chosen, collect_mutual
from zsad.comparison.references import Pick, References, collect_references
from zsad.errors import ConfigError, ZsadError
from zsad.images.decode import read_image
from zsad.images.inputs import expand_inputs
from zsad.images.large import open_large
from zsad.predict.pipeline import OnError
from zsad.predict.tiles import lay_out
from zsad.types import Sample

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from zsad.comparison.compare import Scale
    from zsad.detector import Detector

    Parts = list[npt.NDArray[np.float32]]


def load_or_collect(
    detector: Detector,
    references: str | Path | Iterable[Sample],
    *,
    limit: int,
    pick: Pick,
    scale: Scale,
    on_error: OnError,
) -> References:
    """The memory that a file holds, or that images make; as `Detector.with_references`."""
    if isinstance(references, str | Path) and Path(references).suffix == ".safetensors":
        return References.read(references, identity=plain_identity(detector))
    pictures = _pictures(detector, _samples(references), on_error)
    return collect_references(detector.method, pictures, limit=limit, pick=pick, scale=scale)


def save_references(detector: Detector, path: str | Path) -> Path:
    """Writes the references of a detector, to be read with the same model later.

    Raises:
        ConfigError: it has none.
        StorageError: the disk is full or the folder cannot be written.
    """
    own = detector.comparison
    if not isinstance(own, References):
        raise ConfigError("there are no references to save; make them with Detector.with_references")
    return own.save(path, identity=plain_identity(detector), model=detector.name)


def collect_batch(
    detector: Detector,
    samples: str | Path | Iterable[Sample],
    *,
    others: int,
    scale: Scale,
    on_error: OnError,
) -> Mutual:
    """What the images of a batch are compared with; as `Detector.with_mutual`."""
    if others < 2:
        raise ConfigError(f"others is {others}, expected 2 images or more")
    if detector.looking.tiling is not None:
        raise ConfigError("images in tiles are not compared with each other; leave out --tile or --mutual")
    paths = chosen((sample.image for sample in _samples(samples)), others)
    pictures = (parts[0] for parts in _pictures(detector, [Sample(path) for path in paths], on_error))
    return collect_mutual(detector.method, pictures, scale=scale)


def plain_identity(detector: Detector) -> str:
    """The identity of a detector without what it compares images with."""
    from zsad.backends.torch import TorchBackend
    from zsad.detector import Detector as Plain

    bare = Plain(TorchBackend(detector.method), detector.card)
    bare.looking = detector.looking
    return bare.identity()


def _samples(given: str | Path | Iterable[Sample]) -> list[Sample]:
    return expand_inputs([given]) if isinstance(given, str | Path) else list(given)


def _pictures(detector: Detector, samples: Iterable[Sample], on_error: OnError) -> Iterator[Parts]:
    """Yields the parts (3, H, W) of each picture that can be read, as the detector looks at it."""
    for sample in samples:
        try:
            yield _parts(detector, sample.image)
        except ZsadError as error:
            on_error(sample, error)


def _parts(detector: Detector, path: Path) -> Parts:
    looking, preprocess = detector.looking, detector.preprocess
    if looking.tiling is None:
        image, size = read_image(path, reading=looking.reading)
        if looking.keep_aspect:
            preprocess = preprocess.fitted(size, detector.backend.patch)
        return [preprocess(image)]
    with open_large(path, reading=replace(looking.reading, max_pixels=looking.tiling.max_pixels)) as picture:
        side = looking.tiling.side(picture.size, preprocess.image_size)
        whole = preprocess(picture.whole(preprocess.image_size))
        if side is None:
            return [whole]
        # Tiles that overlap would meet themselves where distances between normal patches are taken.
        layout = lay_out(picture.size, tile=detector.method.grid, side=side, overlap=0.0)
        resample = Image.Resampling[preprocess.interpolation.upper()]
        boxes = (layout.box(row, column) for row, column in layout.places())
        cuts = (picture.part(box, preprocess.image_size, resample=resample) for box in boxes)
        return [whole, *(preprocess(cut) for cut in cuts)]
