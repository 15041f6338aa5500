"""Samples of a training: which can be used, their masks, and the order in which steps see them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zsad.errors import DataError, ZsadError
from zsad.files import content_hash
from zsad.images.decode import image_size
from zsad.images.masks import load_mask
from zsad.methods.base import ImageFeatures
from zsad.train.train_config import TrainConfig
from zsad.types import Sample

_EPOCH, _LIMIT, _SCALE, _STEP, _START, AUGMENT = range(6)  # streams of random numbers that must not coincide


@dataclass(frozen=True, slots=True)
class Skipped:
    """Sample that is not trained on; `broken` when one of its files is the reason, not what is known of it."""

    sample: Sample
    reason: str
    broken: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    """Sample that is trained on: `digest` of the image file's content, the mask's pixels as packed bits."""

    sample: Sample
    digest: str
    mask: npt.NDArray[np.uint8] | None

    @property
    def group(self) -> tuple[str, str, int]:
        """Data set, class and label: what balanced sampling balances."""
        return self.sample.dataset, self.sample.class_name, int(self.sample.label or 0)


@dataclass(slots=True)
class TrainingSet:
    """Usable samples in a fixed order, masks in memory (1 bit a pixel).

    Attributes:
        items: the samples.
        size: rows and columns (H, W) of the masks.
        skipped: what was left out, with reasons.
    """

    items: list[Item]
    size: tuple[int, int]
    skipped: list[Skipped] = field(default_factory=list)

    def masks(self, rows: Sequence[int]) -> Tensor:
        """Return masks (B, H, W), float32 in {0, 1}; a normal sample's is empty."""
        height, width = self.size
        masks = np.zeros((len(rows), height * width), dtype=np.uint8)
        for position, row in enumerate(rows):
            packed = self.items[row].mask
            if packed is not None:
                masks[position] = np.unpackbits(packed, count=height * width)
        return torch.from_numpy(masks.reshape(-1, height, width)).float()

    def labels(self, rows: Sequence[int]) -> Tensor:
        """Return labels (B,), float32 in {0, 1}."""
        return torch.tensor([float(self.items[row].sample.label or 0) for row in rows])

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits over the content of images and masks, labels and classes, in order."""
        digest = hashlib.sha256(json.dumps(self.size).encode())
        for item in self.items:
            digest.update(json.dumps([item.digest, *item.group]).encode())
            digest.update(b"" if item.mask is None else item.mask.tobytes())
        return digest.hexdigest()[:16]

    def count(self, label: int) -> int:
        """Return the number of samples of a label."""
        return sum(item.sample.label == label for item in self.items)

    def without(self, bad: Sequence[Skipped]) -> TrainingSet:
        """Return the set without some samples.

        Raises:
            DataError: nothing to learn from is left.
        """
        removed = {entry.sample for entry in bad}
        items = [item for item in self.items if item.sample not in removed]
        return _checked(TrainingSet(items, self.size, [*self.skipped, *bad]))

    def order(self, config: TrainConfig, epoch: int) -> list[int]:
        """Return rows in the order of an epoch: a function of seed and epoch alone, as a resumed run needs it."""
        generator = stream(config.seed, _EPOCH, epoch)
        if config.balance == "none":
            return [int(row) for row in torch.randperm(len(self.items), generator=generator)]
        sizes = Counter(item.group for item in self.items)
        weights = torch.tensor([1.0 / sizes[item.group] for item in self.items], dtype=torch.float64)
        drawn = torch.multinomial(weights, len(self.items), replacement=True, generator=generator)
        return [int(row) for row in drawn]

    def scale_rows(self, config: TrainConfig, *, most: int) -> list[int]:
        """Return at most `most` rows of each label, chosen by the seed: those on which the colour scale is taken."""
        shuffled = torch.randperm(len(self.items), generator=stream(config.seed, _SCALE, 0)).tolist()
        chosen: list[int] = []
        for label in (0, 1):
            chosen += [row for row in shuffled if self.items[row].sample.label == label][:most]
        return sorted(chosen)


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """Input of a step: features of B images, masks (B, H, W) and labels (B,) in {0, 1}, on the method's device."""

    features: ImageFeatures
    masks: Tensor
    labels: Tensor


