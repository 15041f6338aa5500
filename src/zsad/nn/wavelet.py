"""The single-level 2-D Haar transform of feature grids, the fusion of its bands, and what reads them (WMoE-CLIP).

A 2 x 2 block [[a, b], [c, d]] becomes four numbers of the same energy:

    LL = (a + b + c + d) / 2,   LH = (a + b - c - d) / 2
    HL = (a - b + c - d) / 2,   HH = (a - b - c + d) / 2

Their published sum of high bands is `LH + HL + HH = 2 a - LL`: the contrast of a block's first token against the
block. It carries a sign and is not shift-invariant. With it, `F_p = F_H * W_h + LL` is `2 lerp(mean of the block, a,
W_h)`. A grid with an odd side is continued by its last row or column.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zsad.errors import ConfigError
from zsad.nn.attention import CrossAttention

High = Literal["sum", "absolute"]
FusionShape = Literal["channel", "position", "pointwise"]


def haar(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bands LL, LH, HL, HH, each (..., ceil(h / 2), ceil(w / 2)), of grids (..., h, w), orthonormal.

    Example:
        >>> [float(band) for band in haar(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))]
        [5.0, -2.0, -1.0, 0.0]
    """
    top, bottom = _pairs(x, -2)
    (left, right), (left_high, right_high) = _pairs(top + bottom, -1), _pairs(top - bottom, -1)
    return (
        (left + right) / 2,
        (left_high + right_high) / 2,
        (left - right) / 2,
        (left_high - right_high) / 2,
    )


def split_frequencies(x: Tensor, *, high: High = "sum") -> tuple[Tensor, Tensor]:
    """F_L = LL and F_H, each (..., D, ceil(h / 2), ceil(w / 2)), of grids (..., D, h, w).

    Args:
        x: (..., D, h, w).
        high: `sum` of LH, HL and HH as published, without forming them; or the sum of their absolute values, which
            changes less where a defect lies one token further.

    Example:
        >>> [float(part) for part in split_frequencies(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))]
        [5.0, -3.0]
    """
    if high == "absolute":
        low, *others = haar(x)
        return low, others[0].abs() + others[1].abs() + others[2].abs()
    low = 2 * _block_means(x)
    return low, 2 * x[..., 0::2, 0::2] - low


def frequency_fusion(x: Tensor, weight: Tensor, *, high: High = "sum") -> Tensor:
    """F_p = F_H * W_h + F_L (..., D, ceil(h / 2), ceil(w / 2)) of grids (..., D, h, w).

    Args:
        x: (..., D, h, w); fastest where D lies together in memory.
        weight: W_h, of a shape that broadcasts to the result.
        high: as in `split_frequencies`.

    Example:
        >>> frequency_fusion(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor(0.5))
        tensor([[[3.5000]]])
    """
    if high == "absolute":
        low, contrast = split_frequencies(x, high=high)
        return torch.addcmul(low, contrast, weight)
    return 2 * torch.lerp(_block_means(x), x[..., 0::2, 0::2], weight)


def _block_means(x: Tensor) -> Tensor:
    """Means (..., D, ceil(h / 2), ceil(w / 2)) of the blocks: to repeat a last row changes no mean."""
    means = F.avg_pool2d(x.reshape(-1, *x.shape[-3:]), 2, ceil_mode=True, count_include_pad=False)
    return means.reshape(*x.shape[:-2], *means.shape[-2:])


def _pairs(x: Tensor, axis: Literal[-2, -1]) -> tuple[Tensor, Tensor]:
    """Entries 0, 2, .. and 1, 3, .. along an axis; an odd one out is paired with itself."""
    even, odd = (x[..., 0::2], x[..., 1::2]) if axis == -1 else (x[..., 0::2, :], x[..., 1::2, :])
    if x.shape[axis] % 2:
        odd = torch.cat([odd, even.narrow(axis, even.shape[axis] - 1, 1)], dim=axis)
    return even, odd


