"""One pass over images that counts which experts a method chooses; memory does not grow with the images.

A pool whose patches are routed (`Method.token_routing`) is counted in patches, any other (`Output.routing`) in images.

A patch is normal where no pixel of it is marked. It is anomalous where any is (the rule "any"), or where at least half
are ("majority"; where a defect nowhere covers half a patch, the one that it covers most) and left out in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from zsad.errors import ConfigError, ImageError, ZsadError
from zsad.images.inputs import read_ahead
from zsad.images.masks import load_mask
from zsad.methods.base import ImageFeatures, Method
from zsad.predict.pipeline import OnError, Ready, read
from zsad.predict.view import Model, View
from zsad.types import Sample

PatchRule = Literal["any", "majority"]
Unit = Literal["image", "patch"]
Weights = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

GROUPS = ("normal", "anomalous", "unlabelled")
REGIONS = ("normal pixels", "anomalous pixels")
_PICTURE_SIDE = 360


@dataclass(slots=True)
class Usage:
    """Counts of the choices of a pool's experts, over some images or patches.

    Attributes:
        dataset: name of the data set.
        group: one of `GROUPS`, or of `REGIONS`.
        pool: name of the pool.
        unit: counted thing.
        count: images or patches.
        images: images that they are of.
        chosen: (L, E) times that an expert was among the chosen, its weight above zero.
        strongest: (L, E) times that it had the greatest weight.
        weight: (L, E) sum of its weights.
    """

    dataset: str
    group: str
    pool: str
    unit: Unit
    count: int
    images: int
    chosen: npt.NDArray[np.int64]
    strongest: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float64]

    def add(self, weights: Weights) -> None:
        """Add the weights (n, L, E) of the images or patches of one image more."""
        if not len(weights):
            return
        self.count += len(weights)
        self.images += 1
        self.chosen += (weights > 0).sum(axis=0)
        winners = weights.argmax(axis=-1)
        self.strongest += (winners[..., None] == np.arange(weights.shape[-1])).sum(axis=0)
        self.weight += weights.sum(axis=0, dtype=np.float64)

    def share(self, kind: Literal["chosen", "strongest", "weight"]) -> npt.NDArray[np.float64]:
        """Return (L, E) counts or sums, over the number of images or patches; NaN where there are none."""
        values: npt.NDArray[np.float64] = getattr(self, kind) / (self.count or math.nan)
        return values

    def effective_experts(self) -> npt.NDArray[np.float64]:
        """Return (L,) the number of experts that share the load: exp of the mean weights' entropy, in [1, E]."""
        share = self.share("weight")
        share = share / share.sum(axis=-1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(share > 0, share * np.log(share), 0)
        return np.asarray(np.exp(-terms.sum(axis=-1)), dtype=np.float64)


@dataclass(slots=True)
class Pool:
    """A pool of experts: its unit, the names of its layers and of its experts."""

    unit: Unit
    layers: tuple[str, ...]
    experts: tuple[str, ...]


@dataclass(slots=True)
class PatchPicture:
    """An image whose patches show which expert is strongest.

    Attributes:
        sample: the image.
        picture: the image, made small.
        strongest: for each pool the index of the strongest expert, (L, h, w).
        defect: (h, w) patches that count as anomalous; None where not known.
    """

    sample: Sample
    picture: Image.Image
    strongest: dict[str, npt.NDArray[np.intp]]
    defect: Bools | None


@dataclass(slots=True)
class Collected:
    """Counts and pictures of one pass; `skipped` are files that could not be used, with reasons."""

    pools: dict[str, Pool] = field(default_factory=dict)
    usage: dict[tuple[str, str, str], Usage] = field(default_factory=dict)
    regions: dict[tuple[str, str, str], Usage] = field(default_factory=dict)
    pictures: list[PatchPicture] = field(default_factory=list)
    images: int = 0
    without_mask: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)


