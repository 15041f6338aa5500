"""Prompts for a tower's first blocks: learned, made from what the tower has already seen, or both (AdaCLIP)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Kinds = Literal["both", "static", "dynamic"]


class HybridPrompts(nn.Module):
    """Prompts of the first blocks of a tower: learned ones, ones made from a global feature, or their sums.

    `P_j = static_j + W g + b` for block j and the global feature g; the dynamic part is that of all blocks.

    Args:
        depth: blocks with prompts of their own; the dynamic part is the same in all.
        tokens: tokens M of a block's prompt.
        width: of the tower's tokens.
        source: width D of the global feature.
        kinds: which of the two there are.

    Example:
        >>> HybridPrompts(4, 5, 8, 6)(torch.randn(2, 6)).shape
        torch.Size([2, 4, 5, 8])
    """

    def __init__(self, depth: int, tokens: int, width: int, source: int, *, kinds: Kinds = "both") -> None:
        super().__init__()
        self.shape = (depth, tokens, width)
        self.dynamic = None if kinds == "static" else nn.Linear(source, tokens * width)
        self.static: nn.Parameter | None = None
        if kinds != "dynamic":
            self.static = nn.Parameter(torch.empty(self.shape))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Static prompts normal with deviation 0.02, dynamic ones as linear layers start."""
        if self.static is not None:
            nn.init.normal_(self.static, std=0.02, generator=generator)
        if self.dynamic is not None:
            start_linear(self.dynamic, generator)

    def forward(self, feature: Tensor) -> Tensor:
        """Prompts (B, depth, M, width) for global features (B, D)."""
        depth, tokens, width = self.shape
        prompts = feature.new_zeros(1) if self.static is None else self.static
        if self.dynamic is not None:
            prompts = prompts + self.dynamic(feature).view(-1, 1, tokens, width)
        return prompts.expand(feature.shape[0], depth, tokens, width)


def start_linear(linear: nn.Linear, generator: torch.Generator | None) -> None:
    """The start of `nn.Linear`, reproducible: uniform within one over the root of the inputs.

    Example:
        >>> linear = nn.Linear(16, 2)
        >>> start_linear(linear, torch.Generator().manual_seed(0))
        >>> bool(linear.weight.abs().max() <= 1 / 4)
        True
    """
    bound = linear.in_features**-0.5
    nn.init.uniform_(linear.weight, -bound, bound, generator=generator)
    nn.init.uniform_(linear.bias, -bound, bound, generator=generator)