def chunked(rows: Sequence[Any], size: int) -> list[list[Any]]:
    """Cut a sequence into lists of `size`, the last one perhaps shorter."""
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


def stream(seed: int, purpose: int, index: int) -> torch.Generator:
    """Return a generator of its own for every (seed, purpose, index)."""
    return torch.Generator().manual_seed(stream_seed(seed, purpose, index))


def stream_seed(seed: int, purpose: int, index: int) -> int:
    """Return the seed of `stream`."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def start_generator(seed: int, device: torch.device) -> torch.Generator:
    """Return the generator that the adapter is drawn from before the first step."""
    return torch.Generator(device).manual_seed(stream_seed(seed, _START, 0))


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of the random numbers that one step of one process may draw (dropout, noise)."""
    return stream_seed(seed, _STEP, step * 65_536 + rank)


def prepare(samples: Sequence[Sample], *, config: TrainConfig, size: tuple[int, int]) -> TrainingSet:
    """Choose the usable samples and read their masks; bad ones are reported, not raised.

    Args:
        samples: labelled samples; anomalous ones need masks, as the segmentation losses do.
        config: for `limit_per_class`, `seed` and `workers`.
        size: rows and columns (H, W) of the masks.

    Raises:
        DataError: no sample is left that teaches what an anomaly is.
    """
    reasons = [(sample, _unusable(sample)) for sample in samples]
    skipped = [Skipped(sample, reason) for sample, reason in reasons if reason is not None]
    usable = select_samples(samples, config)
    with ThreadPoolExecutor(config.workers, thread_name_prefix="zsad-mask") as pool:
        read = list(pool.map(lambda sample: _item(sample, size), usable))
    items = [entry for entry in read if isinstance(entry, Item)]
    skipped += [entry for entry in read if isinstance(entry, Skipped)]
    return _checked(TrainingSet(items, size, skipped))


def _unusable(sample: Sample) -> str | None:
    if sample.label is None:
        return "no label: it is not known whether the image is normal"
    if sample.label == 1 and sample.mask is None:
        return "anomalous without a mask: the segmentation losses need one"
    return None


def select_samples(samples: Sequence[Sample], config: TrainConfig) -> list[Sample]:
    """Return what a training asks for, in the old order, before any file is read: at most `limit_per_class`."""
    samples = [sample for sample in samples if _unusable(sample) is None]
    if config.limit_per_class is None:
        return samples
    counts: Counter[tuple[str, str, int | None]] = Counter()
    rows = set()
    for row in torch.randperm(len(samples), generator=stream(config.seed, _LIMIT, 0)).tolist():
        group = (samples[row].dataset, samples[row].class_name, samples[row].label)
        counts[group] += 1
        if counts[group] <= config.limit_per_class:
            rows.add(row)
    return [sample for row, sample in enumerate(samples) if row in rows]


def _item(sample: Sample, size: tuple[int, int]) -> Item | Skipped:
    try:
        full = image_size(sample.image)
        digest = content_hash(sample.image)
        if digest is None:
            return Skipped(sample, f"{sample.image} cannot be read: check its permissions", broken=True)
        if sample.label == 0 or sample.mask is None:
            return Item(sample, digest, None)
        mask = load_mask(sample.mask, size=size, image=sample.image, image_size=full)
    except ZsadError as error:
        return Skipped(sample, str(error), broken=True)
    return Item(sample, digest, np.packbits(mask))


def _checked(training: TrainingSet) -> TrainingSet:
    if training.count(1):
        return training
    reasons = Counter(entry.reason.split(":")[0] for entry in training.skipped)
    common = (
        "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3)) or "the set has none"
    )
    count = len(training.items) + len(training.skipped)
    raise DataError(
        f"no anomalous image with a usable mask is left to train on, of {count} samples ({common}): "
        f"training needs images with label 1 and a mask each"
    )
