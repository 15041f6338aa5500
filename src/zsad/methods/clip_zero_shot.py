"""Plain CLIP as an anomaly detector: no training, hand-written prompts (Radford et al., 2021; WinCLIP's words).

Two text embeddings, the means over many sentences for a normal and a damaged object, meet the patch tokens and the
global feature of the frozen tower:

    M = mean over l of Up(softmax(F F_T^T / tau)),   s = (max M + softmax(F_cls F_T^T / tau')) / 2

This is the baseline that every trained method has to beat. Score and maps are put together as in PromptMoE (Eqs. 6
and 7), so that the two differ in their text alone.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from zsad.clip.weights import Backbone
from zsad.errors import ConfigError
from zsad.methods.base import ImageFeatures, Method, MethodConfig, Output
from zsad.methods.sentences import SentenceBank
from zsad.methods.settings import Layers, Order
from zsad.methods.similarity import image_probability, join_scores, layer_maps, map_maximum, patch_logits
from zsad.prompts import state_prompts


class ClipConfig(MethodConfig):
    """Settings of plain CLIP."""

    layers: Layers = (24,)
    map_order: Order = "after_softmax"
    tau: float = Field(default=0.07, gt=0, description="Temperature of patches against text.")
    tau_prime: float = Field(
        default=0.01, gt=0, description="Temperature of the global feature against text."
    )
    class_word: str = Field(default="object", description="Name of the object in the prompts.")
    templates: Literal["ensemble", "single"] = Field(
        default="ensemble", description="Many sentences for each state phrase, or one."
    )
    score: Literal["map_and_global", "global"] = Field(
        default="map_and_global",
        description="Mean of the map's maximum and the global part, or the latter alone.",
    )


class ClipZeroShot(Method):
    """Plain CLIP on a backbone. It has no adapter: its text is encoded once, here."""

    name = "clip"
    config_class = ClipConfig
    config: ClipConfig
    text: Tensor

    def __init__(self, config: ClipConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        sentences = state_prompts(config.class_word, templates=config.templates)
        text = SentenceBank(backbone).states(*sentences)
        self.register_buffer("text", text[None, None], persistent=False)

    def forward(self, features: ImageFeatures) -> Output:
        """Grids and scores of features."""
        config = self.config
        patches, cls = features.patches.to(self.text.dtype), features.cls.to(self.text.dtype)
        logits = patch_logits(patches, self.text, temperature=config.tau).view(
            *patches.shape[:2], *features.grid
        )
        score = image_probability(cls, self.text[0], temperature=config.tau_prime)
        if config.score == "map_and_global":
            maps = layer_maps(logits, self.map_spec, size=self.spec_of(features.grid).size)
            score = join_scores(map_maximum(maps), score, kind="map_and_global")
        return Output(logits, score)

    def losses(self, features: ImageFeatures, masks: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Refuse training: there is nothing to train.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("method 'clip' has nothing to train; train 'promptmoe', or use 'clip' as it is")
