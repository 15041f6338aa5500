"""Comparison of an exported graph with its model on the same images. Both are backends, so PyTorch is not needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from zsad.backends.backend import Backend, BackendOutput, Float32
from zsad.backends.graph_card import Proof
from zsad.errors import CheckpointError, ConfigError, DataError, ZsadError
from zsad.images.decode import load_image
from zsad.images.picture import Preprocess
from zsad.nn.maps import render_map_numpy
from zsad.types import Sample

SCORE_LIMIT, MAP_LIMIT = 1e-3, 1e-2
"""Largest allowed differences of scores and map values for a graph in full precision."""

COSINE_LIMIT = 0.95
"""Smallest allowed cosine between the grids of a graph in eight bits and the model's."""


@dataclass(frozen=True, slots=True)
class ProofImage:
    """An image for the comparison.

    Attributes:
        pixels: (3, H, W), preprocessed.
        label: 0 normal, 1 anomalous; None if unknown.
        mask: (H', W'), of any size; None if unknown.
    """

    pixels: Float32
    label: int | None = None
    mask: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class ProofImages:
    """The images of a comparison and a description of their source."""

    images: Sequence[ProofImage]
    source: str

    @classmethod
    def drawn(cls, preprocess: Preprocess, count: int, *, seed: int = 6) -> ProofImages:
        """Draw synthetic scenes, every second one with a defect, from a seed."""
        from zsad.synth import generate

        images = list[ProofImage]()
        for index in range(count):
            scene = generate(
                np.random.default_rng([seed, index]), size=(320, 320), defect="random" if index % 2 else None
            )
            images.append(ProofImage(preprocess(Image.fromarray(scene.image)), scene.label, scene.mask))
        return cls(images, f"{count} drawn scenes")

    @classmethod
    def of_folder(cls, folder: str | Path, preprocess: Preprocess, count: int) -> ProofImages:
        """Read the first `count` readable images below a folder, with labels and masks if it has them.

        Raises:
            DataError: no image can be read.
        """
        from zsad.datasets.manifest import discover
        from zsad.images.inputs import expand_inputs

        try:
            samples = _interleaved(discover(folder).samples)
        except ZsadError:
            samples = expand_inputs([folder])
        images = list[ProofImage]()
        for sample in samples:
            if len(images) == count:
                break
            try:
                images.append(_read(sample.image, sample.label, sample.mask, preprocess))
            except ZsadError:
                continue
        if not images:
            raise DataError(f"no image of {folder} can be read; give another --images, or leave it out")
        return cls(images, f"{len(images)} images of {folder}")


def compare(
    model: Backend,
    graph: Backend,
    images: ProofImages,
    *,
    object_name: str | None = None,
    quality: bool = False,
) -> Proof:
    """Measure the differences between a graph and its model, over images in batches of one and of three.

    Args:
        model: the reference.
        graph: the exported graph.
        images: at least one.
        object_name: what they show, as the graph was exported.
        quality: also compute metrics of both, if labels are known.

    Raises:
        ConfigError: no images.
    """
    if not images.images:
        raise ConfigError("a proof needs at least one image; use a count of 1 or more")
    errors, cosines = np.zeros(3), list[float]()
    outputs: tuple[list[BackendOutput], list[BackendOutput]] = ([], [])
    for batch in _batches(images.images):
        pixels = np.stack([image.pixels for image in batch])
        names = None if object_name is None else (object_name,) * len(batch)
        expected, actual = model.run(pixels, names), graph.run(pixels, names)
        errors = np.maximum(errors, _errors(expected, actual, model))
        cosines += [_cosine(*pair) for pair in zip(expected.logits, actual.logits, strict=True)]
        if quality:
            outputs[0].append(expected)
            outputs[1].append(actual)
    return Proof(
        images=len(images.images),
        source=images.source,
        score_error=float(errors[0]),
        map_error=float(errors[1]),
        routing_error=float(errors[2]),
        cosine=min(cosines),
        score_limit=SCORE_LIMIT,
        map_limit=MAP_LIMIT,
        quality=_quality(images.images, outputs, model) if quality else {},
    )


def require(proof: Proof) -> None:
    """Check that a graph in full precision reproduces the model.

    Raises:
        CheckpointError: scores or maps differ by more than the limits, or are not finite.
    """
    if (
        proof.score_error <= proof.score_limit
        and max(proof.map_error, proof.routing_error) <= proof.map_limit
    ):
        return
    raise CheckpointError(
        f"the graph does not give what the model gives: over {proof.source} scores differ by up to "
        f"{proof.score_error:.2g} (allowed {proof.score_limit:g}), maps by {proof.map_error:.2g} and "
        f"experts' weights by {proof.routing_error:.2g} (allowed {proof.map_limit:g}); nothing was written"
    )


