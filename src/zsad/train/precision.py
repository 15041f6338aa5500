"""Number types of mixed precision."""

from __future__ import annotations

from typing import Any

import torch

from zsad.errors import ConfigError


def amp_dtype(setting: str, device: torch.device) -> torch.dtype | None:
    """Return the type of mixed precision on a device, or None for full precision.

    Raises:
        ConfigError: the device does not have the type asked for.
    """
    cuda = device.type == "cuda"
    if setting == "off" or (setting == "auto" and not cuda):
        return None
    if setting == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if setting == "fp16" and not cuda:
        raise ConfigError(f"amp fp16 needs CUDA, the method is on {device}: use bf16, auto or off")
    return torch.bfloat16 if setting == "bf16" else torch.float16


def gradient_scaler() -> Any:
    """Return what scales losses so that fp16 gradients neither vanish nor overflow."""
    scaler = getattr(torch.amp, "GradScaler", None)  # PyTorch 2.3 and newer
    return scaler("cuda") if scaler is not None else torch.cuda.amp.GradScaler()
