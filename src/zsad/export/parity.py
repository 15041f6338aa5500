"""The proof of an exported graph: the model and the graph on the same images, number by number.

Needs no PyTorch of its own: both sides are backends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from zsad.backends.base import Answer, Backend, Float32
from zsad.backends.graph_card import Proof
from zsad.errors import CheckpointError, ConfigError, DataError, ZsadError
from zsad.images.decode import load_image
from zsad.images.preprocess import Preprocess
from zsad.nn.maps import render_map_numpy
from zsad.types import Sample

SCORE_LIMIT, MAP_LIMIT = 1e-3, 1e-2
"""How far scores and map values of a graph in full precision may be from the model's."""

COSINE_LIMIT = 0.95
"""How alike the grids of a graph in eight bits must be to the model's, as a cosine of their values."""

_BATCHES = (1, 3)


@dataclass(frozen=True, slots=True)
class ProofImage:
    """An image to compare on.

    Attributes:
        pixels: (3, H, W), preprocessed.
        label: 0 normal, 1 anomalous; None where not known.
        mask: (H', W'), of any size; None where not known.
    """

    pixels: Float32
    label: int | None = None
    mask: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class ProofImages:
    """The images of a proof, and what they are in words."""

    images: Sequence[ProofImage]
    source: str

    @classmethod
    def drawn(cls, preprocess: Preprocess, count: int, *, seed: int = 6) -> ProofImages:
        """Drawn scenes, every second one with a defect; the same for the same seed."""
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
        """The first `count` images that can be read below a folder, with labels and masks where it has them.

        Raises:
            DataError: there is none.
        """
        from zsad.datasets.manifest import discover
        from zsad.images.inputs import expand_inputs

        try:
            samples = _mixed(discover(folder).samples)
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
    shows: str | None = None,
    limits: tuple[float, float] = (SCORE_LIMIT, MAP_LIMIT),
    quality: bool = False,
) -> Proof:
    """How far a graph is from the model, over images in batches of one and of several.

    Args:
        model: what is right.
        graph: what is to be proven.
        images: at least one.
        shows: what they show, as the graph was exported.
        limits: written into the proof; nothing is refused here.
        quality: also take metrics of both, where labels are known.

    Raises:
        ConfigError: no images.
    """
    if not images.images:
        raise ConfigError("a proof needs at least one image; use a count of 1 or more")
    errors, cosines = np.zeros(3), list[float]()
    answers: tuple[list[Answer], list[Answer]] = ([], [])
    for batch in _batches(images.images):
        pixels = np.stack([image.pixels for image in batch])
        words = None if shows is None else (shows,) * len(batch)
        right, found = model.run(pixels, words), graph.run(pixels, words)
        errors = np.maximum(errors, _errors(right, found, model))
        cosines += [_cosine(*pair) for pair in zip(right.logits, found.logits, strict=True)]
        if quality:
            answers[0].append(right)
            answers[1].append(found)
    return Proof(
        images=len(images.images),
        source=images.source,
        score_error=float(errors[0]),
        map_error=float(errors[1]),
        routing_error=float(errors[2]),
        cosine=min(cosines),
        score_limit=limits[0],
        map_limit=limits[1],
        quality=_quality(images.images, answers, model) if quality else {},
    )


def require(proof: Proof) -> None:
    """Refuses a graph in full precision that is not what the model is.

    Raises:
        CheckpointError: scores or maps are further apart than the proof allows, or not finite.
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
    """Refuses a graph in eight bits whose grids are another model's.

    Raises:
        CheckpointError: some image's grids are less alike than `COSINE_LIMIT`, or not finite.
    """
    if proof.cosine >= COSINE_LIMIT:
        return
    raise CheckpointError(
        f"eight bits are too few for this model: over {proof.source} the grids of an image have a cosine of "
        f"{proof.cosine:.3f} with the model's (expected {COSINE_LIMIT} or more); nothing was written, leave out --int8"
    )


def _read(path: Path, label: int | None, mask: Path | None, preprocess: Preprocess) -> ProofImage:
    from zsad.images.decode import load_mask

    return ProofImage(preprocess(load_image(path)), label, None if mask is None else load_mask(mask))


def _mixed(samples: Sequence[Sample]) -> list[Sample]:
    """Normal and anomalous samples in turn, so that the first of them are of both kinds."""
    groups = [[sample for sample in samples if (sample.label == 1) == kind] for kind in (False, True)]
    longest = max(map(len, groups))
    return [group[index] for index in range(longest) for group in groups if index < len(group)]


def _batches(images: Sequence[ProofImage]) -> list[list[ProofImage]]:
    """Images in batches of one and of three in turn."""
    batches, start, turn = [], 0, 0
    while start < len(images):
        size = _BATCHES[turn % len(_BATCHES)]
        batches.append(list(images[start : start + size]))
        start, turn = start + size, turn + 1
    return batches


def _errors(right: Answer, found: Answer, model: Backend) -> npt.NDArray[np.float64]:
    """Largest differences of scores and their parts, of maps, and of experts' weights; infinite where not finite."""
    if right.logits.shape != found.logits.shape:
        return np.full(3, np.inf)
    scores = [(right.score, found.score), *((right.terms[name], found.terms[name]) for name in right.terms)]
    maps = [(render_map_numpy(right.logits, model.spec), render_map_numpy(found.logits, model.spec))]
    routing = [(right.routing[name], found.routing[name]) for name in right.routing]
    return np.array(
        [max((_difference(*pair) for pair in own), default=0.0) for own in (scores, maps, routing)]
    )


def _difference(right: Float32, found: Float32) -> float:
    if right.shape != found.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(right.astype(np.float64) - found).max(initial=0.0))


def _cosine(right: Float32, found: Float32) -> float:
    if right.shape != found.shape:
        return -1.0
    one, other = (grid.astype(np.float64).ravel() for grid in (right, found))
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    cosine = float(one @ other) / length if length else float(np.array_equal(one, other))
    return cosine if np.isfinite(cosine) else -1.0


def _quality(
    images: Sequence[ProofImage], answers: tuple[list[Answer], list[Answer]], model: Backend
) -> dict[str, dict[str, float | None]]:
    """Image AUROC and PRO of the model and of the graph; empty where labels are not known."""
    labels = [image.label for image in images]
    if any(label is None for label in labels):
        return {}
    rows = {"image AUROC": [_auroc(own, labels) for own in answers]}
    if all(image.mask is not None or not image.label for image in images):
        rows["PRO"] = [_pro(own, images, model) for own in answers]
    return {name: {"model": row[0], "graph": row[1]} for name, row in rows.items()}


def _auroc(answers: Sequence[Answer], labels: Sequence[int | None]) -> float | None:
    from zsad.metrics.functional import auroc

    if len(set(labels)) < 2:
        return None
    return auroc(np.concatenate([answer.score for answer in answers]), np.array(labels))


def _pro(answers: Sequence[Answer], images: Sequence[ProofImage], model: Backend) -> float | None:
    from zsad.metrics.functional import aupro

    size = model.spec.size
    maps = [one for answer in answers for one in render_map_numpy(answer.logits, model.spec)]
    masks = [_mask(image, size) for image in images]
    return aupro(maps, masks) if any(mask.any() for mask in masks) else None


def _mask(image: ProofImage, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    if image.mask is None or not image.label:
        return np.zeros(size, dtype=np.bool_)
    picture = Image.fromarray(image.mask.astype(np.uint8) * 255)
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)) > 127
