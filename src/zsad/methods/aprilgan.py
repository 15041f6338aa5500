"""APRIL-GAN (Chen et al., CVPR 2023 VAND challenge, arXiv 2305.17382), zero-shot: linear layers bring patches to text.

Text is the mean over every state phrase in every template, for a normal and an abnormal object of each class. The
patch tokens F_l of block l meet it through one linear layer each, the only part that learns:

    F'_l  = W_l F_l + b_l
    M     = mean over l of softmax(Up(<F'_l, F_T>) / tau),   lengths of F'_l and F_T one, tau = 0.01
    score = softmax(<F_cls, F_T> / tau)_a,                    F_cls CLIP's own image embedding
    loss  = sum over l of Focal(M_l, m) + Dice(M_l, m)

Where paper and published code differ or the paper is silent, the code is followed: F_l is the residual stream behind
block l, without the final norm; the layers have biases; OpenAI's weights run with plain GELU, as a side effect of
building the tower at another resolution (`activation`); position embeddings are resized bicubically with antialiasing.

Training there is 3 epochs on MVTec AD, a fifth of its images being mosaics of four, and 15 on VisA without mosaics; the
defaults are the latter's (mosaics: `augment` of the training). Batches of 8, Adam at 1e-3 with moments (0.5, 0.999), no
schedule.

Deviations: M is the mean over layers, not the sum; maps rank pixels alike. The published score learns nothing, so it
has no loss; a score of which the map is a part (`score`, not the paper's) adds its cross-entropy. The memory banks of
the few-shot track are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from zsad.clip.vision import Pixels
from zsad.clip.weights import Backbone
from zsad.methods.base import (
    COMMON_TRAINING,
    ImageFeatures,
    Internals,
    Method,
    MethodConfig,
    Output,
    PaperModule,
)
from zsad.methods.sentences import ClassText
from zsad.methods.settings import (
    Activation,
    AlignCorners,
    ClassNames,
    Positions,
    Score,
    Sigma,
    ValueValue,
)
from zsad.methods.similarity import (
    full_precision,
    image_probability,
    join_scores,
    layer_maps,
    map_maximum,
    patch_logits,
    segmentation_losses,
)
from zsad.nn.losses import score_loss
from zsad.prompts import published_prompts


class AprilGANConfig(MethodConfig):
    """Settings of APRIL-GAN; the defaults are those of its published code."""

    retired: ClassVar[Mapping[str, Any]] = {"tokens": "raw", "init": "linear"}

    value_value: ValueValue = False
    activation: Activation = "gelu"
    positions: Positions = "bicubic_antialiased"
    align_corners: AlignCorners = True
    sigma: Sigma = 0.0
    tau: float = Field(default=0.01, gt=0, description="Temperature of patches and image against text.")
    names: ClassNames = "data"
    score: Score = "global"


class AprilGAN(Method):
    """APRIL-GAN on a backbone: a linear layer for each tapped block."""

    name = "aprilgan"
    config_class = AprilGANConfig
    feature_kind = "tokens"
    feature_fields = (
        "layers",
        "image_size",
        "value_value",
        "value_value_from",
        "activation",
        "positions",
    )
    training_defaults: ClassVar[Mapping[str, Any]] = COMMON_TRAINING
    config: AprilGANConfig

    def __init__(self, config: AprilGANConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        shape = self.clip.config
        self.weight = nn.Parameter(torch.empty(len(config.layers), shape.embed_dim, shape.vision.width))
        self.bias = nn.Parameter(torch.empty(len(config.layers), shape.embed_dim))
        self._text = ClassText(backbone, partial(published_prompts, self.name), names=config.names)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the layers anew, as PyTorch draws linear layers."""
        bound = 1 / math.sqrt(self.weight.shape[-1])
        for parameter in (self.weight, self.bias):
            parameter.uniform_(-bound, bound, generator=generator)

    @torch.no_grad()
    def features(self, pixels: Pixels) -> ImageFeatures:
        """Patch tokens of the taps and the class token as the stream has them."""
        return ImageFeatures(*self._read_tower(pixels))

    def paper_modules(self) -> dict[str, PaperModule]:
        """The linear layers, its only learned part, against CLIP's own projection."""
        clip = {"weight": self.clip.visual.proj.T, "bias": 0.0}
        return {"linear layers": PaperModule("W_l = CLIP's projection, b_l = 0", clip, ("weight", "bias"))}

    def internals(self, features: ImageFeatures) -> Internals:
        """Text of every image's class."""
        return Internals(self._text(features.object_names, batch=features.cls.shape[0]))

    def forward(self, features: ImageFeatures) -> Output:
        """Grids before Up, and scores."""
        logits, whole = self._compare(features)
        if self.config.score == "global":
            return Output(logits, whole)
        maps = layer_maps(logits, self.map_spec, size=self.spec_of(features.grid).size)
        highest = map_maximum(maps)
        score = join_scores(highest, whole, kind=self.config.score)
        return Output(logits, score, terms={"map": highest, "global": whole})

    def losses(self, features: ImageFeatures, masks: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Focal and Dice of every layer's map, and the score's cross-entropy where the map is part of it."""
        logits, whole = self._compare(features)
        with full_precision(logits.device):
            maps = layer_maps(logits, self.map_spec, size=(masks.shape[-2], masks.shape[-1]))
            terms = segmentation_losses(maps, masks, both_channels=False)
            if self.config.score != "global":
                score = join_scores(map_maximum(maps), whole, kind=self.config.score)
                terms["classify"] = score_loss(score, labels)
        return terms

    def _compare(self, features: ImageFeatures) -> tuple[Tensor, Tensor]:
        """Grids (B, L, h, w) and the image's probability (B,)."""
        tau = self.config.tau
        text = self._text(features.object_names, batch=features.cls.shape[0])
        patches, cls = (tokens.to(text.dtype) for tokens in (features.patches, features.cls))
        # One by one: a single product of all layers would copy the weights for every image.
        layers = zip(patches.unbind(1), self.weight.unbind(0), self.bias.unbind(0), strict=True)
        projected = [F.linear(tokens, weight, bias) for tokens, weight, bias in layers]
        # Mixed precision ends here: logits are differences over a small temperature.
        with full_precision(text.device):
            grids = [
                patch_logits(tokens.to(text.dtype)[:, None], text[:, None], temperature=tau)
                for tokens in projected
            ]
            whole = image_probability(self.project_cls(cls), text, temperature=tau)
        return torch.unflatten(torch.cat(grids, dim=1), -1, features.grid), whole
