"""Images compared with other images: normal references (few-shot), or the others of a batch (mutual scoring).

A method says what looks like damage; a comparison says what the other images do not have. Each patch's distance to the
others becomes a probability: standardised by how far patches of normal images are from each other, then

    p = sigmoid((d - mean) / deviation - 3)

so that one half lies three deviations above the mean of normal patches. As in WinCLIP+ (Jeong et al., CVPR 2023, Eq. 6)
and APRIL-GAN (Chen et al., 2023, section 2.3) both maps count the same, and so do both scores:

    map = (zero-shot map + few-shot map) / 2,   score = (zero-shot score + max few-shot map) / 2

Those papers take the distance itself for p; with `scale` "distance" so does this one (halved, as in WinCLIP+ Eq. 5, so
that it lies in [0, 1]). In a stored grid the few-shot map stands as further layers, as many as the method has.

What is compared: the texture of a convolutional stem where the tower has one, else the patch tokens of the tapped
layers, whose distances are averaged.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zsad.nn.filters import render_map
from zsad.nn.memory import unit

if TYPE_CHECKING:
    from zsad.clip.vision import PatchTokens
    from zsad.methods.base import ImageFeatures, Method, Output

Scale = Literal["standard", "distance"]
Statistics = tuple[tuple[float, float], ...]
"""For each kind of features mean and deviation of distances between normal images."""

_DEVIATIONS = 3.0
_EPSILON = 1e-4  # probabilities stay so far from 0 and 1, as logits are stored


class Comparison(ABC):
    """Other images, to which images are compared.

    Attributes:
        statistics: of normal distances, one pair for each kind of features.
        scale: what becomes of a distance.
    """

    statistics: Statistics
    scale: Scale

    @abstractmethod
    def distances(self, kinds: Sequence[Tensor], key: bytes) -> list[Tensor]:
        """Distances (N,) of one image's patches for each kind of features (N, C), of length one.

        Args:
            kinds: as `patch_features` gives them, for one image.
            key: by `picture_key`; an image is never compared with itself.
        """

    def predict(
        self,
        method: Method,
        batch: Tensor,
        pixels: npt.NDArray[np.float32],
        object_names: tuple[str, ...] | None,
    ) -> Output:
        """Return the output of a method with this comparison fused in; see `zsad.backends.torch.Comparator`."""
        features, kinds = look_closely(method, batch)
        output = method.predict(replace(features, object_names=object_names))
        return fuse(method, output, self, kinds, [picture_key(image) for image in pixels])

    @abstractmethod
    def digest(self) -> str:
        """16 hexadecimal digits that are the same for the same comparison."""

    def probabilities(self, kinds: Sequence[Tensor], key: bytes) -> Tensor:
        """Return the probability (N,), in [0, 1], that each patch is abnormal by the comparison."""
        distances = self.distances(kinds, key)
        if self.scale == "distance":
            return torch.stack(distances).mean(dim=0) / 2
        standard = [
            (d - mean) / deviation for d, (mean, deviation) in zip(distances, self.statistics, strict=True)
        ]
        return (torch.stack(standard).mean(dim=0) - _DEVIATIONS).sigmoid()


def picture_key(pixels: npt.NDArray[np.float32]) -> bytes:
    """Return the key by which an image (3, H, W) is known again: a hash of what the model sees of it."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).digest()


@torch.no_grad()
def look_closely(method: Method, pixels: Tensor) -> tuple[ImageFeatures, list[Tensor]]:
    """Return what a method asks of pixels (B, 3, H, W), and the kinds of features (B, N, C) that comparisons ask."""
    cut = method.clip.visual.patch_tokens(pixels)
    features = method.features(cut)
    if method.fusion is not None:
        features = method.with_cues(features, cut)
    return features, patch_features(method, features, cut)


@torch.no_grad()
def patch_features(method: Method, features: ImageFeatures, cut: PatchTokens) -> list[Tensor]:
    """Kinds of features (B, N, C) of length one: the stem's texture, or each tapped layer's patch tokens."""
    if cut.texture is not None:
        return [unit(cut.texture)]
    count = cut.grid[0] * cut.grid[1]
    if method.feature_kind in ("projected", "normed", "tokens"):
        return [unit(features.patches[:, layer, -count:]) for layer in range(features.patches.shape[1])]
    # Windows or a stream before the taps: the tower is read once more.
    read = method.clip.visual(cut, taps=method.config.layers, **method.position_mode())
    return [unit(method.clip.visual.ln_post(tap[:, 1:])) for tap in read.taps]


def fuse(
    method: Method, output: Output, comparison: Comparison, kinds: Sequence[Tensor], keys: Sequence[bytes]
) -> Output:
    """A method's output (of a batch) and what a comparison says, as one output."""
    grid = (output.logits.shape[-2], output.logits.shape[-1])
    rows = [comparison.probabilities([kind[index] for kind in kinds], key) for index, key in enumerate(keys)]
    few = torch.stack(rows).reshape(len(rows), 1, *grid).clamp(_EPSILON, 1 - _EPSILON)
    few = few.logit().to(output.logits.dtype)
    layers = output.logits.shape[1]
    highest = render_map(few, method.spec_of(grid), smooth=False).amax(dim=(-2, -1))
    terms = {**(output.terms or {}), "method": output.score, "compared": highest}
    logits = torch.cat([output.logits, few.expand(-1, layers, -1, -1)], dim=1)
    return replace(output, logits=logits, score=(output.score + highest) / 2, terms=terms)
