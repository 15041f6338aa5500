"""One pool of frozen, learnable and zero experts to which every token is routed (MPAMA's adaptation, LoRA experts).

A frozen expert gives what there was before, `E(x) = W x`, a learnable one adds an update of low rank to it,
`E_i(x) = W x + (alpha / R) B_i A_i x`, a zero expert gives nothing. So the gated sum over all experts is

    sum_e w_e E_e(x) = W x * (w of all but the zero experts) + (alpha / R) [B_1 .. B_n] (gated [A_1; ..; A_n] x)

two thin products over all tokens, without a gather or a loop over experts: `W x` is computed once, whatever the
routing. A zero expert so makes `W x` shorter; with `keep_length` the sum is divided by the factor of `W x`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zsad.errors import ConfigError
from zsad.nn.moe import topk_gates

EPSILON = 1e-6
"""Least factor of `W x`: a token's direction is never lost."""


class ExpertPool(nn.Module):
    """Pool of experts with its router; experts are ordered frozen, learnable, zero.

    Args:
        width: width D_x of the tokens that learnable experts read.
        out_width: width D of what experts give.
        learnable: number of learnable experts, at least 1.
        frozen: number of frozen experts.
        zero: number of zero experts.
        top_k: experts K chosen for a token.
        rank: rank R of an update.
        alpha: scale of updates times R.
        keep_length: divide by the factor of W x, so that neither routing nor zero experts change what fresh
            learnable experts give.

    Raises:
        ConfigError: more experts chosen than there are, a choice that can consist of zero experts alone, or a
            rank above the width.

    Example:
        >>> pool, x = ExpertPool(16, 12, rank=4), torch.randn(5, 1, 9, 16)
        >>> gates = pool.gates(pool.route(x))
        >>> gates.shape, int((gates[0, 0, 0] != 0).sum()), pool.labels[::5]
        (torch.Size([5, 1, 9, 6]), 2, ('frozen', 'zero'))
        >>> pool(x, gates, base=torch.randn(5, 1, 9, 12)).shape
        torch.Size([5, 1, 9, 12])
    """

    def __init__(
        self,
        width: int,
        out_width: int,
        *,
        learnable: int = 4,
        frozen: int = 1,
        zero: int = 1,
        top_k: int = 2,
        rank: int = 8,
        alpha: float = 16.0,
        keep_length: bool = False,
    ) -> None:
        super().__init__()
        self.frozen, self.learnable, self.zero = frozen, learnable, zero
        self.experts = frozen + learnable + zero
        self.top_k, self.keep_length = top_k, keep_length
        self._check(rank, limit=min(width, out_width))
        self.scale = alpha / rank
        self.router = nn.Parameter(torch.empty(1, self.experts, width))
        self.down = nn.Parameter(torch.empty(learnable, rank, width))
        self.up = nn.Parameter(torch.empty(learnable, rank, out_width))
        self.reset_parameters()

    def _check(self, rank: int, *, limit: int) -> None:
        if self.top_k > self.experts:
            raise ConfigError(
                f"top_k = {self.top_k} exceeds the pool's {self.experts} experts; lower it or add experts"
            )
        if self.top_k <= self.zero:
            raise ConfigError(
                f"top_k = {self.top_k} may choose nothing but the {self.zero} zero experts, which leaves no token; "
                f"use at least {self.zero + 1}, or fewer zero experts"
            )
        if rank > limit:
            raise ConfigError(f"rank {rank} exceeds the width {limit} of the experts; lower it")

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the router N(0, 0.02), A normal with deviation one over the root of its width, B zero."""
        nn.init.normal_(self.router, std=0.02, generator=generator)
        nn.init.normal_(self.down, std=self.down.shape[-1] ** -0.5, generator=generator)
        nn.init.zeros_(self.up)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the E experts."""
        return (
            *_numbered("frozen", self.frozen),
            *(f"learnable {number + 1}" for number in range(self.learnable)),
            *_numbered("zero", self.zero),
        )

    def route(self, tokens: Tensor) -> Tensor:
        """Router logits (B, L, N, E) of tokens (B, L, N, D_x)."""
        return tokens @ self.router.transpose(-1, -2)

    def gates(self, logits: Tensor) -> Tensor:
        """Weights (B, L, N, E): the softmax of logits (B, L, N, E), its K largest brought to the sum 1."""
        return topk_gates(logits, self.top_k)

    def forward(self, tokens: Tensor, gates: Tensor, *, base: Tensor) -> Tensor:
        """Gated sums (B, L, N, D) of the experts.

        Args:
            tokens: (B, L, N, D_x) x.
            gates: (B, L, N, E).
            base: (B, L, N, D) W x, which the frozen expert gives.
        """
        counts = [self.frozen, self.learnable, self.zero]
        frozen, learnable, _ = torch.split(gates, counts, dim=-1)
        hidden = tokens @ self.down.flatten(0, 1).T
        factor = frozen.sum(dim=-1, keepdim=True) + learnable.sum(dim=-1, keepdim=True)
        factor = factor.clamp_min(EPSILON)
        # A learnable expert's weight, once for each of its ranks.
        spread = (self.scale * learnable).unsqueeze(-1).expand(-1, -1, -1, -1, self.down.shape[1]).flatten(-2)
        if self.keep_length:
            spread, factor = spread / factor, torch.ones_like(factor)
        mixed: Tensor = base * factor + (hidden * spread) @ self.up.flatten(0, 1)
        return mixed


def _numbered(word: str, count: int) -> tuple[str, ...]:
    return (word,) if count == 1 else tuple(f"{word} {number + 1}" for number in range(count))
