"""Prompts that begin alike, packed into one sequence: a token tree whose shared prefix is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """Layout of a packed sequence.

    Attributes:
        positions: (S,) the position each token has in its own prompt.
        mask: (S, S) boolean, true where a token may look: tokens before it in its own prompt, and itself.
        ends: (Q,) packed index of the last token of each prompt.
    """

    positions: Tensor
    mask: Tensor
    ends: Tensor

    def to(self, device: torch.device) -> TreeLayout:
        """Move the layout to a device."""
        return TreeLayout(self.positions.to(device), self.mask.to(device), self.ends.to(device))


@lru_cache(maxsize=32)
def tree_layout(prefix: int, branches: tuple[int, ...]) -> TreeLayout:
    """The layout of prompts that share `prefix` tokens and go on with `branches` tokens of their own.

    Example:
        >>> layout = tree_layout(2, (1, 2))
        >>> layout.positions.tolist(), layout.ends.tolist()
        ([0, 1, 2, 2, 3], [2, 4])
        >>> layout.mask[4].tolist()  # the second prompt does not see the first one's own token
        [True, True, False, True, True]
    """
    with torch.inference_mode(mode=False):
        owner = torch.cat(
            [torch.full((length,), number) for number, length in enumerate((prefix, *branches))]
        )
        positions = torch.cat(
            [torch.arange(prefix), *(torch.arange(prefix, prefix + length) for length in branches)]
        )
        order = torch.arange(len(owner))
        visible = (owner[None, :] == 0) | (owner[None, :] == owner[:, None])
        mask = visible & (order[None, :] <= order[:, None])
        ends = prefix + torch.tensor(branches).cumsum(0) - 1
        return TreeLayout(positions, mask, ends)


def pack(
    prefix: Sequence[Tensor], branches: Sequence[Sequence[Tensor]], *, batch: int
) -> tuple[Tensor, TreeLayout]:
    """Segments of token embeddings joined into packed sequences.

    Args:
        prefix: segments that all prompts begin with, each (M, D) or (batch, M, D).
        branches: for each prompt the segments that follow the prefix.
        batch: number of sequences.

    Returns:
        Embeddings (batch, S, D) without positions, and their layout.

    Example:
        >>> begin, normal, abnormal = torch.randn(3, 8), torch.randn(1, 8), torch.randn(5, 2, 8)
        >>> packed, layout = pack([begin], [[normal], [abnormal]], batch=5)
        >>> packed.shape, layout.ends.tolist()
        (torch.Size([5, 6, 8]), [3, 5])
    """
    segments = [*prefix, *(segment for branch in branches for segment in branch)]
    joined = torch.cat([segment.expand(batch, -1, -1) for segment in segments], dim=1)
    lengths = [sum(int(segment.shape[-2]) for segment in part) for part in (prefix, *branches)]
    layout = tree_layout(lengths[0], tuple(lengths[1:]))
    return joined, layout.to(joined.device)