class FrequencyFusion(nn.Module):
    """`frequency_fusion` with a trained W_h for each of L layers.

    Args:
        layers: L.
        width: channels D.
        shape: W_h is a number a `channel`, one a channel and `position`, or a matrix over channels (`pointwise`,
            a 1 x 1 convolution).
        grid: rows and columns (h, w) of what is fused; only a W_h of every position depends on it.
        high: as in `split_frequencies`.
        start: what W_h begins as; the matrix as so many times the identity.

    Example:
        >>> FrequencyFusion(4, 8, grid=(5, 5))(torch.randn(2, 4, 8, 5, 5)).shape
        torch.Size([2, 4, 8, 3, 3])
    """

    def __init__(
        self,
        layers: int,
        width: int,
        *,
        shape: FusionShape = "channel",
        grid: tuple[int, int],
        high: High = "sum",
        start: float = 0.1,
    ) -> None:
        super().__init__()
        self.shape, self.high, self.start = shape, high, start
        half = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
        tail = {"channel": (1, 1), "position": half, "pointwise": (width,)}[shape]
        self.weight = nn.Parameter(torch.empty(layers, width, *tail))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """W_h as it starts."""
        with torch.no_grad():
            if self.shape == "pointwise":
                self.weight.zero_().diagonal(dim1=-2, dim2=-1).fill_(self.start)
            else:
                self.weight.fill_(self.start)

    def forward(self, x: Tensor) -> Tensor:
        """F_p (B, L, D, ceil(h / 2), ceil(w / 2)) of grids (B, L, D, h, w).

        Raises:
            ConfigError: W_h is of every position, but of another grid.
        """
        if self.shape == "pointwise":
            low, contrast = split_frequencies(x, high=self.high)
            return low + torch.einsum("blchw,ldc->bldhw", contrast, self.weight)
        half = tuple((side + 1) // 2 for side in x.shape[-2:])
        if self.shape == "position" and half != self.weight.shape[-2:]:
            raise ConfigError(
                f"a W_h of {tuple(self.weight.shape[-2:])} positions cannot weigh the {half} of a grid of "
                f"{tuple(x.shape[-2:])}; use the image size of training, or one W_h a channel"
            )
        return frequency_fusion(x, self.weight, high=self.high)


class WaveletRefinement(nn.Module):
    """Vectors of length one that read the fused bands of every layer: `Norm(t + gamma_l Attn(t, F_p, F_p))`.

    It starts as the identity.

    Args:
        fusion: of L layers of width D.
        heads: attention heads, a divisor of D.
        start: what is zero at the start: the attention's `output` matrix, or the factors `gamma`.

    Example:
        >>> refine = WaveletRefinement(FrequencyFusion(4, 8, grid=(5, 5)), heads=2)
        >>> text, tokens = F.normalize(torch.randn(3, 2, 8), dim=-1), torch.randn(3, 4, 25, 8)
        >>> refined, bands = refine(text, tokens, grid=(5, 5))
        >>> refined.shape, bands.shape, torch.allclose(refined[:, 0], text)
        (torch.Size([3, 4, 2, 8]), torch.Size([3, 4, 9, 8]), True)
    """

    def __init__(
        self, fusion: FrequencyFusion, *, heads: int, start: Literal["output", "gamma"] = "output"
    ) -> None:
        super().__init__()
        layers, width = fusion.weight.shape[:2]
        self.fusion = fusion
        self.attention = CrossAttention(width, heads=heads, zero=start == "output")
        self.gamma = nn.Parameter(torch.empty(layers))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """W_h, attention and gamma as they start."""
        self.fusion.reset_parameters()
        self.attention.reset_parameters(generator)
        nn.init.constant_(self.gamma, float(self.attention.zero))

    def forward(self, vectors: Tensor, tokens: Tensor, *, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Refined vectors (B, L, Q, D), and the bands F_p (B, L, S, D) that they read.

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
