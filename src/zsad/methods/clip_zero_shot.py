"""Plain CLIP as an anomaly detector: no training, hand-written prompts (Radford et al., 2021; WinCLIP's words).

Two text embeddings, the means over many sentences for a normal and a damaged object, meet the patch tokens behind the
last block of the ordinary path and CLIP's own image embedding:

    M = Up(softmax(F F_T^T / tau)),   s = (max M + softmax(F_cls F_T^T / tau')) / 2

This is the baseline that every trained method has to beat. Score and maps are put together as in PromptMoE (Eqs. 6
and 7), so that the two differ in their text alone.

`recipe` = "printed" is the CLIP column of the papers' tables: one sentence a state, which names the object, and
s = softmax(F_cls F_T^T / tau') alone. Its words, temperatures and the smoothing of its map are inferred: papers cite
the column from one another.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from zsad.clip.weights import Backbone
from zsad.errors import ConfigError
from zsad.methods.base import ImageFeatures, Method, MethodConfig, Output
from zsad.methods.sentences import ClassText
from zsad.methods.settings import ClassNames, Layers, Order, ValueValue
from zsad.methods.similarity import image_probability, join_scores, layer_maps, map_maximum, patch_logits
from zsad.prompts import published_prompts, state_prompts


class ClipConfig(MethodConfig):
    """Settings of plain CLIP."""

    groups: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "recipe": {"printed": {"templates": "pair", "names": "data", "score": "global"}},
    }
    inferred: ClassVar[tuple[str, ...]] = ("positions", "map_order", "align_corners", "sigma", "tau")

    layers: Layers = (24,)
    value_value: ValueValue = False
    map_order: Order = "after_softmax"
    recipe: Literal["ensemble", "printed"] = Field(
        default="ensemble",
        description="A strong baseline of many sentences, or the form of the CLIP column in papers' tables "
        "(its words are inferred). Sets templates, names and score where not given.",
    )
    tau: float = Field(default=0.07, gt=0, description="Temperature of patches against text.")
    tau_prime: float = Field(
        default=0.01, gt=0, description="Temperature of the global feature against text: CLIP's own."
    )
    names: ClassNames = "object"
    class_word: str = Field(default="object", description="What prompts say where `names` is object.")
    templates: Literal["ensemble", "single", "pair"] = Field(
        default="ensemble",
        description="Many sentences for each of 14 state phrases, or one, or one sentence for each state: "
        "a photo of a [damaged] object.",
    )
    score: Literal["map_and_global", "global"] = Field(
        default="map_and_global",
        description="Mean of the map's maximum and the global part, or the latter alone.",
    )


class ClipZeroShot(Method):
    """Plain CLIP on a backbone. It has no adapter: text is encoded once for every object class met."""

    name = "clip"
    config_class = ClipConfig
    config: ClipConfig

    def __init__(self, config: ClipConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        pair = config.templates == "pair"
        sentences = (
            partial(published_prompts, "clip") if pair else partial(state_prompts, templates=config.templates)
        )
        self._text = ClassText(backbone, sentences, names=config.names, word=config.class_word)

    def forward(self, features: ImageFeatures) -> Output:
        """Grids and scores of features."""
        config = self.config
        text = self._text(features.object_names, batch=features.cls.shape[0])
        patches, cls = features.patches.to(text.dtype), features.cls.to(text.dtype)
        logits = patch_logits(patches, text[:, None], temperature=config.tau)
        logits = logits.view(*patches.shape[:2], *features.grid)
        score = image_probability(cls, text, temperature=config.tau_prime)
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
