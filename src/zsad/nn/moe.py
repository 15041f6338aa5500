"""Mixtures of expert prompts: routers, top-k gates, mixing and the losses that keep experts busy and apart.

Every function takes any number of leading axes, so that all layers and states of a method are one batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F


def topk_gates(logits: Tensor, k: int) -> Tensor:
    """Weights (..., E) of the k largest logits (..., E): a softmax over those k, zero elsewhere.

    The same as the k largest of a softmax over all, brought to the sum 1 (Shazeer et al., 2017). Exactly k weights
    are not zero for any finite logits: one that underflows is the type's smallest normal number.

    Example:
        >>> topk_gates(torch.tensor([1.0, 3.0, 3.0, -2.0]), 2)
        tensor([0.0000, 0.5000, 0.5000, 0.0000])
    """
    top, chosen = logits.topk(k, dim=-1)
    weights = top.softmax(dim=-1)
    weights = weights.clamp_min(torch.finfo(weights.dtype).tiny).to(logits.dtype)
    return torch.zeros_like(logits).scatter(-1, chosen, weights)


def mixture(weights: Tensor, pool: Tensor) -> Tensor:
    """Weighted sums (B, ..., M, D) of experts (..., E, M, D) with weights (B, ..., E): one product a layer.

    The product runs over all E experts: a few small ones cost less than gathering the chosen.

    Example:
        >>> mixture(torch.tensor([[0.25, 0.75]]), torch.tensor([[[4.0]], [[8.0]]]))
        tensor([[[7.]]])
    """
    return torch.einsum("b...e,...emd->b...md", weights, pool)


def batch_sum(values: Tensor) -> Tensor:
    """Sum (...) over the first axis of values (B, ...); in a training on several processes, B times the mean of all.

    The gradient is that of the own rows. Weighted by their share and averaged over processes, as losses are
    (`zsad.train.distributed`), gradients of any function of the mean are those of the whole batch.

    Example:
        >>> batch_sum(torch.tensor([[1.0], [3.0]]))
        tensor([4.])
    """
    own = values.sum(dim=0)
    if not (distributed.is_available() and distributed.is_initialized()):
        return own
    total = torch.cat([own.detach().flatten(), own.new_tensor([len(values)])])
    distributed.all_reduce(total)
    return own + ((total[:-1] * (len(values) / total[-1])).view_as(own) - own).detach()


def balance_loss(logits: Tensor) -> Tensor:
    """PromptMoE Eq. 4 without alpha: `sum over layers of E * sum_j (mean_b p_bj)^2`, `p = softmax(logits)`.

    Args:
        logits: (B, ..., E) of routers; every axis between the first and the last counts as layers.

    Returns:
        A scalar between the number of layers (all experts used alike) and E times it (one expert used alone).

    Example:
        >>> float(balance_loss(torch.zeros(6, 4, 8)))  # four layers
        4.0
    """
    usage = batch_sum(logits.softmax(dim=-1)) / len(logits)
    return logits.shape[-1] * usage.square().sum()


def decouple_loss(pool: Tensor) -> Tensor:
    """`sum over layers of ||S S^T - I||_F^2`, rows of S normalised mean tokens (PromptMoE Eq. 5 without beta).

    Args:
        pool: (..., E, M, D) experts of M tokens.

    Example:
        >>> float(decouple_loss(torch.eye(3).unsqueeze(1)))
        0.0
    """
    means = F.normalize(pool.mean(dim=-2), dim=-1)
    gram = means @ means.transpose(-1, -2)
    return (gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)).square().sum()


class Router(nn.Module):
    """Independent `Linear-ReLU-Linear` routers, one for each entry of `stack`, in two batched products.

    `z = relu(x U + a) V + b`, as PromptMoE scores its experts.

    Args:
        stack: leading axes of the stack, such as (states, layers).
        width: width D of what is routed.
        hidden: width between the two linear maps.
        experts: number of logits E.

    Example:
        >>> Router((2, 4), 8, 6, 5)(torch.randn(3, 2, 4, 8)).shape
        torch.Size([3, 2, 4, 5])
    """

    def __init__(self, stack: tuple[int, ...], width: int, hidden: int, experts: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.empty(*stack, width, hidden))
        self.first_bias = nn.Parameter(torch.empty(*stack, hidden))
        self.second = nn.Parameter(torch.empty(*stack, hidden, experts))
        self.second_bias = nn.Parameter(torch.empty(*stack, experts))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """The start of `nn.Linear`: uniform within one over the root of the inputs."""
        for weight, bias in ((self.first, self.first_bias), (self.second, self.second_bias)):
            bound = weight.shape[-2] ** -0.5
            nn.init.uniform_(weight, -bound, bound, generator=generator)
            nn.init.uniform_(bias, -bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, *stack, E) of x (B, *stack, D)."""
        hidden = torch.einsum("b...d,...dh->b...h", x, self.first) + self.first_bias
        return torch.einsum("b...h,...he->b...e", hidden.relu(), self.second) + self.second_bias
