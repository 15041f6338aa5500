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
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from zsad.clip.presets import Preset
from zsad.clip.vision import Pixels
from zsad.clip.weights import Backbone
from zsad.errors import ConfigError
from zsad.methods.base import COMMON_TRAINING, ImageFeatures, Method, MethodConfig, Output
from zsad.methods.sentences import ClassText
from zsad.methods.similarity import (
    full_precision,
    image_probability,
    layer_maps,
    patch_logits,
    segmentation_losses,
)
from zsad.nn.losses import score_loss


class AprilGANConfig(MethodConfig):
    """All settings of APRIL-GAN; the defaults are those of its published code."""

    value_value: bool = Field(default=False, description=MethodConfig.model_fields["value_value"].description)
    activation: Literal["as_trained", "gelu", "quick_gelu"] = Field(
        default="gelu", description=MethodConfig.model_fields["activation"].description
    )
    positions: Literal["bilinear", "bicubic", "bicubic_antialiased"] = Field(
        default="bicubic_antialiased", description=MethodConfig.model_fields["positions"].description
    )
    align_corners: bool = Field(
        default=True, description=MethodConfig.model_fields["align_corners"].description
    )
    sigma: float = Field(default=0.0, ge=0, description=MethodConfig.model_fields["sigma"].description)
    tokens: Literal["raw", "normed"] = Field(
        default="raw", description="Patch tokens without the tower's final norm, or behind it."
    )
    init: Literal["linear", "projection"] = Field(
        default="linear",
        description="Start the layers at random, or at the tower's own projection (for normed tokens).",
    )
    tau: float = Field(default=0.01, gt=0, description="Temperature of patches and image against text.")
    names: Literal["data", "object"] = Field(
        default="data", description="Name the images' own object classes in the prompts, or say object."
    )
    score: Literal["global", "map_and_global", "map"] = Field(
        default="global",
        description="Probability of the whole image, the map's maximum, or the mean of both.",
    )

    @model_validator(mode="after")
    def _possible(self) -> AprilGANConfig:
        if self.init == "projection" and self.tokens == "raw":
            raise ConfigError(
                "init = 'projection' needs tokens = 'normed': the tower's projection follows its final norm"
            )
        return self

    @classmethod
    def for_backbone(cls, preset: Preset, **settings: Any) -> AprilGANConfig:
        """As for every method, but on the ordinary path, not the value-value branch."""
        return super().for_backbone(preset, **{"value_value": False, **settings})


class AprilGAN(Method):
    """The method on a backbone: a linear layer for each tapped block."""

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
        "tokens",
    )
    training_defaults: ClassVar[Mapping[str, Any]] = COMMON_TRAINING
    config: AprilGANConfig

    def __init__(self, config: AprilGANConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        shape = self.clip.config
        self.weight = nn.Parameter(torch.empty(len(config.layers), shape.embed_dim, shape.vision.width))
        self.bias = nn.Parameter(torch.empty(len(config.layers), shape.embed_dim))
        self._text = ClassText(backbone, self.name, names=config.names)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Starts the layers anew: as PyTorch draws linear layers, or at the tower's projection."""
        if self.config.init == "projection":
            self.weight.copy_(self.clip.visual.proj.T.expand_as(self.weight))
            self.bias.zero_()
            return
        bound = 1 / math.sqrt(self.weight.shape[-1])
        for parameter in (self.weight, self.bias):
            parameter.uniform_(-bound, bound, generator=generator)

    @torch.no_grad()
    def features(self, pixels: Pixels) -> ImageFeatures:
        """Patch tokens of the taps as the stream has them, or normed, and the class token as the stream has it."""
        if self.config.tokens == "normed":
            return self.normed_features(pixels)
        return ImageFeatures(*self._read_tower(pixels))

    def forward(self, features: ImageFeatures) -> Output:
        """Grids before Up, and scores."""
        logits, whole = self._compare(features)
        if self.config.score == "global":
            return Output(logits, whole)
        peak = self._peak(layer_maps(logits, self.map_spec, size=self.spec_of(features.grid).size))
        return Output(logits, self._score(peak, whole), terms={"map": peak, "global": whole})

    def losses(self, features: ImageFeatures, masks: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Focal and Dice of every layer's map, and the score's cross-entropy where the map is part of it."""
        logits, whole = self._compare(features)
        with full_precision(logits.device):
            maps = layer_maps(logits, self.map_spec, size=(masks.shape[-2], masks.shape[-1]))
            terms = segmentation_losses(maps, masks, per_layer=True, both_channels=False)
            if self.config.score != "global":
                terms["classify"] = score_loss(self._score(self._peak(maps), whole), labels)
        return terms

    def _compare(self, features: ImageFeatures) -> tuple[Tensor, Tensor]:
        """Grids (B, L, h, w) and the image's probability (B,)."""
        tau = self.config.tau
        text = self._text(features.words, batch=features.cls.shape[0])
        patches, cls = (tokens.to(text.dtype) for tokens in (features.patches, features.cls))
        # One by one: a single product of all layers would copy the weights for every image.
        layers = zip(patches.unbind(1), self.weight.unbind(0), self.bias.unbind(0), strict=True)
        projected = [F.linear(tokens, weight, bias) for tokens, weight, bias in layers]
        # Mixed precision ends here: logits are differences over a small temperature.
        with full_precision(text.device):
            found = [
                patch_logits(tokens.to(text.dtype)[:, None], text[:, None], temperature=tau)
                for tokens in projected
            ]
            whole = image_probability(self.project_cls(cls), text, temperature=tau)
        return torch.unflatten(torch.cat(found, dim=1), -1, features.grid), whole

    def _peak(self, maps: Tensor) -> Tensor:
        """The maximum (B,) of the layers' mean map."""
        return maps.mean(dim=1).amax(dim=(-2, -1))

    def _score(self, peak: Tensor, whole: Tensor) -> Tensor:
        """Scores (B,) of the map's maximum and the image's probability, where the map is part of them."""
        return peak if self.config.score == "map" else (peak + whole) / 2
