"""CLIP as data: the shape of a model, and the backbones that zsad knows by name.

A preset says of a backbone its shape, its preprocessing, where its weights lie and which blocks are tapped.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from zsad.errors import BackboneError, ConfigError
from zsad.files import parse_json

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
TINY = "zsad-tiny"
ASSETS = Path(__file__).resolve().parent.parent / "assets"

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MobileStage(_Frozen):
    """A run of inverted-residual blocks: the first one strides and widens, the rest keep their shape."""

    kernel: PositiveInt = Field(description="Side of the depthwise kernel.")
    stride: PositiveInt = Field(description="Stride of the first block.")
    expand: PositiveInt = Field(description="Factor by which a block widens its input inside.")
    channels: PositiveInt = Field(description="Channels that the stage puts out.")
    repeats: PositiveInt = Field(description="Number of blocks.")


class MobileStemConfig(_Frozen):
    """A convolutional stem of inverted residuals (EfficientNet-Lite's blocks) in front of the transformer."""

    first_channels: PositiveInt = Field(description="Channels of the first convolution (stride 2).")
    stages: tuple[MobileStage, ...] = Field(description="The stages, down to the stride of the patch grid.")
    merge_stages: tuple[NonNegativeInt, ...] = Field(
        description="Indices of stages whose maps are folded to the grid's stride and joined to the token."
    )


class VisionConfig(_Frozen):
    """An image tower: `patch_size` is the stride of the token grid, `image_size` the native square side."""

    image_size: PositiveInt
    patch_size: PositiveInt
    width: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    mlp_width: PositiveInt
    activation: Activation = "quick_gelu"
    norm_eps: PositiveFloat = Field(default=1e-5, description="Added to variances in layer norms.")
    stem: MobileStemConfig | None = None

    @property
    def native_grid(self) -> int:
        """Patches along a side at the native size."""
        return self.image_size // self.patch_size

    @model_validator(mode="after")
    def _divisible(self) -> VisionConfig:
        if self.width % self.heads:
            raise ValueError(f"vision width {self.width} is not a multiple of its {self.heads} heads")
        return self


class TextConfig(_Frozen):
    """A causal text tower."""

    context_length: PositiveInt
    vocab_size: PositiveInt
    width: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    mlp_width: PositiveInt
    activation: Activation = "quick_gelu"
    norm_eps: PositiveFloat = Field(default=1e-5, description="Added to variances in layer norms.")

    @model_validator(mode="after")
    def _divisible(self) -> TextConfig:
        if self.width % self.heads:
            raise ValueError(f"text width {self.width} is not a multiple of its {self.heads} heads")
        return self


class CLIPConfig(_Frozen):
    """Both towers and the width of the space they share."""

    embed_dim: PositiveInt
    vision: VisionConfig
    text: TextConfig


class Preset(BaseModel):
    """A backbone and how it wants its images."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: str = Field(description="What users call it.")
    config: CLIPConfig = Field(description="Shape of both towers.", alias="clip")
    detection_size: int = Field(
        description="Side in pixels to which images are resized for anomaly detection."
    )
    mean: tuple[float, float, float] = Field(default=OPENAI_MEAN, description="Mean per channel, of [0, 1].")
    std: tuple[float, float, float] = Field(
        default=OPENAI_STD, description="Deviation per channel, of [0, 1]."
    )
    taps: tuple[int, ...] = Field(description="Blocks tapped by default, counted from 1.")
    value_value: bool = Field(description="Whether patch tokens are taken from the value-value branch.")
    value_value_from: int = Field(
        default=1, description="First block, from 1, of the value-value branch where it is used."
    )
    hub_ids: tuple[str, ...] = Field(
        default=(), description="Repositories of the Hugging Face hub, best first."
    )
    description: str = ""

    @property
    def image_size(self) -> int:
        """The native side in pixels, at which the position embeddings are not interpolated."""
        return self.config.vision.image_size


def _openai(image_size: int, patch_size: int, *, large: bool, hub: tuple[str, str]) -> Preset:
    """One of OpenAI's four ViTs.

    For ViT-L the taps {6, 12, 18, 24} and the branch from block 6 on (the last 19 of 24 blocks) are
    AnomalyCLIP's. For ViT-B no paper fixes either: both are inferred by scaling to 12 blocks, so that the
    branch begins, as in ViT-L, at the first tap.
    """
    depth, width, text_width = (24, 1024, 768) if large else (12, 768, 512)
    size = f"L/{patch_size}" if large else f"B/{patch_size}"
    name = f"ViT-{size}" + ("@336" if image_size == 336 else "")
    vision = VisionConfig(
        image_size=image_size,
        patch_size=patch_size,
        width=width,
        layers=depth,
        heads=width // 64,
        mlp_width=4 * width,
    )
    text = TextConfig(
        context_length=77,
        vocab_size=49408,
        width=text_width,
        layers=12,
        heads=text_width // 64,
        mlp_width=4 * text_width,
    )
    return Preset(
        name=name,
        clip=CLIPConfig(embed_dim=768 if large else 512, vision=vision, text=text),
        detection_size=default_detection_size(patch_size),
        taps=default_taps(depth),
        value_value=True,
        value_value_from=default_taps(depth)[0],
        # The first holds both towers as `open_clip_model.safetensors`; not all of OpenAI's own have safetensors.
        hub_ids=(f"timm/vit_{hub[0]}.openai", f"openai/clip-vit-{hub[1]}"),
        description=f"OpenAI's CLIP {name} of 2021, trained at {image_size} x {image_size} pixels.",
    )


def default_taps(layers: int) -> tuple[int, ...]:
    """Four blocks spread evenly over the depth, the last one included ({6, 12, 18, 24} of 24)."""
    return tuple(sorted({max(1, layers * quarter // 4) for quarter in (1, 2, 3, 4)}))


def default_detection_size(patch_size: int) -> int:
    """The multiple of the patch nearest to the field's 518 pixels: 518 for 14, 512 for 16 and 32."""
    return max(1, round(518 / patch_size)) * patch_size


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        _openai(224, 32, large=False, hub=("base_patch32_clip_224", "base-patch32")),
        _openai(224, 16, large=False, hub=("base_patch16_clip_224", "base-patch16")),
        _openai(224, 14, large=True, hub=("large_patch14_clip_224", "large-patch14")),
        _openai(336, 14, large=True, hub=("large_patch14_clip_336", "large-patch14-336")),
    )
}


