"""The pre-norm transformer block that both towers are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zsad.clip.config import Activation


class QuickGELU(nn.Module):
    """`x * sigmoid(1.702 x)`, computed as `silu(1.702 x) / 1.702`: the same function in fewer passes."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return F.silu(x * 1.702) / 1.702

    @staticmethod
    def over(x: Tensor) -> Tensor:
        """Compute the same in the memory of `x`, which nobody else needs and no gradient goes through."""
        return F.silu(x.mul_(1.702), inplace=True).div_(1.702)


def activation(name: Activation) -> nn.Module:
    """The module of an activation's name."""
    return QuickGELU() if name == "quick_gelu" else nn.GELU("tanh" if name == "gelu_tanh" else "none")


class Attention(nn.Module):
    """Multi-head attention with one fused projection, through PyTorch's fused kernel; weights are never returned."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def _split(self, x: Tensor) -> Tensor:
        """(B, S, D) to (B, heads, S, D / heads), laid out for the attention kernel."""
        batch, length, width = x.shape
        heads = x.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
        # On processors the kernel takes up to 1.4 times longer over strided heads than over copies.
        return heads.contiguous() if x.device.type == "cpu" else heads

    def _merge(self, x: Tensor) -> Tensor:
        batch, heads, length, width = x.shape
        return x.transpose(1, 2).reshape(batch, length, heads * width)

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, heads, S, d) of normalised tokens (B, S, D)."""
        query, key, value = self.in_proj(x).chunk(3, dim=-1)
        return self._split(query), self._split(key), self._split(value)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """Attention and output projection, (B, S_q, D). `mask` is boolean, true where a query may look."""
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
        projected: Tensor = self.out_proj(self._merge(mixed))
        return projected

    def rows(self, x: Tensor, rows: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Attention of the tokens at `rows` (B, Q) alone, looking at all of x (B, S, D): (B, Q, D).

        `mask` is (B, 1, Q, S), true where a row may look.
        """
        width = x.shape[-1]
        key, value = F.linear(x, self.in_proj.weight[width:], self.in_proj.bias[width:]).chunk(2, dim=-1)
        query = F.linear(gather_rows(x, rows), self.in_proj.weight[:width], self.in_proj.bias[:width])
        return self.attend(self._split(query), self._split(key), self._split(value), mask=mask)


def gather_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Tokens (B, Q, D) of x (B, S, D) at the positions `rows` (B, Q)."""
    return x.gather(1, rows.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


class Block(nn.Module):
    """`x + attention(ln_1 x)`, then `x + mlp(ln_2 x)`."""

    def __init__(self, width: int, heads: int, mlp_width: int, act: Activation, eps: float = 1e-5) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width, eps)
        self.fc = nn.Linear(width, mlp_width)
        self.act = activation(act)
        self.proj = nn.Linear(mlp_width, width)

    def mlp(self, x: Tensor) -> Tensor:
        """The residual feed-forward half, (..., D) to (..., D)."""
        hidden: Tensor = self.fc(self.ln_2(x))
        frozen = not (torch.is_grad_enabled() and hidden.requires_grad)
        in_place = frozen and isinstance(self.act, QuickGELU)
        hidden = QuickGELU.over(hidden) if in_place else self.act(hidden)
        result: Tensor = x + self.proj(hidden)
        return result

    def forward(self, x: Tensor, *, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """The whole block over tokens (B, S, D)."""
        return self.mlp(x + self.attn.attend(*self.attn.qkv(self.ln_1(x)), mask=mask, causal=causal))

    def forward_value_value(self, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
        """The block over x (B, S, D), and the value-value branch (B, S, D) advanced by the same weights.

        `branch + out_proj(softmax(V V^T / sqrt(d)) V)` with V of the ordinary path and no feed-forward half
        (AnomalyCLIP's dual path). Queries, keys and values are projected once for both.
        """
        query, key, value = self.attn.qkv(self.ln_1(x))
        branch = branch + self.attn.attend(value, value, value)
        return self.mlp(x + self.attn.attend(query, key, value)), branch

    def forward_rows(self, x: Tensor, rows: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The block evaluated at the positions `rows` (B, Q) alone: (B, Q, D), exact for those."""
        attended = self.attn.rows(self.ln_1(x), rows, mask=mask)
        return self.mlp(gather_rows(x, rows) + attended)

    def forward_rows_value_value(self, x: Tensor, branch: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Advance both paths, the ordinary one only at `rows` (B, Q): ((B, Q, D), (B, S, D))."""
        normed = self.ln_1(x)
        _, _, value = self.attn.qkv(normed)
        branch = branch + self.attn.attend(value, value, value)
        return self.mlp(gather_rows(x, rows) + self.attn.rows(normed, rows)), branch
