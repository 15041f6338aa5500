"""The interface of all backends: preprocessed pixels in, arrays out. Needs NumPy alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from zsad.errors import ConfigError

if TYPE_CHECKING:
    from zsad.card import Card
    from zsad.nn.maps import MapSpec

Float32 = npt.NDArray[np.float32]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(slots=True)
class BackendOutput:
    """Output of a model for a batch, as arrays; the counterpart of `zsad.methods.base.Output`.

    Attributes:
        logits: (B, L, h, w).
        score: (B,).
        routing: weights of the experts (B, L, E) by pool; empty without experts.
        terms: parts (B,) of the score by name; empty if the method does not separate them.
    """

    logits: Float32
    score: Float32
    routing: dict[str, Float32] = field(default_factory=dict)
    terms: dict[str, Float32] = field(default_factory=dict)


class Backend(ABC):
    """A loaded model and the runtime that computes it."""

    name: ClassVar[str]
    precision: str = "fp32"
    """Precision of matrix products: "fp32", "bf16", "fp16" or "int8"."""

    @property
    @abstractmethod
    def spec(self) -> MapSpec:
        """Parameters that turn grids into maps."""

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """Default number of images per batch on this device."""

    def spec_of(self, image: tuple[int, int]) -> MapSpec:
        """Return `spec` for an input of the given size (H, W)."""
        spec = self.spec
        return spec if spec.size == image else spec.model_copy(update={"size": image})

    @property
    def patch(self) -> int:
        """Side of a patch in input pixels, for models that accept rectangular inputs.

        Raises:
            ConfigError: the model is an exported graph, whose input size is fixed.
        """
        raise ConfigError(
            "an exported graph takes pictures of one size; leave out --keep-aspect, or give the model it was made from"
        )

    @abstractmethod
    def run(self, pixels: Float32, object_names: tuple[str, ...] | None = None) -> BackendOutput:
        """Compute the output for preprocessed pixels (B, 3, H, W).

        Args:
            pixels: normalised by the model's preprocessing.
            object_names: what each image shows, for methods whose prompts name it; None means "object".
        """

    @abstractmethod
    def identity(self, card: Card) -> str:
        """Return a short hash of everything that decides a score, up to rounding."""

    @abstractmethod
    def environment(self) -> dict[str, str]:
        """Return versions and hardware as readable pairs."""

    def settings(self) -> dict[str, str]:
        """Return backend and precision for a run's record; empty for PyTorch in full precision, the default."""
        default = self.name == "torch" and self.precision == "fp32"
        return {} if default else {"backend": self.name, "precision": self.precision}
