"""The settings of MoECLIP (`zsad.methods.moeclip`), with the groups of them that have a name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from zsad.clip.presets import PRESETS, Preset
from zsad.errors import ConfigError
from zsad.methods.base import MethodConfig
from zsad.nn.maps import MapOrder

RECIPES: Mapping[str, Mapping[str, float]] = {
    "paper": {},
    "released": {"etf_weight": 0.0, "balance_weight": 0.0, "dropout": 0.0},
}
DOMAINS: Mapping[str, Mapping[str, Any]] = {
    "industrial": {},
    "medical": {"sigma": 1.5, "score": "map"},
}


class MoECLIPConfig(MethodConfig):
    """All settings of MoECLIP; the defaults are the paper's."""

    value_value: bool = Field(
        default=False, description="Not for this method: its adapters live in the ordinary path."
    )
    activation: Literal["as_trained", "gelu", "quick_gelu"] = Field(
        default="gelu",
        description="Activation of the towers. The published system runs OpenAI's weights, which were trained "
        "with QuickGELU, with plain GELU.",
    )
    positions: Literal["bilinear", "bicubic", "bicubic_antialiased"] = Field(
        default="bicubic_antialiased", description="How position embeddings are resized to the image's grid."
    )
    map_order: MapOrder = Field(
        default="mean_logits",
        description="Upsample the map before the softmax or after it, or take the softmax of the maps' mean.",
    )
    align_corners: bool = Field(default=True, description="Corner convention of the map's upsampling.")
    sigma: float = Field(
        default=1.0, ge=0, description="Gaussian smoothing in patches, inference only; 1.5 for medical."
    )
    smooth: Literal["map", "grid"] = Field(
        default="grid", description="Smooth the map, or the patch grid before upsampling (sigma in patches)."
    )
    recipe: Literal["paper", "released"] = Field(
        default="paper",
        description="As the paper trains, or as the released code does: no auxiliary losses, no dropout, a tenth "
        "of the training's learning_rate, given or not. Sets etf_weight, balance_weight and dropout where not given.",
    )
    domain: Literal["industrial", "medical"] = Field(
        default="industrial",
        description="What images are of. Sets sigma and score where they are not given.",
    )
    experts: int = Field(default=4, ge=1, description="Experts E of a layer.")
    top_k: int = Field(default=2, ge=1, description="Experts k of a token.")
    rank: int = Field(default=8, ge=1, description="Rank R of an expert.")
    alpha: float = Field(default=16.0, gt=0, description="Experts are scaled by alpha / rank.")
    dropout: float = Field(
        default=0.05, ge=0, lt=1, description="Share of features hidden from the experts in training."
    )
    blend: float = Field(default=0.1, ge=0, le=1, description="Share lambda of the experts in a token.")
    norm_floor: float = Field(
        default=1e-6,
        gt=0,
        description="Added to the norm that experts' outputs are divided by. As published, the first gradient is of "
        "order 1 / norm_floor, and Adam's memory of it slows the experts for thousands of steps; with 1 "
        "they learn at once.",
    )
    fofs: bool = Field(
        default=True,
        description="Experts read frozen orthonormal projections of features of their own; otherwise trained "
        "projections of all.",
    )
    gate_init: Literal["zero", "random"] = Field(
        default="zero", description="Start of the routers; zero starts with ties, random with deviation 0.02."
    )
    etf_weight: float = Field(default=0.01, ge=0, description="Weight of the loss that keeps experts apart.")
    balance_weight: float = Field(
        default=0.01, ge=0, description="Weight of the loss that keeps experts busy."
    )
    windows: tuple[int, ...] = Field(
        default=(1, 3, 5),
        min_length=1,
        description="Sides of the neighbourhoods that patches are averaged over.",
    )
    projectors: Literal["shared", "separate"] = Field(
        default="shared", description="One projector a layer for all windows, or one for each."
    )
    start: Literal["random", "clip"] = Field(
        default="random",
        description="Projectors and text adapter start Xavier-uniform (published), or as CLIP's own projections: "
        "for trainings of a few hundred steps.",
    )
    relu: bool = Field(default=False, description="LeakyReLU behind the projectors.")
    head: Literal["depthwise", "linear"] = Field(
        default="depthwise",
        description="The image feature's head: a depth-wise convolution along the patches, or a projection alone.",
    )
    names: Literal["data", "object"] = Field(
        default="data", description="Name each image's class in the text, or call everything an object."
    )
    map_temperature: float = Field(
        default=0.25,
        gt=0,
        description="Temperature of the maps' cosines in inference (inferred). It changes no ranking of pixels; a "
        "low one drives all high values to 1. Training takes 0.01.",
    )
    global_temperature: float = Field(
        default=0.07,
        gt=0,
        description="Temperature of the image feature where a score takes its probability (inferred).",
    )
    score: Literal["map_and_cosine", "map_and_global", "global", "map"] = Field(
        default="map_and_cosine",
        description="Mean of the map's maximum and of (cos_a + 1) / 2 (published for industrial images) or of the "
        "global probability; or one of these; map is published for medical images.",
    )

    @model_validator(mode="before")
    @classmethod
    def _groups(cls, data: Any) -> Any:
        """What `recipe` and `domain` stand for, under what is given."""
        if not isinstance(data, Mapping):
            return data
        recipe, domain = RECIPES.get(data.get("recipe", ""), {}), DOMAINS.get(data.get("domain", ""), {})
        return {**recipe, **domain, **data}

    @model_validator(mode="after")
    def _possible(self) -> MoECLIPConfig:
        if self.top_k > self.experts:
            raise ConfigError(
                f"top_k = {self.top_k} exceeds the {self.experts} experts; lower it or add experts"
            )
        if self.experts == 1 and self.etf_weight:
            raise ConfigError(
                "etf_weight keeps experts apart, but experts = 1; set it to 0 or use more experts"
            )
        if self.value_value:
            raise ConfigError(
                "value_value = true is not for MoECLIP, which adapts the ordinary path; drop it"
            )
        if list(self.windows) != sorted(set(self.windows)) or any(r < 1 or r % 2 == 0 for r in self.windows):
            raise ConfigError(f"windows = {self.windows} must rise and be odd, such as (1, 3, 5)")
        return self

    @classmethod
    def for_backbone(cls, preset: Preset, **settings: Any) -> MoECLIPConfig:
        """As for every method, but always the ordinary path, and plain GELU for OpenAI's weights alone."""
        own: dict[str, Any] = {"value_value": False}
        own["activation"] = "gelu" if preset.name in PRESETS else "as_trained"
        return super().for_backbone(preset, **{**own, **settings})