class RoutingCollector:
    """Counts routing batch by batch.

    Args:
        method: in evaluation mode.
        rule: when a patch is anomalous.
        pictures: samples of which the patches' experts are kept.
        on_error: called with each sample that cannot be used.
    """

    def __init__(
        self, method: Method, *, rule: PatchRule, pictures: Sequence[Sample], on_error: OnError
    ) -> None:
        self.method, self.rule, self.on_error = method, rule, on_error
        self.pictured = {id(sample) for sample in pictures}
        self.collected = Collected()

    def run(
        self,
        samples: Iterable[Sample],
        model: Model,
        *,
        batch_size: int,
        progress: Callable[[int], None],
    ) -> Collected:
        """Count the samples' routing, read as `model` wants them; `progress` is called with the images done.

        Raises:
            ConfigError: the method routes nothing, or its weights have impossible shapes.
        """

        def attempt(sample: Sample) -> Ready | ZsadError:
            side = _PICTURE_SIDE if id(sample) in self.pictured else None
            try:
                return read(sample, model, View(), draw_side=side)
            except ZsadError as error:
                return error

        done = 0
        with closing(read_ahead(samples, attempt, ahead=3 * batch_size, workers=2)) as results:
            while group := list(islice(results, batch_size)):
                for sample, result in group:
                    if isinstance(result, ZsadError):
                        self._skip(sample, result)
                if batch := [result for _, result in group if isinstance(result, Ready)]:
                    self._add(batch)
                done += len(group)
                progress(done)
        return self.collected

    def _skip(self, sample: Sample, error: ZsadError) -> None:
        self.collected.skipped.append((str(sample.image), str(error)))
        self.on_error(sample, error)

    def _add(self, batch: Sequence[Ready]) -> None:
        images, patches, grid = self._route(batch)
        if not images and not patches:
            raise ConfigError(f"{no_experts(self.method)}: its configuration routes nothing")
        self._register(images, "image")
        self._register(patches, "patch")
        for row, ready in enumerate(batch):
            assert ready.sample is not None  # all are of a data set
            sample = ready.sample
            weights_of = {pool: weights[row] for pool, weights in {**images, **patches}.items()}
            if not all(np.isfinite(weights).all() for weights in weights_of.values()):
                overflow = (
                    f"{sample.image} has no finite routing: the model overflowed on it; try --device cpu"
                )
                self._skip(sample, ImageError(overflow))
                continue
            self.collected.images += 1
            group = "unlabelled" if sample.label is None else GROUPS[sample.label]
            for pool in images:
                self._usage(self.collected.usage, sample.dataset, group, pool).add(weights_of[pool][None])
            if patches:
                tokens = {pool: weights_of[pool] for pool in patches}
                self._add_patches(ready, sample, group, tokens, grid)

    def _add_patches(
        self, ready: Ready, sample: Sample, group: str, tokens: dict[str, Weights], grid: tuple[int, int]
    ) -> None:
        """Counts of an image's patch weights (L, N, E), of its regions, and its picture where asked for."""
        by_patch = {pool: weights.transpose(1, 0, 2) for pool, weights in tokens.items()}
        for pool, weights in by_patch.items():
            self._usage(self.collected.usage, sample.dataset, group, pool).add(weights)
        regions = self._regions(sample, grid, size=ready.size)
        if regions is not None:
            for pool, weights in by_patch.items():
                for region, which in zip(REGIONS, regions, strict=True):
                    usage = self._usage(self.collected.regions, sample.dataset, region, pool)
                    usage.add(weights[which.reshape(-1)])
        if ready.picture is not None:
            strongest = {pool: weights.argmax(axis=-1).reshape(-1, *grid) for pool, weights in tokens.items()}
            self.collected.pictures.append(
                PatchPicture(sample, ready.picture, strongest, regions and regions[1])
            )

    def _regions(
        self, sample: Sample, grid: tuple[int, int], *, size: tuple[int, int]
    ) -> tuple[Bools, Bools] | None:
        """Normal and anomalous patches (h, w) of a sample; None where it does not tell."""
        if sample.label == 0:
            return np.ones(grid, dtype=np.bool_), np.zeros(grid, dtype=np.bool_)
        if sample.mask is None:
            self.collected.without_mask += 1
            return None
        try:
            mask = load_mask(sample.mask, image=sample.image, image_size=size)
        except ZsadError as error:
            self._skip(sample, error)
            return None
        return patch_regions(mask, grid, rule=self.rule)

    @torch.inference_mode()
    def _route(
        self, batch: Sequence[Ready]
    ) -> tuple[dict[str, Weights], dict[str, Weights], tuple[int, int]]:
        """Weights (B, L, E) of pools that route images, (B, L, N, E) of those that route patches, and the grid."""
        weight = next(self.method.parameters())
        pixels = torch.from_numpy(np.stack([ready.pixels for ready in batch]))
        features = self.method.features(pixels.to(weight.device, weight.dtype))
        features = replace(features, object_names=tuple(ready.object_name or "object" for ready in batch))
        patches = _arrays(self.method.token_routing(features))
        images = _arrays(self.method(features).routing or {})
        images = {pool: weights for pool, weights in images.items() if pool not in patches}
        self._check(images, patches, features)
        return images, patches, features.grid

    def _check(
        self, images: dict[str, Weights], patches: dict[str, Weights], features: ImageFeatures
    ) -> None:
        """Raise a ConfigError where weights have not the shape that the methods' interface states."""
        batch, tokens = len(features.cls), features.grid[0] * features.grid[1]
        checks = [
            (
                "Output.routing",
                pool,
                weights,
                weights.ndim == 3 and len(weights) == batch,
                f"(B={batch}, L, E)",
            )
            for pool, weights in images.items()
        ]
        expected = f"(B={batch}, L, N={tokens}, E) without the class token"
        for pool, weights in patches.items():
            right = weights.ndim == 4 and len(weights) == batch and weights.shape[2] == tokens
            checks.append(("token_routing", pool, weights, right, expected))
        for source, pool, weights, right, expected in checks:
            if not right:
                raise ConfigError(
                    f"{source} of method {self.method.name!r} has shape {weights.shape} for the pool {pool!r}, "
                    f"expected {expected}; correct the method"
                )

    def _register(self, routing: Mapping[str, Weights], unit: Unit) -> None:
        for pool, weights in routing.items():
            if pool not in self.collected.pools:
                layers, experts = weights.shape[1], weights.shape[-1]
                names = expert_names(self.method, pool, experts)
                self.collected.pools[pool] = Pool(unit, layer_names(self.method, layers), names)

    def _usage(self, table: dict[tuple[str, str, str], Usage], dataset: str, group: str, pool: str) -> Usage:
        key = (dataset, group, pool)
        if key not in table:
            known = self.collected.pools[pool]
            shape = (len(known.layers), len(known.experts))
            counts = [np.zeros(shape, np.int64) for _ in range(2)]
            table[key] = Usage(*key, known.unit, 0, 0, counts[0], counts[1], np.zeros(shape))
        return table[key]


