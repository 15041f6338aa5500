"""The single-level 2-D Haar transform of feature grids, the fusion of its bands, and what reads them (WMoE-CLIP).

A 2 x 2 block [[a, b], [c, d]] becomes four numbers of the same energy:

    LL = (a + b + c + d) / 2,   LH = (a + b - c - d) / 2
    HL = (a - b + c - d) / 2,   HH = (a - b - c + d) / 2

Their published sum of high bands is `F_H = LH + HL + HH = 2 a - LL`: the contrast of a block's first token against
the block. It carries a sign and is not shift-invariant. A grid with an odd side is continued by its last row or
column. Neighbours are alike, so F_H is far shorter than `F_L = LL`, and what attention pools over an image hardly
holds it: both may be brought to deviation one in every token before they are added.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zsad.nn.attention import CrossAttention


def frequency_fusion(x: Tensor, weight: Tensor, *, normalise: bool = False) -> Tensor:
    """Return F_p = F_H * W_h + F_L (..., D, ceil(h / 2), ceil(w / 2)) of grids (..., D, h, w).

    Args:
        x: (..., D, h, w); fastest where D lies together in memory.
        weight: W_h, of a shape that broadcasts to the result.
        normalise: bring F_H and F_L to mean 0 and deviation 1 over D first.

    Example:
        >>> frequency_fusion(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor(0.5))
        tensor([[[3.5000]]])
    """
    # To repeat a last row changes no mean of a block.
    means = F.avg_pool2d(x.reshape(-1, *x.shape[-3:]), 2, ceil_mode=True, count_include_pad=False)
    low = 2 * means.reshape(*x.shape[:-2], *means.shape[-2:])
    high = 2 * x[..., 0::2, 0::2] - low
    if normalise:
        low, high = _normalised(low), _normalised(high)
    return torch.addcmul(low, high, weight)


def _normalised(band: Tensor) -> Tensor:
    """A band (..., D, h, w) with mean 0 and deviation 1 over D; where it is nothing, nothing."""
    # Not counted from the end: ONNX would record a permutation with negative numbers.
    channels, last = band.ndim - 3, band.ndim - 1
    normalised = F.layer_norm(band.movedim(channels, last), (int(band.shape[channels]),))
    return normalised.movedim(last, channels)


class FrequencyFusion(nn.Module):
    """`frequency_fusion` with a trained W_h for each of L layers, a number a channel.

    Args:
        layers: L.
        width: channels D.
        normalise: bring both bands to deviation 1 first; W_h then begins as 1, else as a tenth.

    Example:
        >>> FrequencyFusion(4, 8)(torch.randn(2, 4, 8, 5, 5)).shape
        torch.Size([2, 4, 8, 3, 3])
    """

    def __init__(self, layers: int, width: int, *, normalise: bool = False) -> None:
        super().__init__()
        self.normalise = normalise
        self.weight = nn.Parameter(torch.empty(layers, width, 1, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set W_h to its start."""
        nn.init.constant_(self.weight, 1.0 if self.normalise else 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Return F_p (B, L, D, ceil(h / 2), ceil(w / 2)) of grids (B, L, D, h, w)."""
        return frequency_fusion(x, self.weight, normalise=self.normalise)


class WaveletRefinement(nn.Module):
    """Vectors of length one that read the fused bands of every layer: `Norm(t + gamma_l Attn(t, F_p, F_p))`.

    It starts as the identity: the attention's output matrix is zero, the factors gamma are one.

    Args:
        fusion: of L layers of width D.
        heads: attention heads, a divisor of D.

    Example:
        >>> refine = WaveletRefinement(FrequencyFusion(4, 8), heads=2)
        >>> text, tokens = F.normalize(torch.randn(3, 2, 8), dim=-1), torch.randn(3, 4, 25, 8)
        >>> refined, bands = refine(text, tokens, grid=(5, 5))
        >>> refined.shape, bands.shape, torch.allclose(refined[:, 0], text)
        (torch.Size([3, 4, 2, 8]), torch.Size([3, 4, 9, 8]), True)
    """

    def __init__(self, fusion: FrequencyFusion, *, heads: int) -> None:
        super().__init__()
        layers, width = fusion.weight.shape[:2]
        self.fusion = fusion
        self.attention = CrossAttention(width, heads=heads)
        self.gamma = nn.Parameter(torch.empty(layers))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the attention anew; W_h and gamma are set to their start."""
        self.fusion.reset_parameters()
        self.attention.reset_parameters(generator)
        nn.init.ones_(self.gamma)

    def forward(self, vectors: Tensor, tokens: Tensor, *, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return refined vectors (B, L, Q, D), and the bands F_p (B, L, S, D) that they read.

        Args:
            vectors: (B, Q, D) of length one.
            tokens: (B, L, N, D).
            grid: (h, w), N = h * w and S = ceil(h / 2) * ceil(w / 2).
        """
        grids = tokens.contiguous().view(*tokens.shape[:2], *grid, -1).permute(0, 1, 4, 2, 3)
        bands = self.fusion(grids).flatten(-2).transpose(-1, -2)
        # LL is twice a mean: without bringing every token to deviation 1, scores would follow its scale.
        bands = F.layer_norm(bands, (int(bands.shape[-1]),))
        moved = self.gamma[:, None, None] * self.attention(vectors, bands)
        return F.normalize(vectors.unsqueeze(1) + moved, dim=-1), bands
