"""AnomalyCLIP (Zhou et al., ICLR 2024, arXiv 2310.18961): one learned prompt pair that names no object.

A frozen CLIP meets two prompts, `[V_1] .. [V_12] object .` and `[W_1] .. [W_12] damaged object .`, whose V and W
are learned, together with tokens that replace others inside the text tower (`methods/learned_prompts.py`). With t_n
and t_a their embeddings, F the patch tokens of the value-value branch behind the last block and f the global
feature, all of length one:

    S   = softmax(<F, t> / tau) over both states,   M = Up(S_a), smoothed
    s   = softmax(<f, t> / tau), abnormal part
    loss = CE(<f, t> / tau, y) + lambda (Focal(Up S, m) + Dice(Up S_a, m) + Dice(Up S_n, 1 - m)),   lambda = 4

One tap with lambda = 4 is what the released code trains: its four taps of the paper were one tensor four times. The
released code rounds the tokens inside the tower through half precision; here they keep their precision.

`image_logits`, `image_score` and `pair_losses` also serve MPA, which differs in its prompts and levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from zsad.clip.weights import Backbone
from zsad.methods.base import COMMON_TRAINING, ImageFeatures, Internals, Method, Output, PaperModule
from zsad.methods.learned_prompts import DeepPromptConfig, PromptLearner
from zsad.methods.settings import Layers, Order, Score, ScoreKind
from zsad.methods.similarity import (
    full_precision,
    join_scores,
    layer_maps,
    map_maximum,
    patch_logits,
    segmentation_losses,
)
from zsad.nn.losses import score_loss
from zsad.nn.maps import MapSpec


class AnomalyCLIPConfig(DeepPromptConfig):
    """Settings of AnomalyCLIP; the defaults are those of the released code."""

    layers: Layers = (24,)
    map_order: Order = "after_softmax"
    context_tokens: int = Field(default=12, ge=1, description="Learnable tokens of a prompt.")
    class_word: str = Field(default="object", description="Name of the object in the prompts.")
    tau: float = Field(default=0.07, gt=0, description="Temperature of patches against text.")
    tau_prime: float = Field(
        default=0.07, gt=0, description="Temperature of the global feature against text."
    )
    local_weight: float = Field(
        default=4.0, ge=0, description="Weight lambda of the map's losses against the score's."
    )
    score: Score = "global"


class AnomalyCLIP(Method):
    """AnomalyCLIP on a backbone: see the module's text for the equations."""

    name = "anomalyclip"
    config_class = AnomalyCLIPConfig
    training_defaults: ClassVar[Mapping[str, Any]] = COMMON_TRAINING
    config: AnomalyCLIPConfig

    def __init__(self, config: AnomalyCLIPConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        word = config.class_word
        self.prompts = PromptLearner(
            backbone,
            [f"{{normal}} {word}.", f"{{abnormal}} damaged {word}."],
            contexts={"normal": config.context_tokens, "abnormal": config.context_tokens},
            deep=config.deep_sets,
            deep_tokens=config.deep_tokens,
        )

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the adapter anew: all tokens normal with deviation 0.02."""
        self.prompts.reset_parameters(generator)

    def paper_modules(self) -> dict[str, PaperModule]:
        """The learned pair and the deep tokens."""
        zero = {"prompts.contexts.normal": 0.0, "prompts.contexts.abnormal": 0.0}
        modules = {
            "prompts": PaperModule("all context tokens are 0", zero, ("prompts.contexts.*",), text=True)
        }
        if self.prompts.deep is not None:
            modules["deep tokens"] = PaperModule(
                "no deep tokens", {"prompts.deep": None}, ("prompts.deep",), text=True
            )
        return modules

    def internals(self, features: ImageFeatures) -> Internals:
        """The pair, which no image changes."""
        return Internals(F.normalize(self.prompts(self.clip.text), dim=-1)[None])

    def forward(self, features: ImageFeatures) -> Output:
        """Grids (B, L, h, w) and scores."""
        logits, image = self._compare(features)
        score = image_score(image, logits, kind=self.config.score, spec=self.spec_of(features.grid))
        return Output(logits, score, terms={"global": image.sigmoid()})

    def losses(self, features: ImageFeatures, masks: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Terms of the loss, with their weights."""
        logits, image = self._compare(features)
        weight, kind = self.config.local_weight, self.config.score
        return pair_losses(logits, image, masks, labels, spec=self.map_spec, weight=weight, kind=kind)

    def _compare(self, features: ImageFeatures) -> tuple[Tensor, Tensor]:
        """Grids (B, L, h, w) and the global feature's logits (B,)."""
        text = self.prompts(self.clip.text)
        patches, cls = (tokens.to(text.dtype) for tokens in (features.patches, features.cls))
        # Mixed precision ends here: cosines are divided by a small temperature.
        with full_precision(text.device):
            pair = F.normalize(text, dim=-1).view(1, 1, 2, -1)
            logits = patch_logits(patches, pair, temperature=self.config.tau)
            image = image_logits(cls, pair[0], temperature=self.config.tau_prime)
        return logits.view(*logits.shape[:2], *features.grid), image


def image_logits(cls: Tensor, text: Tensor, *, temperature: float) -> Tensor:
    """`(<f, t_abnormal> - <f, t_normal>) / temperature` (B,), each the largest over M pairs of prompts.

    Args:
        cls: (B, D) global features, not normalised.
        text: (M, 2, D), normal first, of length one.
        temperature: of the softmax.
    """
    states = (F.normalize(cls, dim=-1) @ text.flatten(0, 1).T).view(-1, text.shape[0], 2).amax(dim=1)
    return (states[:, 1] - states[:, 0]) / temperature


def image_score(image: Tensor, logits: Tensor, *, kind: ScoreKind, spec: MapSpec) -> Tensor:
    """Scores (B,) in [0, 1] of the global feature's logits (B,) and of grids (B, L, h, w)."""
    if kind == "global":
        return image.sigmoid()
    maps = layer_maps(logits, spec, size=spec.size)
    return join_scores(map_maximum(maps), image.sigmoid(), kind=kind)


def pair_losses(
    logits: Tensor,
    image: Tensor,
    masks: Tensor,
    labels: Tensor,
    *,
    spec: MapSpec,
    weight: float,
    kind: ScoreKind,
) -> dict[str, Tensor]:
    """AnomalyCLIP's loss in its terms.

    Args:
        logits: (B, L, h, w) grids; Dice and Focal are summed over their L maps.
        image: (B,) logits of the global feature.
        masks: (B, H, W) in {0, 1}.
        labels: (B,) in {0, 1}.
        spec: how grids become maps.
        weight: of the maps' terms.
        kind: of score, on which the cross-entropy is taken.
    """
    with full_precision(logits.device):
        maps = layer_maps(logits, spec, size=(masks.shape[-2], masks.shape[-1]))
        terms = segmentation_losses(maps, masks)
        terms = {name: weight * term for name, term in terms.items()}
        if kind == "global":
            # Of the logits: where a probability is rounded to 0 or 1, its logarithm teaches nothing any more.
            terms["classify"] = F.binary_cross_entropy_with_logits(image, labels.to(image.dtype))
        else:
            terms["classify"] = score_loss(join_scores(map_maximum(maps), image.sigmoid(), kind=kind), labels)
    return terms
