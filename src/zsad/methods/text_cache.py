"""Cache of text that no image changes: encoded again only where what it is made of has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from zsad.methods.similarity import full_precision


class TextCache:
    """Tensors that are functions of parameters alone, each made once as long as these do not change."""

    def __init__(self) -> None:
        self._tensors: dict[str, tuple[tuple[object, ...], Tensor]] = {}

    def get(self, make: Callable[[], Tensor], *, sources: Iterable[Tensor], name: str = "") -> Tensor:
        """The result of `make`, cached until a source is written, moved, cast or replaced.

        Computed at every call where a gradient may be asked of a source.

        Args:
            make: a function of the sources and of nothing else that changes.
            sources: parameters and buffers, on one device.
            name: tells several tensors of one cache apart.
        """
        sources = tuple(sources)
        if torch.is_grad_enabled() and any(source.requires_grad for source in sources):
            return make()
        key = tuple(map(_stamp, sources))
        cached = self._tensors.get(name)
        if cached is None or cached[0] != key:
            # A cached tensor may later meet autograd or another precision than the present one.
            with torch.inference_mode(mode=False), torch.no_grad(), full_precision(sources[0].device):
                cached = self._tensors[name] = (key, make())
        return cached[1]


def _stamp(tensor: Tensor) -> tuple[object, ...]:
    """Return what changes when a tensor is written, moved, cast or replaced."""
    version = None if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, tensor.dtype, tensor.device
