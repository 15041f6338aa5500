"""The shape of a CLIP model as data: widths, depths, activations, stem."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

Activation = Literal["quick_gelu", "gelu"]


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
