"""What every method is: image features from a frozen CLIP, text that meets them, a map, a score, losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from zsad.clip.weights import Backbone
from zsad.errors import CheckpointError
from zsad.nn.filters import MapSpec

__all__ = ["ImageFeatures", "MapSpec", "Method", "MethodConfig", "Output"]


@dataclass(slots=True)
class ImageFeatures:
    """What the frozen image tower gives for a batch: all that a method may cache.

    Attributes:
        patches: (B, L, N, D) patch tokens of the tapped layers, not normalised.
        cls: (B, D) the global feature.
        grid: rows and columns (h, w) of the patches, N = h * w.
    """

    patches: Tensor
    cls: Tensor
    grid: tuple[int, int]


@dataclass(slots=True)
class Output:
    """What a method says of a batch.

    Attributes:
        logits: (B, L, h, w) how much more abnormal than normal a patch looks, over the temperature: its sigmoid is the
            probability of abnormal. One grid a layer, or a single one where a method fuses them itself.
        score: (B,) image scores, higher is more anomalous, in [0, 1].
        routing: for each pool the weights (B, L, E) of its experts, exactly k of them not zero; None without experts.
    """

    logits: Tensor
    score: Tensor
    routing: dict[str, Tensor] | None = None


class MethodConfig(BaseModel):
    """The fields that all methods have. An unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[int, ...] = Field(description="Tapped blocks of the image tower, counted from 1.")
    image_size: int = Field(description="Side in pixels to which images are resized.")
    sigma: float = Field(
        default=4.0, ge=0, description="Gaussian smoothing of the map, in pixels, inference only."
    )


class Method(nn.Module, ABC):
    """A zero-shot anomaly detector on a frozen backbone.

    The backbone is a submodule named `clip`, without gradients; everything else is the adapter, which is all
    that a checkpoint holds.
    """

    name: ClassVar[str]
    config: MethodConfig

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.clip = backbone.clip.freeze()
        self.map_scale = (0.0, 1.0)

    @property
    @abstractmethod
    def map_spec(self) -> MapSpec:
        """How this method's grids become maps."""

    @abstractmethod
    def features(self, pixels: Tensor) -> ImageFeatures:
        """The frozen side, without gradients, of pixels (B, 3, H, W)."""

    @abstractmethod
    def forward(self, features: ImageFeatures) -> Output:
        """Grids, scores and routing of cached or fresh features."""

    @abstractmethod
    def losses(self, features: ImageFeatures, masks: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Weighted loss terms; their sum is what training descends.

        Args:
            features: of the batch.
            masks: (B, H, W) in {0, 1}, at the size of the map.
            labels: (B,) in {0, 1}.
        """

    def train(self, mode: bool = True) -> Method:  # noqa: FBT001, FBT002 - torch's own signature
        """Training mode for the adapter; the backbone stays in evaluation mode."""
        super().train(mode)
        self.clip.eval()
        return self

    def adapter_state(self) -> dict[str, Tensor]:
        """The tensors of everything but the backbone."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("clip.")}

    def load_adapter(self, state: dict[str, Tensor]) -> None:
        """Puts an adapter's tensors in place.

        Raises:
            CheckpointError: tensors missing, unknown or of another shape.
        """
        own = self.adapter_state()
        for name in sorted(own.keys() | state.keys()):
            if name not in state:
                raise CheckpointError(
                    f"checkpoint lacks the tensor {name!r} that {self.name} needs; is it of another method?"
                )
            if name not in own:
                raise CheckpointError(
                    f"checkpoint holds the tensor {name!r}, unknown to {self.name}; is it of another method?"
                )
            if own[name].shape != state[name].shape:
                raise CheckpointError(
                    f"tensor {name!r} has shape {tuple(state[name].shape)} in the checkpoint, {tuple(own[name].shape)} "
                    f"in {self.name} on this backbone; use the backbone and the config it was trained with"
                )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])
