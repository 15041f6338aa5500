"""PyTorch as a backend: any built method, on any device."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from zsad.backends.base import Answer, Backend, Float32, Precision, identity_of
from zsad.comparison.compare import Comparison, fuse, look_closely, picture_key
from zsad.device import default_batch_size, describe_environment
from zsad.errors import ConfigError
from zsad.methods.base import Method, Output

if TYPE_CHECKING:
    from zsad.card import Card
    from zsad.nn.maps import MapSpec

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TorchBackend(Backend):
    """A method as it is built.

    Args:
        method: with its weights; put into evaluation mode.
        precision: "fp32" leaves types as they are; "bf16" and "fp16" are mixed precision; "auto" takes the best of
            them on a GPU.
        comparison: other images, with which those to be scored are compared; what that says is fused in.

    Raises:
        ConfigError: fp16 on a processor, which has no arithmetic for it.
    """

    name = "torch"

    def __init__(
        self, method: Method, *, precision: Precision = "fp32", comparison: Comparison | None = None
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
        """Where the model lives."""
        return next(self.method.parameters()).device

    @property
    def spec(self) -> MapSpec:
        """How the method's grids become maps."""
        return self.method.map_spec

    @property
    def patch(self) -> int:
        """Of the image tower."""
        return self.method.clip.config.vision.patch_size

    @property
    def batch_size(self) -> int:
        """One on a processor, more on a GPU."""
        return default_batch_size(self.device)

    @torch.inference_mode()
    def run(self, pixels: Float32, words: tuple[str, ...] | None = None) -> Answer:
        """The method's output in arrays."""
        weight = next(self.method.parameters())
        batch = torch.from_numpy(pixels).to(device=weight.device, dtype=weight.dtype)
        mixed = (
            torch.autocast(weight.device.type, _TYPES[self.precision]) if self.precision in _TYPES else None
        )
        with mixed or nullcontext():
            output = self._output(batch, pixels, words)
        return Answer(
            _array(output.logits),
            _array(output.score),
            {name: _array(weights) for name, weights in (output.routing or {}).items()},
            {name: _array(values) for name, values in (output.terms or {}).items()},
        )

    def _output(self, batch: torch.Tensor, pixels: Float32, words: tuple[str, ...] | None) -> Output:
        if self.comparison is None:
            return self.method.predict(replace(self.method.encode_image(batch), words=words))
        features, kinds = look_closely(self.method, batch)
        output = self.method.predict(replace(features, words=words))
        return fuse(self.method, output, self.comparison, kinds, [picture_key(one) for one in pixels])

    def identity(self, card: Card) -> str:
        """A hash of the card and the adapter's tensors."""
        state = sorted(self.method.adapter_state().items())
        return identity_of(
            card, ((name, _array(tensor.detach().contiguous()).tobytes()) for name, tensor in state)
        )

    def environment(self) -> dict[str, str]:
        """Versions, device and threads."""
        return describe_environment(self.device)


def _array(tensor: torch.Tensor) -> Float32:
    values: Float32 = tensor.float().cpu().numpy()
    return np.ascontiguousarray(values)
