"""The settings that all methods have."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from zsad.errors import ConfigError
from zsad.nn.maps import MapOrder

if TYPE_CHECKING:
    from typing_extensions import Self

    from zsad.clip.presets import Preset


class MethodConfig(BaseModel):
    """The fields that all methods have: how the image tower is read and how grids become maps.

    An unknown field or an impossible value is a `ConfigError`. The defaults are OpenAI's ViT-L/14@336's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[int, ...] = Field(
        default=(6, 12, 18, 24), min_length=1, description="Tapped blocks of the image tower, counted from 1."
    )
    image_size: int = Field(default=518, ge=8, description="Side in pixels to which images are resized.")
    value_value: bool = Field(
        default=True,
        description="Take patch tokens from AnomalyCLIP's value-value branch, not the ordinary path.",
    )
    value_value_from: int = Field(default=6, ge=1, description="First block of that branch, counted from 1.")
    cls_norm: bool | None = Field(
        default=None,
        description="Apply the final norm to the global feature before projecting it. By default only "
        "without the value-value branch, as AnomalyCLIP does.",
    )
    activation: Literal["as_trained", "gelu", "quick_gelu"] = Field(
        default="as_trained",
        description="Activation of the towers. Some published systems run OpenAI's weights, which were trained "
        "with QuickGELU, with plain GELU.",
    )
    positions: Literal["bilinear", "bicubic", "bicubic_antialiased"] = Field(
        default="bilinear", description="How position embeddings are resized to the image's grid."
    )
    map_order: MapOrder = Field(
        default="before_softmax",
        description="Upsample the map before the softmax or after it, or take the softmax of the layers' mean.",
    )
    align_corners: bool = Field(default=False, description="Corner convention of the map's upsampling.")
    sigma: float = Field(
        default=4.0, ge=0, description="Gaussian smoothing of the map, in pixels, inference only."
    )
    smooth: Literal["map", "grid"] = Field(
        default="map", description="Smooth the map, or the patch grid before upsampling (sigma in patches)."
    )
    train_map_size: int | None = Field(
        default=None,
        ge=8,
        description="Side in pixels of the maps in training; by default that of the image.",
    )
    oddness: Literal["off", "fused"] = Field(
        default="off",
        description="Fuse in how odd a patch is within its own picture: rare, unlike its surroundings, unlike its "
        "mirror image. Not part of any paper; needs no other image.",
    )
    oddness_in_map: tuple[float, float, float] = Field(
        default=(0.5, 0.5, 0.0), description="Weights of rarity, contrast and asymmetry in the fused map."
    )
    oddness_in_score: tuple[float, float, float] = Field(
        default=(0.0, 2.0, 1.0), description="Their weights in the fused image score, beside the method's 1."
    )

    @model_validator(mode="wrap")
    @classmethod
    def _one_line_errors(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            raise ConfigError(cls._explain(error)) from None

    @classmethod
    def _explain(cls, error: ValidationError) -> str:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or cls.__name__
        if first["type"] != "extra_forbidden":
            return f"{field} = {first['input']!r} is no valid setting: {first['msg'].lower()}"
        near = difflib.get_close_matches(field, cls.model_fields, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(cls.model_fields)}"
        return f"unknown setting {field!r} of {cls.__name__}; {hint}"

    @model_validator(mode="after")
    def _branch_begins_before_taps(self) -> Self:
        if self.value_value and min(self.layers) < self.value_value_from:
            raise ConfigError(
                f"layer {min(self.layers)} lies before block {self.value_value_from}, where the value-value "
                f"branch begins; tap later blocks, lower value_value_from, or set value_value to false"
            )
        if list(self.layers) != sorted(set(self.layers)):
            raise ConfigError(
                f"layers = {self.layers} must rise and not repeat; use {sorted(set(self.layers))}"
            )
        return self

    @classmethod
    def for_backbone(cls, preset: Preset, **settings: Any) -> Self:
        """The configuration for a backbone: its taps and image size, then `settings` over them."""
        defaults = {
            "layers": preset.taps,
            "image_size": preset.detection_size,
            "value_value": preset.value_value,
            "value_value_from": preset.value_value_from,
        }
        return cls(**{**defaults, **settings})
