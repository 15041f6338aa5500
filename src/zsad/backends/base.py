"""What every backend gives: pixels in, arrays out. Needs NumPy alone."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from zsad.errors import ConfigError

if TYPE_CHECKING:
    from zsad.card import Card
    from zsad.methods.base import Method
    from zsad.nn.maps import MapSpec

Float32 = npt.NDArray[np.float32]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(slots=True)
class Answer:
    """What a model says of a batch; as `zsad.methods.base.Output`, in arrays.

    Attributes:
        logits: (B, L, h, w).
        score: (B,).
        routing: for each pool of experts their weights (B, L, E); empty without experts.
        terms: the parts (B,) of a score by name; empty where a method has them not apart.
    """

    logits: Float32
    score: Float32
    routing: dict[str, Float32] = field(default_factory=dict)
    terms: dict[str, Float32] = field(default_factory=dict)


class Backend(ABC):
    """A model in the hands of what runs it."""

    name: ClassVar[str]
    precision: str = "fp32"
    """In which products are taken: "fp32", "bf16", "fp16" or "int8"."""

    @property
    @abstractmethod
    def spec(self) -> MapSpec:
        """How grids become maps."""

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """Images a pass that suit the device."""

    def spec_of(self, image: tuple[int, int]) -> MapSpec:
        """How grids of an input of that size (H, W) become maps: `spec`, but for the size."""
        spec = self.spec
        return spec if spec.size == image else spec.model_copy(update={"size": image})

    @property
    def patch(self) -> int:
        """Side of a patch in pixels of the input, where inputs may be rectangles.

        Raises:
            ConfigError: an exported graph, whose input has one size.
        """
        raise ConfigError(
            "an exported graph takes pictures of one size; leave out --keep-aspect, or give the model it was made from"
        )

    @abstractmethod
    def run(self, pixels: Float32, words: tuple[str, ...] | None = None) -> Answer:
        """The answer to preprocessed pixels (B, 3, H, W).

        Args:
            pixels: normalised as the model's preprocessing does.
            words: what each image shows, for methods whose prompts name it; None: an object.
        """

    @abstractmethod
    def identity(self, card: Card) -> str:
        """A short hash of all that decides a score, up to rounding."""

    @abstractmethod
    def environment(self) -> dict[str, str]:
        """Versions and hardware as readable pairs."""

    def settings(self) -> dict[str, str]:
        """What tells runs of this backend from those of PyTorch in full precision; empty for the latter."""
        plain = self.name == "torch" and self.precision == "fp32"
        return {} if plain else {"backend": self.name, "precision": self.precision}


def as_backend(model: Backend | Method) -> Backend:
    """A backend as it is, a method in PyTorch's hands."""
    if isinstance(model, Backend):
        return model
    from zsad.backends.torch import TorchBackend

    return TorchBackend(model)


def identity_of(card: Card, tensors: Iterable[tuple[str, bytes]]) -> str:
    """A short hash of configuration, backbone, preprocessing and an adapter's tensors, given by name in order."""
    parts: list[Any] = [
        card.method,
        card.config,
        card.backbone.sha256,
        card.preprocess,
        card.map_spec.model_dump(),
    ]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=list).encode())
    for name, content in tensors:
        digest.update(name.encode())
        digest.update(content)
    return digest.hexdigest()[:16]
