"""The parts of the towers: the pre-norm transformer block of both, and a convolutional stem in front of a ViT.

Behind a stem the transformer starts from features that already know edges, textures and materials, as in hybrid ViTs
(Dosovitskiy et al., 2021). Batch norms are folded into the convolutions; the blocks are EfficientNet-Lite's
(no squeeze-and-excite, ReLU6), so that its weights can warm-start them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zsad.clip.config import Activation, MobileStage, MobileStemConfig


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


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME" pads: evenly, the odd pixel at the right and below."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', ceil(H / stride), ceil(W / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return F.conv2d(input, self.weight, self.bias, 1, kernel // 2, 1, self.groups)
        sides = (int(side) for side in input.shape[-2:])
        pads = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in sides]
        top, left = pads[0] // 2, pads[1] // 2
        padded = F.pad(input, (left, pads[1] - left, top, pads[0] - top))
        return F.conv2d(padded, self.weight, self.bias, stride, 0, 1, self.groups)


def _relu6(x: Tensor) -> Tensor:
    """ReLU6 of a tensor that nobody else holds: in place where no gradient needs the input."""
    return F.relu6(x, inplace=not x.requires_grad)


class InvertedResidual(nn.Module):
    """Widen, filter each channel in space, narrow; with a residual where the shape allows (MobileNetV2)."""

    def __init__(self, channels_in: int, stage: MobileStage, *, stride: int) -> None:
        super().__init__()
        inner = channels_in * stage.expand
        self.expand = SameConv(channels_in, inner, 1) if stage.expand != 1 else None
        self.depthwise = SameConv(inner, inner, stage.kernel, stride=stride, groups=inner)
        self.narrow = SameConv(inner, stage.channels, 1)
        self.residual = stride == 1 and channels_in == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / stride, W / stride)."""
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.narrow(F.relu6(self.depthwise(y)))
        result: Tensor = x + y if self.residual else y
        return result


class MobileStem(nn.Module):
    """Patch tokens out of a small convolutional network.

    Each token is a linear map of the joined stage maps at its place, once as they are and once standardised over
    the picture: how odd a patch is within its own picture is then there from the first block on. The picture's mean
    and deviation, which standardising takes away, go into the class token.

    Args:
        config: the stages and which of their maps are joined.
        width: width D_x of the transformer's tokens.
    """

    def __init__(self, config: MobileStemConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.first = SameConv(3, config.first_channels, 3, stride=2)
        stages, channels, strides = [], config.first_channels, 2
        stage_strides = []
        for stage in config.stages:
            blocks = []
            for repeat in range(stage.repeats):
                blocks.append(InvertedResidual(channels, stage, stride=stage.stride if repeat == 0 else 1))
                channels = stage.channels
            strides *= stage.stride
            stage_strides.append(strides)
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.stride = strides
        self.folds = {index: strides // stage_strides[index] for index in config.merge_stages}
        joined = sum(config.stages[index].channels * fold**2 for index, fold in self.folds.items())
        self.norm = nn.LayerNorm(joined)
        self.plain = nn.Linear(joined, width)
        self.odd = nn.Linear(joined, width, bias=False)
        self.context = nn.Linear(2 * joined, width)

    def maps(self, pixels: Tensor) -> Tensor:
        """The joined maps (B, h, w, C_joined) of pixels (B, 3, H, W); sides lose what exceeds the stride."""
        height, width = (int(side) - int(side) % self.stride for side in pixels.shape[-2:])
        # Depthwise convolutions on a processor run about twice as fast with the channels innermost.
        x = pixels[..., :height, :width].contiguous(memory_format=torch.channels_last)
        x = _relu6(self.first(x))
        joined = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self.folds:
                joined.append(F.pixel_unshuffle(x, self.folds[index]))
        return torch.cat(joined, dim=1).permute(0, 2, 3, 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Tokens (B, N, D_x), context for the class token (B, D_x) and the grid (h, w)."""
        return self.tokens(self.maps(pixels))

    def texture(self, maps: Tensor) -> Tensor:
        """View of the joined maps (B, h, w, C_joined) at the grid's own stride: (B, N, C).

        Channels folded from finer strides are left out: their values depend on where in a patch an edge lies.
        """
        coarse = sum(self.config.stages[index].channels for index, fold in self.folds.items() if fold == 1)
        return maps[..., maps.shape[-1] - coarse :].flatten(1, 2)

    def tokens(self, maps: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Return what `forward` does, given the joined maps (B, h, w, C_joined)."""
        height, width = int(maps.shape[1]), int(maps.shape[2])
        flat = self.norm(maps).flatten(1, 2)
        mean = flat.mean(dim=1, keepdim=True)
        deviation = (flat - mean).square().mean(dim=1, keepdim=True).add(1e-4).sqrt()
        tokens = self.plain(flat) + self.odd((flat - mean) / deviation)
        context = self.context(torch.cat([mean, deviation], dim=-1)[:, 0])
        return tokens, context, (height, width)
