"""Oddness of a patch within its own picture: rare, unlike its surroundings, unlike its mirror image.

Three cues that need no training, no text and no other image, all from one matrix of cosines between the patches of a
picture. A defect is rare where the same texture repeats; it stands out from what lies around it; on a thing that is
symmetric it has no counterpart on the other side. Each cue rises with oddness and lies in [0, 2].
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

CUES = ("rarity", "contrast", "asymmetry")
"""The cues in the order of `oddness`."""


def oddness(
    texture: Tensor, grid: tuple[int, int], *, neighbours: int = 10, near: int = 3, outer: int = 4
) -> Tensor:
    """The three cues (B, 3, N) of patch features (B, N, C), which need not have length one.

    Args:
        texture: features of local texture, N = h * w. Not centred: what all patches share keeps them comparable.
        grid: rows and columns (h, w).
        neighbours: most similar patches asked by `rarity`.
        near: distance in patches up to which a patch's own surroundings are no witness for `rarity`.
        outer: radius in patches of the surroundings in `contrast`.

    Example:
        >>> cues = oddness(torch.randn(2, 64, 16), (8, 8))
        >>> cues.shape
        torch.Size([2, 3, 64])
    """
    cosines = cosine_matrix(texture)
    cues = (
        rarity(cosines, grid, neighbours=neighbours, near=near),
        contrast(cosines, grid, outer=outer),
        asymmetry(cosines, grid),
    )
    return torch.stack(cues, dim=1)


def cosine_matrix(texture: Tensor) -> Tensor:
    """Cosines (B, N, N) between the patches of each picture, of features (B, N, C).

    Example:
        >>> cosine_matrix(torch.tensor([[[2.0, 0.0], [0.0, 3.0]]])).tolist()
        [[[1.0, 0.0], [0.0, 1.0]]]
    """
    unit = F.normalize(texture.float(), dim=-1)
    return unit @ unit.transpose(-1, -2)


def rarity(cosines: Tensor, grid: tuple[int, int], *, neighbours: int = 10, near: int = 3) -> Tensor:
    """One minus the mean cosine to the most similar patches elsewhere in the picture: (B, N).

    Patches nearer than `near` in both directions are left out: a defect resembles itself. Where fewer than
    `neighbours` patches lie farther away, all of these are asked; where none does, the cue is 0.

    Args:
        cosines: (B, N, N).
        grid: rows and columns (h, w), N = h * w.
        neighbours: patches asked, at least 1.
        near: distance in patches.

    Example:
        >>> same = torch.ones(1, 81, 81)
        >>> rarity(same, (9, 9)).abs().max().item()
        0.0
    """
    allowed = _far(grid, near, cosines.device)
    nearest = cosines.masked_fill(~allowed, -2.0).topk(min(neighbours, cosines.shape[-1]), dim=-1).values
    counted = (nearest > -1.5).to(cosines.dtype)
    mean = (nearest * counted).sum(dim=-1) / counted.sum(dim=-1).clamp_min(1)
    return torch.where(counted.any(dim=-1), 1 - mean, torch.zeros_like(mean))


def contrast(cosines: Tensor, grid: tuple[int, int], *, inner: int = 1, outer: int = 4) -> Tensor:
    """One minus the mean cosine to the ring of patches farther than `inner` and at most `outer` away: (B, N).

    Distances are the larger one of rows and columns. On a grid without such patches the cue is 0.

    Args:
        cosines: (B, N, N).
        grid: rows and columns (h, w), N = h * w.
        inner: distance in patches up to which patches do not count.
        outer: distance in patches up to which they count.

    Example:
        >>> contrast(torch.ones(1, 81, 81), (9, 9)).abs().max().item() < 1e-6
        True
    """
    ring = _far(grid, inner, cosines.device) & ~_far(grid, outer, cosines.device)
    weights = ring.to(cosines.dtype)
    count = weights.sum(dim=-1)
    mean = (cosines * weights).sum(dim=-1) / count.clamp_min(1)
    return torch.where(count > 0, 1 - mean, torch.zeros_like(mean))


def asymmetry(cosines: Tensor, grid: tuple[int, int], *, slack: int = 1, middle: int = 2) -> Tensor:
    """One minus the best cosine to the patches around the mirror image, left and right exchanged: (B, N).

    Patches at most `middle` columns from their counterparts show nothing: there the cue is 0.

    Args:
        cosines: (B, N, N).
        grid: rows and columns (h, w), N = h * w.
        slack: distance in patches from the exact mirror image at which a counterpart may lie.
        middle: columns between a patch and a counterpart that are too few.

    Example:
        >>> asymmetry(torch.ones(1, 81, 81), (9, 9)).abs().max().item()
        0.0
    """
    allowed = _mirrored(grid, slack, middle, cosines.device)
    best = cosines.masked_fill(~allowed, -2.0).amax(dim=-1)
    return torch.where(allowed.any(dim=-1), 1 - best, torch.zeros_like(best))


def top_mean(values: Tensor, share: float) -> Tensor:
    """Mean of the highest `share` of the values (..., N), at least of one: (...).

    Example:
        >>> top_mean(torch.arange(10.0), 0.2).item()
        8.5
    """
    return values.topk(max(1, round(share * int(values.shape[-1]))), dim=-1).values.mean(dim=-1)


def _positions(grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Row and column (N,) of each patch."""
    rows, columns = grid
    return torch.arange(rows).repeat_interleave(columns), torch.arange(columns).repeat(rows)


@lru_cache(maxsize=16)
def _far(grid: tuple[int, int], distance: int, device: torch.device) -> Tensor:
    """(N, N): whether two patches are more than `distance` apart in rows or in columns."""
    with torch.inference_mode(mode=False):
        row, column = _positions(grid)
        apart = torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs())
        return (apart > distance).to(device)


@lru_cache(maxsize=16)
def _mirrored(grid: tuple[int, int], slack: int, middle: int, device: torch.device) -> Tensor:
    """(N, N): whether the second patch may be the counterpart of the first one."""
    with torch.inference_mode(mode=False):
        row, column = _positions(grid)
        mirror = grid[1] - 1 - column
        close = ((row[:, None] - row).abs() <= slack) & ((mirror[:, None] - column).abs() <= slack)
        return (close & ((column[:, None] - column).abs() > middle)).to(device)