def _arrays(routing: Mapping[str, torch.Tensor]) -> dict[str, Weights]:
    return {pool: weights.float().cpu().numpy() for pool, weights in routing.items()}


def no_experts(method: Any) -> str:
    """Return the beginning of an error: the method has no experts, and those that have."""
    from zsad.methods.registry import METHODS

    able = ", ".join(name for name, entry in METHODS.items() if entry.routes)
    return f"method {method.name!r} has no experts to explain, unlike {able}"


def layer_names(method: Method, count: int) -> tuple[str, ...]:
    """Return names of the `count` layers of a pool: the tapped blocks where there are as many, else their positions."""
    config = method.config
    for blocks in (config.layers, getattr(config, "prompted", ())):
        if len(blocks) == count:
            return tuple(f"layer {block}" for block in blocks)
    return ("all layers",) if count == 1 else tuple(f"routing {index + 1}" for index in range(count))


def expert_names(method: Method, pool: str, count: int) -> tuple[str, ...]:
    """Return the method's own names of a pool's experts, or E1, E2, ..."""
    names = method.expert_labels().get(pool, ())
    return tuple(names) if len(names) == count else tuple(f"E{index + 1}" for index in range(count))


def patch_regions(mask: Bools, grid: tuple[int, int], *, rule: PatchRule) -> tuple[Bools, Bools]:
    """Return normal and anomalous patches (h, w) of a mask (H, W); see the module's text for the rules."""
    covered = Image.fromarray(mask.astype(np.float32)).resize(grid[::-1], Image.Resampling.BOX)
    share = np.asarray(covered)
    touched = share > 1e-6  # a float's error must decide neither about nothing nor about one half
    if rule == "any":
        return ~touched, touched
    marked = share >= 0.5 - 1e-6
    if touched.any() and not marked.any():
        marked = share == share.max()
    return ~touched, np.asarray(marked)


def choose_pictures(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Return `count` samples to show: half normal, half anomalous, data sets in turn, evenly spread over each.

    Where one kind is short the other fills up; unlabelled samples only where nothing else is left.
    """
    queues = {
        label: _in_turn([sample for sample in samples if sample.label == label], count)
        for label in (0, 1, None)
    }
    half = count // 2
    anomalous = queues[1][: max(count - half, count - len(queues[0]))]
    normal = queues[0][: count - len(anomalous)]
    chosen = [*normal, *anomalous]
    return chosen + queues[None][: count - len(chosen)]


def _in_turn(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most `count` samples, of the data sets in turn, evenly spread over each."""
    sets: dict[str, list[Sample]] = {}
    for sample in samples:
        sets.setdefault(sample.dataset, []).append(sample)
    spread = []
    for of_set in sets.values():
        number = min(len(of_set), math.ceil(count / len(sets)))
        spread.append([of_set[(2 * index + 1) * len(of_set) // (2 * number)] for index in range(number)])
    longest = max((len(of_set) for of_set in spread), default=0)
    return [of_set[index] for index in range(longest) for of_set in spread if index < len(of_set)][:count]
