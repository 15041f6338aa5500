"""A mixture of low-rank experts (LoRA) over the tokens of a residual stream, evaluated in the rank space.

Expert n maps a token x (D,) to `E_n(x) = s B_n A_n x` through a bottleneck of rank R. Written as published, every
expert's output is a full (T, D) tensor, to be stacked, weighted, normalised and compared. But all of that is linear or
quadratic in the bottlenecks `h_n = s A_n x` (R numbers a token):

    sum_n w_n E_n(x) = [w_1 h_1, .., w_E h_E] B          one product with all B_n side by side
    <E_n(x), E_m(x)> = h_n^T (B_n^T B_m) h_m             R x R blocks of one Gram matrix
    ||y||^2          = w^T <E, E> w                      no pass over y

so that the full width D is touched by one product into the bottlenecks and one out of them, whatever the number of
experts. Gates and the scale that brings y to the length of x are numbers a token and ride on the bottlenecks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zsad.errors import ConfigError
from zsad.nn.moe import batch_sum, topk_gates


@dataclass(slots=True)
class Routed:
    """Result of a mixture over T tokens.

    Attributes:
        tokens: of the shape of the input.
        logits: (T, E) of the router.
        weights: (T, E) of the experts, k of a token not zero.
        gram: (T, E, E) inner products of the outputs of all experts, chosen or not.
    """

    tokens: Tensor
    logits: Tensor
    weights: Tensor
    gram: Tensor


def orthonormal_blocks(
    experts: int, rank: int, width: int, *, generator: torch.Generator | None = None
) -> Tensor:
    """Draw maps (E, R, D) with orthonormal rows, each zero outside its own range of columns (MoECLIP's FOFS).

    The first `width mod experts` ranges are one column longer. `A_n A_n^T = I`, `A_n A_m^T = 0`.

    Raises:
        ConfigError: a rank above the shortest range.

    Example:
        >>> maps = orthonormal_blocks(4, 2, 16)
        >>> torch.allclose(maps.flatten(0, 1) @ maps.flatten(0, 1).T, torch.eye(8), atol=1e-6)
        True
        >>> (maps[1] != 0).any(dim=0).nonzero().flatten().tolist()
        [4, 5, 6, 7]
    """
    if rank > width // experts:
        raise ConfigError(
            f"rank = {rank} exceeds the {width // experts} features that each of {experts} experts reads of "
            f"{width}; lower the rank, use fewer experts or let experts read all features (fofs off)"
        )
    maps = torch.zeros(experts, rank, width)
    ranges = torch.arange(width).tensor_split(experts)
    for block, columns in zip(maps, ranges, strict=True):
        draw = torch.randn(len(columns), rank, generator=generator)
        block[:, columns] = torch.linalg.qr(draw).Q.T
    return maps


def expert_gram(hidden: Tensor, up: Tensor) -> Tensor:
    """Return `<B_n h_n, B_m h_m>` (T, E, E) of bottlenecks h (T, E, R) and maps `B^T` (E, R, D).

    Example:
        >>> hidden, up = torch.randn(5, 4, 2), torch.randn(4, 2, 16)
        >>> outputs = torch.einsum("ter,erd->ted", hidden, up)
        >>> torch.allclose(expert_gram(hidden, up), outputs @ outputs.mT, atol=1e-4)
        True
    """
    experts, rank, _ = up.shape
    flat = up.flatten(0, 1)
    blocks = (flat @ flat.T).view(experts, rank, experts * rank)
    turned = torch.bmm(hidden.transpose(0, 1), blocks).transpose(0, 1)
    return (turned.reshape(-1, experts, experts, rank) * hidden.unsqueeze(1)).sum(dim=-1)


def etf_loss(gram: Tensor, *, floor: float = 1e-6) -> Tensor:
    """Mean square of `cos(E_n, E_m) - G*`: 0 where E experts span a simplex equiangular tight frame (MoECLIP).

    G* is 1 on the diagonal and `-1 / (E - 1)` beside it. Outputs that vanish give `1 / (E - 1)`, equal ones
    `E / (E - 1)`.

    Args:
        gram: (T, E, E) inner products, E > 1.
        floor: below which lengths are not divided by, but by this.

    Example:
        >>> outputs = torch.eye(4) - 1 / 4  # a simplex
        >>> float(etf_loss((outputs @ outputs.T)[None])) < 1e-12
        True
    """
    experts = gram.shape[-1]
    lengths = _root(gram.diagonal(dim1=-2, dim2=-1)).clamp_min(floor)
    cosine = gram / (lengths.unsqueeze(-1) * lengths.unsqueeze(-2))
    target = torch.full_like(cosine[0], -1 / (experts - 1)).fill_diagonal_(1)
    return (cosine - target).square().mean()


def imbalance_loss(logits: Tensor) -> Tensor:
    """`(std / mean)^2` of the experts' shares of probability over all tokens, std unbiased (MoECLIP).

    Args:
        logits: (T, E) of a router. One expert is always balanced.

    Example:
        >>> float(imbalance_loss(torch.zeros(9, 4)))
        0.0
    """
    mass = batch_sum(logits.softmax(dim=-1))
    # The variance, not the squared deviation: the gradient of a root at 0, where training starts, is not finite.
    return mass.var() / mass.mean().square() if len(mass) > 1 else mass.sum() * 0


def _root(squares: Tensor) -> Tensor:
    """Square root with gradient 0 at 0, as a norm has it; rounding may have left squares below 0."""
    return squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()


class LoRAMixture(nn.Module):
    """Tokens x to `lambda y ||x|| / (||y|| + floor) + (1 - lambda) x`, y the mixture of the k experts chosen for x.

    `w = topk(softmax(W_g x))`, renormalised; `y = sum_n w_n (alpha / R) B_n A_n dropout(x)`. All B_n start at 0.

    Args:
        width: D of the tokens.
        experts: number E.
        top_k: experts k of a token.
        rank: R of an expert.
        alpha: numerator of the experts' scale.
        dropout: share of features that experts do not see in training. All see the same; where each reads
            features of its own (`orthogonal`), that is the same as drawing for each.
        blend: lambda in [0, 1].
        norm_floor: added to `||y||`; while y is near 0, gradients are of order `||x|| / norm_floor`.
        orthogonal: A_n are frozen `orthonormal_blocks`; otherwise they are trained from a Kaiming-uniform start.
        router_std: deviation of the router's start; 0 starts with ties.

    Raises:
        ConfigError: more experts chosen than there are, or a rank that does not fit the width.

    Example:
        >>> layer, x = LoRAMixture(64, experts=4, top_k=2, rank=8), torch.randn(5, 10, 64)
        >>> routed = layer(x)
        >>> torch.allclose(routed.tokens, 0.9 * x)  # untrained experts put out nothing
        True
        >>> routed.weights.shape, round(etf_loss(routed.gram).item(), 3)
        (torch.Size([50, 4]), 0.333)
    """

    down: Tensor

    def __init__(
        self,
        width: int,
        *,
        experts: int = 4,
        top_k: int = 2,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.05,
        blend: float = 0.1,
        norm_floor: float = 1e-6,
        orthogonal: bool = True,
        router_std: float = 0.0,
    ) -> None:
        super().__init__()
        if top_k > experts:
            raise ConfigError(f"top_k = {top_k} exceeds the {experts} experts; lower it or add experts")
        if rank > width:
            raise ConfigError(f"rank = {rank} exceeds the width {width} of the tokens; lower the rank")
        self.top_k, self.dropout, self.blend, self.norm_floor = top_k, dropout, blend, norm_floor
        self.scale, self.orthogonal, self.router_std = alpha / rank, orthogonal, router_std
        self.router = nn.Parameter(torch.empty(experts, width))
        self.up = nn.Parameter(torch.empty(experts, rank, width))
        down = torch.empty(experts, rank, width)
        if orthogonal:
            self.register_buffer("down", down)
        else:
            self.down = nn.Parameter(down)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the router and every A anew; every B is 0."""
        experts, rank, width = self.up.shape
        self.up.zero_()
        if self.router_std:
            self.router.normal_(std=self.router_std, generator=generator)
        else:
            self.router.zero_()
        if self.orthogonal:
            self.down.copy_(orthonormal_blocks(experts, rank, width, generator=generator))
        else:
            # Kaiming's bound with the slope sqrt(5) that `nn.Linear` has.
            bound = width**-0.5
            self.down.uniform_(-bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Routed:
        """Mix the experts over tokens x (..., D); mixed precision is left here."""
        tokens = x.reshape(-1, x.shape[-1]).to(self.up.dtype)
        dropped, scale = None, self.scale
        if self.training and self.dropout:
            dropped = _dropped(tokens.numel(), self.dropout, tokens.device)
            scale = scale / (1 - self.dropout)
        settings = _Settings(scale, self.top_k, self.blend, self.norm_floor)
        mixture = _Mixture.apply if torch.is_grad_enabled() else _mixture
        with torch.autocast(x.device.type, enabled=False):
            blended, *rest = mixture(tokens, self.down, self.router, self.up, dropped, settings)
        return Routed(blended.view(x.shape).to(x.dtype), *rest)


@dataclass(frozen=True, slots=True)
class _Settings:
    """Numbers of a mixture: the bottlenecks' scale, experts of a token, lambda, what is added to `||y||`."""

    scale: float
    top_k: int
    blend: float
    norm_floor: float


def _dropped(count: int, share: float, device: torch.device) -> Tensor:
    """Draw increasing positions among `count`, each with probability `share`.

    Few are, so their distances are drawn (geometric) instead of one number a position: on processors six times as fast.
    """
    if share >= 1:
        return torch.arange(count, device=device)
    enough = int(count * share + 8 * math.sqrt(count * share)) + 16
    positions = torch.empty(enough, dtype=torch.int64, device=device).geometric_(share).cumsum(0) - 1
    return positions[: int(torch.searchsorted(positions, count))]


def _without(tokens: Tensor, dropped: Tensor | None) -> Tensor:
    """Return a copy of tokens (T, D) with 0 at the positions `dropped`; the tokens themselves where it is None."""
    if dropped is None:
        return tokens
    return tokens.clone().view(-1).index_fill_(0, dropped, 0).view_as(tokens)


def _read(
    tokens: Tensor, down: Tensor, router: Tensor, dropped: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the bottlenecks `s A x` (T, E R) of all experts, the router's logits (T, E) and `||x||` (T, 1)."""
    hidden = scale * (_without(tokens, dropped) @ down.flatten(0, 1).T)
    return hidden, tokens @ router.T, torch.linalg.vector_norm(tokens, dim=-1, keepdim=True)


def _combine(
    settings: _Settings, hidden: Tensor, logits: Tensor, lengths: Tensor, up: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Do all that is done in the rank space, given what `_read` returns and the maps `B^T` (E, R, D).

    Returns:
        Bottlenecks (T, E R) whose product with all B is `lambda y ||x|| / (||y|| + floor)`, the experts' weights
        (T, E), and the inner products of their outputs (T, E, E).
    """
    hidden = hidden.view(-1, *up.shape[:2])
    weights = topk_gates(logits, settings.top_k)
    gram = expert_gram(hidden, up)
    size = _root((gram @ weights.unsqueeze(-1)).squeeze(-1).mul(weights).sum(dim=-1, keepdim=True))
    gain = settings.blend * lengths / (size + settings.norm_floor)
    mixed = (gain * weights).unsqueeze(-1) * hidden
    return mixed.flatten(1), weights, gram


def _mixture(
    tokens: Tensor, down: Tensor, router: Tensor, up: Tensor, dropped: Tensor | None, settings: _Settings
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the mixture over tokens (T, D), the router's logits, the experts' weights and `gram`; see `Routed`."""
    hidden, logits, lengths = _read(tokens, down, router, dropped, settings.scale)
    mixed, weights, gram = _combine(settings, hidden, logits, lengths, up)
    blended = torch.addmm(tokens, mixed, up.flatten(0, 1), beta=1 - settings.blend)
    return blended, logits, weights, gram


class _Mixture(torch.autograd.Function):
    """`_mixture` as one node of the graph: of full width it keeps the tokens alone, and has one buffer of gradients.

    The rank space, where tensors are small, has a graph of its own inside the node.
    """

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        down: Tensor,
        router: Tensor,
        up: Tensor,
        dropped: Tensor | None,
        settings: _Settings,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        hidden, logits, lengths = _read(tokens, down, router, dropped, settings.scale)
        ctx.inner = [tensor.detach().requires_grad_() for tensor in (hidden, logits, lengths, up)]
        with torch.enable_grad():
            ctx.outer = _combine(settings, *ctx.inner)
        mixed, weights, gram = (tensor.detach() for tensor in ctx.outer)
        ctx.save_for_backward(tokens, down, router, dropped)
        ctx.settings = settings
        blended = torch.addmm(tokens, mixed, up.detach().flatten(0, 1), beta=1 - settings.blend)
        return blended, logits, weights, gram

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, of_blended: Tensor, of_logits: Tensor, of_weights: Tensor, of_gram: Tensor
    ) -> tuple[Tensor | None, ...]:
        tokens, down, router, dropped = ctx.saved_tensors
        lengths, up, mixed = ctx.inner[2], ctx.inner[3], ctx.outer[0]
        of_mixed = of_blended @ up.flatten(0, 1).T
        of_hidden, inner_logits, of_lengths, of_up = torch.autograd.grad(
            ctx.outer, ctx.inner, (of_mixed, of_weights, of_gram), retain_graph=True
        )
        of_hidden, of_logits = ctx.settings.scale * of_hidden, of_logits + inner_logits
        of_up = of_up + (mixed.T @ of_blended).view_as(up)
        of_tokens = of_down = of_router = None
        if ctx.needs_input_grad[0]:
            keep, maps = 1 - ctx.settings.blend, down.flatten(0, 1)
            if dropped is None:
                read, maps = torch.cat([of_hidden, of_logits], dim=1), torch.cat([maps, router])
                of_tokens = torch.addmm(of_blended, read, maps, beta=keep)
            else:
                of_tokens = of_hidden @ maps
                of_tokens.view(-1).index_fill_(0, dropped, 0)
                of_tokens.addmm_(of_logits, router).add_(of_blended, alpha=keep)
            of_tokens.addcmul_(tokens, of_lengths / lengths.clamp_min(torch.finfo(lengths.dtype).tiny))
        if ctx.needs_input_grad[1]:
            of_down = (of_hidden.T @ _without(tokens, dropped)).view_as(down)
        if ctx.needs_input_grad[2]:
            of_router = of_logits.T @ tokens
        return of_tokens, of_down, of_router, of_up, None, None
