"""Learnable queries that read the tokens of an image: cross-attention without projecting a token."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def query_pool(
    queries: Tensor,
    key: Tensor,
    value: Tensor,
    tokens: Tensor,
    *,
    extra: Tensor | None,
    heads: int,
    scale: float,
) -> Tensor:
    """The mean over queries of multi-head `softmax(q (F W_K)^T * scale) F W_V` (PromptMoE Eq. 2).

    Exact, but neither keys nor values of the tokens are ever formed. Queries do not depend on the image, so W_K
    is folded into them once: `q (F W_K)^T = (q W_K^T) F^T`. And the mean over queries commutes with everything
    behind the softmax, so W_V is applied to one pooled token a head instead of all N. For 1370 tokens this is
    some twentieth of the arithmetic.

    Args:
        queries: (T, L, Q, D) of T states and L layers.
        key: (T, L, C, D), W_K.
        value: (T, L, C, D), W_V.
        tokens: (B, L, N, C).
        extra: (B, C), one more token that every layer sees; or None.
        heads: heads into which D is split.
        scale: factor on the scores.

    Returns:
        (B, T, L, D).

    Example:
        >>> key, value = torch.randn(2, 2, 4, 6, 8)
        >>> queries, tokens = torch.randn(2, 4, 3, 8), torch.randn(5, 4, 9, 6)
        >>> query_pool(queries, key, value, tokens, extra=None, heads=2, scale=0.5).shape
        torch.Size([5, 2, 4, 8])
    """
    states, count = queries.shape[0], queries.shape[2]
    folded = torch.einsum("tlqhd,tlchd->lthqc", split(queries, heads) * scale, split(key, heads)).flatten(
        1, 3
    )
    scores = folded @ tokens.transpose(-1, -2)
    if extra is not None:
        scores = torch.cat([scores, torch.einsum("lkc,bc->blk", folded, extra).unsqueeze(-1)], dim=-1)
    by_query = scores.softmax(dim=-1).view(*scores.shape[:2], states * heads, count, -1)
    weights = by_query.mean(dim=3)
    pooled = weights[..., : tokens.shape[2]] @ tokens
    if extra is not None:
        pooled = pooled + weights[..., -1:] * extra[:, None, None]
    pooled = pooled.view(*pooled.shape[:2], states, heads, -1)
    return torch.einsum("blthc,tlchd->btlhd", pooled, split(value, heads)).flatten(-2)


def split(x: Tensor, heads: int) -> Tensor:
    """(..., D) to (..., heads, D / heads).

    Example:
        >>> split(torch.zeros(5, 8), heads=2).shape
        torch.Size([5, 2, 4])
    """
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


class QueryAttention(nn.Module):
    """Stacked `query_pool`: its own queries and projections for each state and layer.

    Args:
        states: T, number of independent copies.
        layers: L.
        queries: learnable queries Q of each.
        token_width: width C of the tokens read.
        width: width D of queries and result, a multiple of `heads`.
        heads: attention heads.

    Example:
        >>> attention = QueryAttention(2, 4, queries=3, token_width=6, width=8, heads=2)
        >>> attention(torch.randn(5, 4, 9, 6), extra=torch.randn(5, 6)).shape
        torch.Size([5, 2, 4, 8])
    """

    def __init__(
        self,
        states: int,
        layers: int,
        *,
        queries: int,
        token_width: int,
        width: int,
        heads: int,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.queries = nn.Parameter(torch.empty(states, layers, queries, width))
        self.key = nn.Parameter(torch.empty(states, layers, token_width, width))
        self.value = nn.Parameter(torch.empty(states, layers, token_width, width))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Queries normal with deviation 0.02, matrices uniform after Glorot."""
        nn.init.normal_(self.queries, std=0.02, generator=generator)
        for matrix in (self.key, self.value):
            bound = (6 / (matrix.shape[-2] + matrix.shape[-1])) ** 0.5
            nn.init.uniform_(matrix, -bound, bound, generator=generator)

    def forward(self, tokens: Tensor, *, extra: Tensor | None = None) -> Tensor:
        """Pooled tokens (B, T, L, D) of tokens (B, L, N, C) and an `extra` one (B, C) for every layer."""
        return query_pool(
            self.queries, self.key, self.value, tokens, extra=extra, heads=self.heads, scale=self.scale
        )


class CrossAttention(nn.Module):
    """Multi-head attention from an image's own queries to tokens of L layers, with one W_Q, W_K, W_V, W_O for all.

    That of Vaswani et al. (2017), `softmax(q W_Q (F W_K)^T / sqrt(D / heads)) F W_V W_O`, without biases.

    It starts with W_O = 0. As in `query_pool`, keys and values are never formed: W_K is folded into the few queries
    of an image, W_V is applied to what they pool. That is exact.

    Args:
        width: width D of queries, tokens and result, a multiple of `heads`.
        heads: attention heads.

    Example:
        >>> attention = CrossAttention(8, heads=2)
        >>> read = attention(torch.randn(5, 3, 8), torch.randn(5, 4, 9, 8))
        >>> read.shape, bool(read.any())
        (torch.Size([5, 4, 3, 8]), False)
    """

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.empty(width, width))
        self.key = nn.Parameter(torch.empty(width, width))
        self.value = nn.Parameter(torch.empty(width, width))
        self.output = nn.Parameter(torch.empty(width, width))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw W_Q, W_K and W_V uniformly after Glorot; W_O is zero."""
        for matrix in (self.query, self.key, self.value, self.output):
            bound = (3 / matrix.shape[0]) ** 0.5
            nn.init.uniform_(matrix, -bound, bound, generator=generator)
        nn.init.zeros_(self.output)  # drawn all the same: what is drawn next must not depend on it

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """`softmax(q W_Q (F W_K)^T / sqrt(D / heads)) F W_V W_O` (B, L, Q, D).

        Args:
            queries: (B, Q, D), or (1, Q, D) for queries that all images share.
            tokens: (B, L, N, D).
        """
        heads = self.heads
        scaled = split(queries @ self.query, heads) * (self.query.shape[0] // heads) ** -0.5
        folded = torch.einsum("bqhd,chd->bhqc", scaled, split(self.key, heads)).flatten(1, 2)
        weights = (folded.unsqueeze(1) @ tokens.transpose(-1, -2)).softmax(dim=-1)
        pooled = (weights @ tokens).view(*weights.shape[:2], heads, -1, tokens.shape[-1])
        return torch.einsum("blhqc,chd->blqhd", pooled, split(self.value, heads)).flatten(-2) @ self.output