def require_alike(proof: Proof) -> None:
    """Check that the grids of a graph in eight bits resemble the model's.

    Raises:
        CheckpointError: the cosine of an image is below `COSINE_LIMIT`, or not finite.
    """
    if proof.cosine >= COSINE_LIMIT:
        return
    raise CheckpointError(
        f"eight bits are too few for this model: over {proof.source} the grids of an image have a cosine of "
        f"{proof.cosine:.3f} with the model's (expected {COSINE_LIMIT} or more); nothing was written, leave out --int8"
    )


def _read(path: Path, label: int | None, mask: Path | None, preprocess: Preprocess) -> ProofImage:
    from zsad.images.masks import load_mask

    return ProofImage(preprocess(load_image(path)), label, None if mask is None else load_mask(mask))


def _interleaved(samples: Sequence[Sample]) -> list[Sample]:
    """Alternate normal and anomalous samples, so that the first of them include both."""
    groups = [[sample for sample in samples if (sample.label == 1) == kind] for kind in (False, True)]
    longest = max(map(len, groups))
    return [group[index] for index in range(longest) for group in groups if index < len(group)]


def _batches(images: Sequence[ProofImage]) -> Iterator[Sequence[ProofImage]]:
    """Yield batches of one and of three images in turn."""
    start, sizes = 0, cycle((1, 3))
    while start < len(images):
        size = next(sizes)
        yield images[start : start + size]
        start += size


def _errors(expected: BackendOutput, actual: BackendOutput, model: Backend) -> npt.NDArray[np.float64]:
    """Return the largest differences of scores and terms, of maps, and of routing; infinite if not finite."""
    if expected.logits.shape != actual.logits.shape:
        return np.full(3, np.inf)
    terms = [(values, actual.terms[name]) for name, values in expected.terms.items()]
    maps = [(render_map_numpy(expected.logits, model.spec), render_map_numpy(actual.logits, model.spec))]
    routing = [(weights, actual.routing[name]) for name, weights in expected.routing.items()]
    groups = ([(expected.score, actual.score), *terms], maps, routing)
    return np.array([max((_difference(*pair) for pair in group), default=0.0) for group in groups])


def _difference(expected: Float32, actual: Float32) -> float:
    if expected.shape != actual.shape or not np.isfinite(actual).all():
        return float("inf")
    return float(np.abs(expected.astype(np.float64) - actual).max(initial=0.0))


def _cosine(expected: Float32, actual: Float32) -> float:
    if expected.shape != actual.shape:
        return -1.0
    one, other = (grid.astype(np.float64).ravel() for grid in (expected, actual))
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    cosine = float(one @ other) / length if length else float(np.array_equal(one, other))
    return cosine if np.isfinite(cosine) else -1.0


def _quality(
    images: Sequence[ProofImage], outputs: tuple[list[BackendOutput], list[BackendOutput]], model: Backend
) -> dict[str, dict[str, float | None]]:
    """Compute image AUROC and PRO of the model and of the graph; empty if labels are unknown."""
    labels = [image.label for image in images]
    if any(label is None for label in labels):
        return {}
    rows = {"image AUROC": [_auroc(output, labels) for output in outputs]}
    if all(image.mask is not None or not image.label for image in images):
        rows["PRO"] = [_pro(output, images, model) for output in outputs]
    return {name: {"model": row[0], "graph": row[1]} for name, row in rows.items()}


def _auroc(outputs: Sequence[BackendOutput], labels: Sequence[int | None]) -> float | None:
    from zsad.metrics.functional import auroc

    if len(set(labels)) < 2:
        return None
    return auroc(np.concatenate([output.score for output in outputs]), np.array(labels))


def _pro(outputs: Sequence[BackendOutput], images: Sequence[ProofImage], model: Backend) -> float | None:
    from zsad.metrics.functional import aupro

    size = model.spec.size
    maps = [one for output in outputs for one in render_map_numpy(output.logits, model.spec)]
    masks = [_mask(image, size) for image in images]
    return aupro(maps, masks) if any(mask.any() for mask in masks) else None


def _mask(image: ProofImage, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    if image.mask is None or not image.label:
        return np.zeros(size, dtype=np.bool_)
    picture = Image.fromarray(image.mask.astype(np.uint8) * 255)
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)) > 127
