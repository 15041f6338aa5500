"""Experts that each look at an image in their own way: attention pooling, then a bottleneck (WMoE-CLIP's SA-MoE)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zsad.nn.moe import batch_sum, topk_gates

_OUTPUT_START = 0.3  # of what `nn.Linear` starts as: a fraction of f, which has length one
_ROUTER_START = 0.5  # deviation: what images differ by decides, not what they share


def load_balance_loss(logits: Tensor, *, top_k: int) -> Tensor:
    """`E * sum_e f_e p_e`, mean over layers: share of choices times mean probability (Fedus et al., 2022).

    Args:
        logits: (B, ..., E) of routers; every axis between the first and the last counts as layers.
        top_k: experts k that are chosen, those of the largest logits.

    Returns:
        A scalar: 1 where experts are used alike; E times the chosen ones' probability over their number where a
        batch always chooses the same.

    Example:
        >>> logits = 9 * torch.eye(4)  # four images, each sure of an expert of its own
        >>> round(float(load_balance_loss(logits, top_k=1)), 3)
        1.0
    """
    # Counted by index: a chosen expert counts even where its weight is nothing.
    chosen = torch.zeros_like(logits).scatter(-1, logits.topk(top_k, dim=-1).indices, 1.0)
    shares = batch_sum(chosen) / len(logits) / top_k
    probabilities = batch_sum(logits.softmax(dim=-1)) / len(logits)
    return logits.shape[-1] * (shares * probabilities).sum(dim=-1).mean()


class AttentionPoolExperts(nn.Module):
    """E experts, each `D -> hidden -> D` with GELU on the tokens that its own query pools.

    `E_e(F) = V_e gelu(U_e softmax(u_e F^T / sqrt(D)) F)`, with biases; tokens F have mean 0 and deviation 1.

    All experts are evaluated, as batched products: reading the tokens costs the same for one and for all, and
    the rest is small against it.

    Args:
        experts: E.
        width: width D of tokens and result.
        hidden: width of the bottlenecks.

    Example:
        >>> pool = AttentionPoolExperts(4, 8, 3)
        >>> pool(torch.randn(5, 9, 8), torch.full((5, 4), 0.25)).shape
        torch.Size([5, 8])
    """

    def __init__(self, experts: int, width: int, hidden: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(experts, width))
        self.first = nn.Parameter(torch.empty(experts, width, hidden))
        self.first_bias = nn.Parameter(torch.empty(experts, hidden))
        self.second = nn.Parameter(torch.empty(experts, hidden, width))
        self.second_bias = nn.Parameter(torch.empty(experts, width))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Queries standard normal, outputs small: experts look at other tokens and say other things from the start.

        Were outputs zero, the first steps would move all experts in one direction.
        """
        nn.init.normal_(self.queries, generator=generator)
        bound = self.first.shape[-2] ** -0.5
        nn.init.uniform_(self.first, -bound, bound, generator=generator)
        nn.init.uniform_(self.first_bias, -bound, bound, generator=generator)
        bound = _OUTPUT_START * self.second.shape[-2] ** -0.5
        nn.init.uniform_(self.second, -bound, bound, generator=generator)
        nn.init.zeros_(self.second_bias)

    def forward(self, tokens: Tensor, gates: Tensor) -> Tensor:
        """Gated sums (B, D) of the experts' views of tokens (B, N, D), for gates (B, E).

        Tokens are brought to mean 0 and deviation 1 first, so that scores start with deviation one, too.
        """
        tokens = F.layer_norm(tokens, (int(tokens.shape[-1]),))
        scores = self.queries @ tokens.transpose(-1, -2) * tokens.shape[-1] ** -0.5
        pooled = scores.softmax(dim=-1) @ tokens
        hidden = F.gelu(torch.einsum("bed,edh->beh", pooled, self.first) + self.first_bias)
        gated = hidden * gates.unsqueeze(-1)
        return torch.einsum("beh,ehd->bd", gated, self.second) + gates @ self.second_bias


class SemanticExperts(nn.Module):
    """`Norm(f + sum over k of w_e E_e(tokens))`, the experts chosen once an image by what it means (SA-MoE).

    Args:
        experts: E.
        width: width D of f and of tokens.
        hidden: width of the experts' bottlenecks.
        router_width: width of what the router, one linear map, reads.
        top_k: experts k that an image uses.

    Example:
        >>> experts = SemanticExperts(4, 8, 3, router_width=6, top_k=2)
        >>> f = F.normalize(torch.randn(5, 8), dim=-1)
        >>> enriched, logits, gates = experts(f, torch.randn(5, 6), torch.randn(5, 9, 8))
        >>> enriched.shape, gates.shape, int((gates[0] != 0).sum())
        (torch.Size([5, 8]), torch.Size([5, 1, 4]), 2)
    """

    def __init__(self, experts: int, width: int, hidden: int, *, router_width: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.pool = AttentionPoolExperts(experts, width, hidden)
        self.router = nn.Linear(router_width, experts)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Experts as they start; the router random, without bias, so that images decide from the start."""
        self.pool.reset_parameters(generator)
        nn.init.normal_(self.router.weight, std=_ROUTER_START, generator=generator)
        nn.init.zeros_(self.router.bias)

    def forward(self, f: Tensor, meaning: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Enriched f (B, D), the router's logits and the gates w, both (B, 1, E).

        Args:
            f: (B, D).
            meaning: (B, router_width), what the router reads.
            tokens: (B, N, D), what the experts read.
        """
        logits = self.router(meaning)
        gates = topk_gates(logits, self.top_k)
        g = F.normalize(f + self.pool(tokens, gates), dim=-1)
        return g, logits.unsqueeze(1), gates.unsqueeze(1)