def preset_names() -> tuple[str, ...]:
    """The names that `preset` takes, the bundled backbone first."""
    return (TINY, *PRESETS)


def preset(name: str) -> Preset:
    """The preset of a name.

    Raises:
        ConfigError: no such name; the message gives the nearest ones.
        BackboneError: the bundled backbone is not part of this installation.
    """
    if name == TINY:
        return read_preset(ASSETS / TINY / "config.json")
    if name in PRESETS:
        return PRESETS[name]
    near = nearest(name) or preset_names()
    raise ConfigError(f"no backbone is called {name!r}; did you mean {' or '.join(map(repr, near))}?")


def nearest(name: str) -> tuple[str, ...]:
    """The preset names that look like `name`, best first; empty where none does."""
    folded = {known.lower(): known for known in preset_names()}
    key = name.lower().replace("_", "-")
    return tuple(folded[match] for match in difflib.get_close_matches(key, folded, n=2, cutoff=0.7))


def read_preset(path: Path) -> Preset:
    """The preset written in a `config.json` of ours.

    Raises:
        BackboneError: the file is missing or is not such a config.
    """
    try:
        return Preset.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BackboneError(
            f"cannot read the backbone's config {path} ({error.strerror}); reinstall zsad or name "
            f"another backbone"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise BackboneError(f"{path} is no backbone config of zsad: {where}: {first['msg']}") from None


def activated(known: Preset, activation: Activation | None) -> Preset:
    """The preset with another activation in both towers."""
    return known.model_copy(update={"config": with_activation(known.config, activation)})


def with_activation(config: CLIPConfig, activation: Activation | None) -> CLIPConfig:
    """The config with another activation in both towers; None leaves it."""
    if activation is None:
        return config
    towers = {
        name: getattr(config, name).model_copy(update={"activation": activation})
        for name in ("vision", "text")
    }
    return config.model_copy(update=towers)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object beside the weights; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(f"cannot read {path} beside the weights ({error}); repair or remove it") from None
    return content if isinstance(content, dict) else {}
