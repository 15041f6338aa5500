"""Heads that turn the tokens of an image into one feature."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TokenHead(nn.Module):
    """Tokens (B, N, D_x) to one feature (B, D): the mean of the projected tokens, each of length one.

    `f = mean_i(P t_i / ||P t_i||)`, with `t = gelu(conv(norm(x)))` where `depthwise`, else `t = x`.

    Args:
        width: D_x.
        embed_dim: D.
        depthwise: before the projection come a layer norm, a convolution over three neighbours in the order of the
            tokens, each channel alone, and GELU (MoECLIP's image adapter).

    Example:
        >>> TokenHead(8, 6, depthwise=True)(torch.randn(5, 9, 8)).shape
        torch.Size([5, 6])
    """

    def __init__(self, width: int, embed_dim: int, *, depthwise: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if depthwise else None
        self.mix = nn.Parameter(torch.empty(width, 1, 1, 3)) if depthwise else None
        self.project = nn.Parameter(torch.empty(embed_dim, width))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw projection and convolution Xavier-uniform, as MoECLIP's released code does."""
        if self.norm is not None and self.mix is not None:
            self.norm.reset_parameters()
            nn.init.xavier_uniform_(self.mix, generator=generator)
        nn.init.xavier_uniform_(self.project, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """The feature; its length is at most one, and less the more the tokens differ."""
        if self.norm is not None and self.mix is not None:
            # Tokens are an image of one row whose channels come last.
            row = self.norm(tokens).transpose(1, 2).unsqueeze(2)
            row = F.conv2d(row, self.mix, padding=(0, 1), groups=row.shape[1])
            tokens = F.gelu(row.squeeze(2).transpose(1, 2))
        return F.normalize(F.linear(tokens, self.project).to(self.project.dtype), dim=-1).mean(dim=1)
