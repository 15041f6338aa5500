"""PyTorch as a backend: any built method, on any device."""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from zsad.backends.backend import Backend, BackendOutput, Float32, Precision
from zsad.device import default_batch_size, describe_environment
from zsad.errors import ConfigError
from zsad.methods.base import Method, Output

if TYPE_CHECKING:
    from zsad.card import Card
    from zsad.nn.maps import MapSpec

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Comparator(Protocol):
    """A comparison with other images, which replaces a method's own prediction step; see `zsad.comparison`."""

    def predict(
        self, method: Method, batch: Tensor, pixels: Float32, object_names: tuple[str, ...] | None
    ) -> Output:
        """Return the output of the method for a batch with the result of the comparison fused into it.

        Args:
            method: in evaluation mode.
            batch: (B, 3, H, W) on the method's device, in its type.
            pixels: the same values as they came, by which images are recognised.
            object_names: as in `Backend.run`.
        """


class TorchBackend(Backend):
    """A built method in PyTorch.

    Args:
        method: with its weights; put into evaluation mode.
        precision: "fp32" keeps the types of the weights; "bf16" and "fp16" are mixed precision; "auto" is the best
            of these on a GPU and "fp32" elsewhere.
        comparison: compares each image with other images and fuses the result into the output.

    Raises:
        ConfigError: fp16 on a CPU, which has no arithmetic for it.
    """

    name = "torch"

    def __init__(
        self, method: Method, *, precision: Precision = "fp32", comparison: Comparator | None = None
    ) -> None:
        self.method = method.eval()
        self.comparison = comparison
        device = self.device.type
        if precision == "auto":
            precision = "fp32" if device != "cuda" else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        if precision == "fp16" and device == "cpu":
            raise ConfigError(
                "precision fp16 is not for processors, which compute it slowly; use bf16 or fp32"
            )
        self.precision = precision

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.method.parameters()).device

    @property
    def spec(self) -> MapSpec:
        """Parameters that turn the method's grids into maps."""
        return self.method.map_spec

    @property
    def patch(self) -> int:
        """Side of a patch of the image tower."""
        return self.method.clip.config.vision.patch_size

    @property
    def batch_size(self) -> int:
        """Default number of images per batch: one on a CPU, more on a GPU."""
        return default_batch_size(self.device)

    @torch.inference_mode()
    def run(self, pixels: Float32, object_names: tuple[str, ...] | None = None) -> BackendOutput:
        """Compute the method's output for pixels (B, 3, H, W)."""
        weight = next(self.method.parameters())
        batch = torch.from_numpy(pixels).to(device=weight.device, dtype=weight.dtype)
        mixed = (
            torch.autocast(weight.device.type, _TYPES[self.precision]) if self.precision in _TYPES else None
        )
        with mixed or nullcontext():
            if self.comparison is None:
                features = self.method.encode_image(batch)
                output = self.method.predict(replace(features, object_names=object_names))
            else:
                output = self.comparison.predict(self.method, batch, pixels, object_names)
        return BackendOutput(
            _array(output.logits),
            _array(output.score),
            {name: _array(weights) for name, weights in (output.routing or {}).items()},
            {name: _array(values) for name, values in (output.terms or {}).items()},
        )

    def identity(self, card: Card) -> str:
        """Return a hash of configuration, backbone, preprocessing and the adapter's tensors."""
        parts: list[Any] = [
            card.method,
            card.config,
            card.backbone.sha256,
            card.preprocess,
            card.map_spec.model_dump(),
        ]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=list).encode())
        for name, tensor in sorted(self.method.adapter_state().items()):
            digest.update(name.encode())
            digest.update(_array(tensor.detach().contiguous()).tobytes())
        return digest.hexdigest()[:16]

    def environment(self) -> dict[str, str]:
        """Return versions, device and threads."""
        return describe_environment(self.device)


def _array(tensor: Tensor) -> Float32:
    values: Float32 = tensor.float().cpu().numpy()
    return np.ascontiguousarray(values)
