"""Comparison of patches with text, for every method: cached text, cosines, a two-way softmax, maps, scores, losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zsad.methods.settings import ScoreKind
from zsad.nn.filters import upsample
from zsad.nn.losses import dice_loss, focal_loss
from zsad.nn.maps import MapSpec


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Block without autocast, where a device has it: what is computed within keeps the type of its inputs."""
    return torch.autocast(device.type, enabled=False) if device.type in ("cpu", "cuda") else nullcontext()


class TextCache:
    """Tensors that are functions of parameters alone, each made once as long as these do not change."""

    def __init__(self) -> None:
        self._tensors: dict[str, tuple[tuple[object, ...], Tensor]] = {}

    def get(self, make: Callable[[], Tensor], *, sources: Iterable[Tensor], name: str = "") -> Tensor:
        """The result of `make`, cached until a source is written, moved, cast or replaced.

        Computed at every call where a gradient may be asked of a source.

        Args:
            make: a function of the sources and of nothing else that changes.
            sources: parameters and buffers, on one device.
            name: tells several tensors of one cache apart.
        """
        sources = tuple(sources)
        if torch.is_grad_enabled() and any(source.requires_grad for source in sources):
            return make()
        key = tuple(map(_stamp, sources))
        cached = self._tensors.get(name)
        if cached is None or cached[0] != key:
            # A cached tensor may later meet autograd or another precision than the present one.
            with torch.inference_mode(mode=False), torch.no_grad(), full_precision(sources[0].device):
                cached = self._tensors[name] = (key, make())
        return cached[1]


def _stamp(tensor: Tensor) -> tuple[object, ...]:
    """Return what changes when a tensor is written, moved, cast or replaced."""
    version = None if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, tensor.dtype, tensor.device


def patch_logits(patches: Tensor, text: Tensor, *, temperature: float, normalise: bool = True) -> Tensor:
    """`(<f, t_abnormal> - <f, t_normal>) / temperature` (B, L, N): the logits of the two-way softmax.

    Args:
        patches: (B, L, N, D), not normalised.
        text: (B, L, 2, D) or (1, L, 2, D), normal first; of length one if the similarity is to be a cosine.
        temperature: of the softmax.
        normalise: whether patches are brought to length one.
    """
    direction = (text[..., 1, :] - text[..., 0, :]) / temperature
    logits = (patches @ direction.unsqueeze(-1)).squeeze(-1)
    # Dividing the products instead of the patches spares a copy of all patches.
    return logits / patches.norm(dim=-1).clamp_min(1e-12) if normalise else logits


def image_probability(cls: Tensor, text: Tensor, *, temperature: float) -> Tensor:
    """Two-way softmax (B,) of the global feature (B, D) and text (B, 2, D), abnormal part."""
    direction = (text[..., 1, :] - text[..., 0, :]) / temperature
    return (F.normalize(cls, dim=-1) * direction).sum(dim=-1).sigmoid()


def layer_maps(logits: Tensor, spec: MapSpec, *, size: tuple[int, int]) -> Tensor:
    """Maps (B, L, H, W) of the layers' grids (B, L, h, w) at any size, without smoothing."""
    if spec.order == "after_softmax":
        return upsample(logits.sigmoid(), size, align_corners=spec.align_corners)
    return upsample(logits, size, align_corners=spec.align_corners).sigmoid()


def map_maximum(maps: Tensor) -> Tensor:
    """Maximum (B,) of the mean of the layers' maps (B, L, H, W)."""
    return maps.mean(dim=1).amax(dim=(-2, -1))


def join_scores(highest: Tensor, probability: Tensor, *, kind: ScoreKind) -> Tensor:
    """Scores (B,) of the maps' maxima (B,) and the global features' probabilities (B,): one, or the mean of both."""
    if kind == "map_and_global":
        return (highest + probability) / 2
    return highest if kind == "map" else probability


def weighted_terms(**terms: tuple[float, Tensor]) -> dict[str, Tensor]:
    """Loss terms by name, each times its weight; of a term of weight 0 also "raw_NAME", which is only logged."""
    weighted: dict[str, Tensor] = {}
    for name, (weight, term) in terms.items():
        weighted[name] = weight * term
        if not weight:
            weighted[f"raw_{name}"] = term.detach()
    return weighted


def segmentation_losses(
    maps: Tensor, masks: Tensor, *, per_layer: bool = True, both_channels: bool = True
) -> dict[str, Tensor]:
    """Dice, averaged over images, and Focal of maps.

    Args:
        maps: (B, L, H, W) probability of abnormal.
        masks: (B, H, W) in {0, 1}.
        per_layer: sum both losses over the layers' maps, or take them of the mean map.
        both_channels: add the Dice of the normal channel.
    """
    if not per_layer:
        maps = maps.mean(dim=1, keepdim=True)
    layers, masks = maps.shape[1], masks.to(maps.dtype).unsqueeze(1)
    dice = dice_loss(maps, masks)
    if both_channels:
        dice = dice + dice_loss(1 - maps, 1 - masks)
    return {"dice": dice.mean(dim=0).sum(), "focal": layers * focal_loss(maps, masks)}


def distinct_names(object_names: Sequence[str] | None) -> tuple[list[str], Tensor]:
    """Distinct object classes of a batch, and the index (B,) of each image's class among them.

    Where all images are of one class there is no index to look up: it is empty, whatever the batch.

    Args:
        object_names: of `ImageFeatures.object_names`; None counts as "object" throughout.
    """
    object_names = ["object"] if object_names is None else object_names
    distinct = list(dict.fromkeys(object_names))
    index = [distinct.index(name) for name in object_names] if len(distinct) > 1 else []
    return distinct, torch.tensor(index, dtype=torch.long)


def of_images(text: Tensor, index: Tensor, *, batch: int) -> Tensor:
    """Text (B, ...) of B images, of text (W, ...) of the classes and the index that `distinct_names` gives."""
    if not len(index):
        return text.expand(batch, *text.shape[1:])
    return text[index.to(text.device)]
