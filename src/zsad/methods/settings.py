"""The settings that all methods have."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from zsad.errors import ConfigError
from zsad.nn.maps import MapOrder, Smoothed

if TYPE_CHECKING:
    from typing_extensions import Self

    from zsad.clip.config import Preset

# Types of the shared settings that some methods begin with another value.
Layers = Annotated[
    tuple[int, ...],
    Field(min_length=1, description="Tapped blocks of the image tower, counted from 1."),
]
ValueValue = Annotated[
    bool,
    Field(description="Take patch tokens from AnomalyCLIP's value-value branch, not the ordinary path."),
]
Activation = Annotated[
    Literal["as_trained", "gelu", "quick_gelu"],
    Field(
        description="Activation of the towers. Some published systems run OpenAI's weights, which were trained "
        "with QuickGELU, with plain GELU."
    ),
]
Positions = Annotated[
    Literal["bilinear", "bicubic", "bicubic_antialiased"],
    Field(description="How position embeddings are resized to the image's grid."),
]
Order = Annotated[
    MapOrder,
    Field(
        description="Upsample the map before the softmax or after it, or take the softmax of the layers' mean."
    ),
]
AlignCorners = Annotated[bool, Field(description="Corner convention of the map's upsampling.")]
Sigma = Annotated[float, Field(ge=0, description="Gaussian smoothing of the map, in pixels, inference only.")]
Smooth = Annotated[
    Smoothed,
    Field(
        description="Smooth the map, or the patch grid before upsampling (sigma in patches); grid_reflect mirrors the "
        "border without repeating its sample and ends at 3 sigma (MoECLIP's released code)."
    ),
]

# Types of settings that several methods have.
ClassNames = Annotated[
    Literal["data", "object"],
    Field(description="Name the images' own object classes in the prompts, or say object."),
]
ScoreKind = Literal["global", "map_and_global", "map"]
Score = Annotated[
    ScoreKind,
    Field(
        description="The global feature's probability, or its mean with the map's maximum, or the latter alone."
    ),
]


_LARGEST, _LONGEST = 10_000, 256


class MethodConfig(BaseModel):
    """The fields that all methods have: how the image tower is read and how grids become maps.

    An unknown field or an impossible value is a `ConfigError`. The defaults are OpenAI's ViT-L/14@336's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    retired: ClassVar[Mapping[str, Any]] = {}
    """Settings of earlier versions, by name the value that the code now always takes. Cards may still name them."""
    groups: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {}
    """Settings that stand for others: by name and value, what the others are where they are not given."""
    inferred: ClassVar[tuple[str, ...]] = ()
    """Settings with a description of their own elsewhere whose default no source of this method states."""

    layers: Layers = (6, 12, 18, 24)
    image_size: int = Field(default=518, ge=8, description="Side in pixels to which images are resized.")
    value_value: ValueValue = True
    value_value_from: int = Field(default=6, ge=1, description="First block of that branch, counted from 1.")
    cls_norm: bool | None = Field(
        default=None,
        description="Apply the final norm to the global feature before projecting it. By default only "
        "without the value-value branch, as AnomalyCLIP does.",
    )
    activation: Activation = "as_trained"
    positions: Positions = "bilinear"
    map_order: Order = "before_softmax"
    align_corners: AlignCorners = False
    sigma: Sigma = 4.0
    smooth: Smooth = "map"
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
            return handler(cls._with_groups(cls._without_retired(data)))
        except ValidationError as error:
            raise ConfigError(cls._explain(error)) from None

    @classmethod
    def _without_retired(cls, data: Any) -> Any:
        """Return `data` without settings of earlier versions that are given at the value now always taken."""
        if not isinstance(data, Mapping):
            return data
        for name in data.keys() & cls.retired.keys():
            if data[name] != cls.retired[name]:
                raise ConfigError(
                    f"{name} = {data[name]!r} is no longer a setting of {cls.__name__}, which always takes "
                    f"{cls.retired[name]!r}; leave it out, or train the model anew"
                )
        return {name: value for name, value in data.items() if name not in cls.retired}

    @classmethod
    def _with_groups(cls, data: Any) -> Any:
        """Return `data` over the settings that its groups stand for."""
        if not isinstance(data, Mapping):
            return data
        chosen = (values.get(str(data.get(name)), {}) for name, values in cls.groups.items())
        return {key: value for group in (*chosen, data) for key, value in group.items()}

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Mark the descriptions of inferred settings."""
        for name in cls.inferred:
            field = cls.model_fields[name]
            if "(inferred)" not in (field.description or ""):
                field.description = f"{(field.description or '').rstrip('.')} (inferred)."

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
    def _sizes_have_bounds(self) -> Self:
        """Refuse numbers that no model has: a file that names them must not decide how much memory is taken."""
        for name, value in self:
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(number, int) and abs(number) > _LARGEST for number in numbers):
                raise ConfigError(f"{name} = {value!r} is no valid setting: expected at most {_LARGEST:,}")
            if len(numbers) > _LONGEST or (isinstance(value, str) and len(value) > _LARGEST):
                raise ConfigError(
                    f"{name} is no valid setting: expected at most {_LONGEST} values, as short text"
                )
        return self

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
        """The configuration for a backbone, with `settings` over what the backbone asks for.

        That is its taps, the last alone for a method that by default taps one block; its image size; and its
        value-value branch, for a method that by default reads it.
        """
        return cls(**{**cls._defaults_on(preset), **settings})

    @classmethod
    def _defaults_on(cls, preset: Preset) -> dict[str, Any]:
        """Return the settings whose defaults depend on the backbone."""
        fields = cls.model_fields
        return {
            "layers": preset.taps[-1:] if len(fields["layers"].default) == 1 else preset.taps,
            "image_size": preset.detection_size,
            "value_value": preset.value_value and fields["value_value"].default,
            "value_value_from": preset.value_value_from,
        }


class RoutedConfig(MethodConfig):
    """The fields of methods that choose some of their experts."""

    experts: int = Field(default=4, ge=1, description="Experts E to choose from.")
    top_k: int = Field(default=2, ge=1, description="Experts k that are chosen.")

    @model_validator(mode="after")
    def _experts_suffice(self) -> Self:
        if self.top_k > self.experts:
            raise ConfigError(
                f"top_k = {self.top_k} exceeds the {self.experts} experts; lower it or add experts"
            )
        return self
