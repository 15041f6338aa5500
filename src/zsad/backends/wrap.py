"""Conversion of built methods to backends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zsad.backends.backend import Backend

if TYPE_CHECKING:
    from zsad.methods.base import Method


def as_backend(model: Backend | Method) -> Backend:
    """Return a backend unchanged, and wrap a method in a `TorchBackend`; PyTorch is imported only for the latter."""
    if isinstance(model, Backend):
        return model
    from zsad.backends.torch import TorchBackend

    return TorchBackend(model)
