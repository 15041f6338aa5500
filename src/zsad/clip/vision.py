"""The frozen image tower: any CLIP ViT, tapped after any blocks in one pass, at any rectangle.

Blocks are counted from 1, as papers do: tap 24 of a ViT-L is what its last block puts out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zsad.clip.blocks import Block, MobileStem
from zsad.clip.config import VisionConfig
from zsad.errors import ConfigError

Interpolation = Literal["bilinear", "bicubic"]
Hook = Callable[[Tensor], Tensor]


@dataclass(slots=True)
class VisionOutput:
    """Output of one pass of the image tower.

    Attributes:
        taps: for each tapped block the residual stream behind it, (B, 1 + N, D_x), class token first. With the
            value-value branch, the branch's tokens at the same blocks.
        cls: the class token (B, D_x) of the ordinary path behind the last block, before `ln_post`.
        grid: rows and columns (h, w) of the patch tokens, N = h * w.
    """

    taps: tuple[Tensor, ...]
    cls: Tensor
    grid: tuple[int, int]


@dataclass(slots=True)
class PatchTokens:
    """Pixels cut into patches, before position embeddings and class token: what several passes may share.

    Attributes:
        tokens: (B, N, D_x).
        grid: rows and columns (h, w), N = h * w.
        context: (B, D_x) that a convolutional stem adds to the class token; None without a stem.
        texture: (B, N, C) local features of the patches out of a convolutional stem; None without a stem.
    """

    tokens: Tensor
    grid: tuple[int, int]
    context: Tensor | None = None
    texture: Tensor | None = None


Pixels = Tensor | PatchTokens
"""What the tower reads: pixels (B, 3, H, W), normalised with the backbone's mean and deviation, or their patches."""


class VisionTower(nn.Module):
    """CLIP's image encoder.

    Args:
        config: the tower's shape.
        embed_dim: width D of the joint space.
    """

    def __init__(self, config: VisionConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        width, self._side = config.width, config.native_grid
        if config.stem is None:
            self.patch_embedding: nn.Module = nn.Conv2d(
                3, width, kernel_size=config.patch_size, stride=config.patch_size, bias=False
            )
        else:
            self.patch_embedding = MobileStem(config.stem, width)
        self.class_embedding = nn.Parameter(torch.empty(width).normal_(std=width**-0.5))
        self.position_embedding = nn.Parameter(
            torch.empty(1 + self._side * self._side, width).normal_(std=width**-0.5)
        )
        self.ln_pre = nn.LayerNorm(width, config.norm_eps)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.mlp_width, config.activation, config.norm_eps)
            for _ in range(config.layers)
        )
        self.ln_post = nn.LayerNorm(width, config.norm_eps)
        self.proj = nn.Parameter(torch.empty(width, embed_dim).normal_(std=width**-0.5))
        self._positions: tuple[tuple[object, ...], Tensor] | None = None

    def positions(
        self, grid: tuple[int, int], *, interpolation: Interpolation = "bicubic", antialias: bool = False
    ) -> Tensor:
        """Position embeddings (1 + h * w, D_x) for any grid, interpolated from the native square.

        Note that `antialias` also changes PyTorch's cubic coefficient, so it matters when enlarging, too.
        """
        weight = self.position_embedding
        side = self._side
        if grid == (side, side):
            return weight
        key = (grid, interpolation, antialias, weight.data_ptr(), weight._version, weight.dtype)
        cacheable = not (torch.is_grad_enabled() and weight.requires_grad)
        if cacheable and self._positions is not None and self._positions[0] == key:
            return self._positions[1]
        square = weight[1:].float().T.reshape(1, -1, side, side)
        resized = F.interpolate(
            square, size=grid, mode=interpolation, align_corners=False, antialias=antialias
        ).to(weight.dtype)
        table = torch.cat([weight[:1], resized.flatten(2)[0].T])
        if cacheable:
            self._positions = (key, table)
        return table

    def patch_tokens(self, pixels: Tensor) -> PatchTokens:
        """Patches of pixels (B, 3, H, W), for several passes over the same image.

        Raises:
            ConfigError: the image is smaller than a patch.
        """
        stride = self.config.patch_size
        if min(pixels.shape[-2:]) < stride:
            raise ConfigError(
                f"image of {pixels.shape[-2]} x {pixels.shape[-1]} pixels is smaller than one {stride}-pixel patch; "
                f"use an image size of at least {stride}"
            )
        stem = self.patch_embedding
        if isinstance(stem, MobileStem):
            maps = stem.maps(pixels)
            tokens, context, grid = stem.tokens(maps)
            return PatchTokens(tokens, grid, context, stem.texture(maps))
        patches: Tensor = stem(pixels)
        grid = (int(patches.shape[-2]), int(patches.shape[-1]))
        return PatchTokens(patches.flatten(2).transpose(1, 2), grid)

    def embed(
        self, pixels: Pixels, *, interpolation: Interpolation = "bicubic", antialias: bool = False
    ) -> tuple[Tensor, tuple[int, int]]:
        """Tokens (B, 1 + N, D_x) that enter the first block, and the grid, of pixels (B, 3, H, W)."""
        patches = pixels if isinstance(pixels, PatchTokens) else self.patch_tokens(pixels)
        cls = self.class_embedding.expand(patches.tokens.shape[0], 1, -1)
        if patches.context is not None:
            cls = cls + patches.context.unsqueeze(1)
        x = torch.cat([cls.to(patches.tokens.dtype), patches.tokens], dim=1)
        x = x + self.positions(patches.grid, interpolation=interpolation, antialias=antialias).to(x.dtype)
        return self.ln_pre(x), patches.grid

    def forward(
        self,
        pixels: Pixels,
        *,
        taps: Sequence[int] = (),
        value_value_from: int | None = None,
        hooks: Mapping[int, Hook] | None = None,
        interpolation: Interpolation = "bicubic",
        antialias: bool = False,
    ) -> VisionOutput:
        """One pass over pixels (B, 3, H, W), normalised with the backbone's mean and deviation.

        Args:
            pixels: (B, 3, H, W), or their patches; sides that are no multiple of the patch lose the remainder at the
                right and below.
            taps: blocks, counted from 1, behind which tokens are returned, in this order.
            value_value_from: first block (from 1) of AnomalyCLIP's value-value branch; taps then come from it.
                At that block the branch starts as the block's input, so a tap before it is an error.
            hooks: per block a function applied to the residual stream (B, 1 + N, D_x) behind it: adapters live here.
            interpolation: how the position grid is resized.
            antialias: whether that resizing is antialiased.

        Raises:
            ConfigError: a tap or hook outside the tower, or before the value-value branch begins.
        """
        x, grid = self.embed(pixels, interpolation=interpolation, antialias=antialias)
        return self.resume(x, grid=grid, after=0, taps=taps, value_value_from=value_value_from, hooks=hooks)

    def stream(
        self,
        pixels: Pixels,
        *,
        after: int,
        interpolation: Interpolation = "bicubic",
        antialias: bool = False,
    ) -> tuple[Tensor, tuple[int, int]]:
        """The residual stream (B, 1 + N, D_x) behind block `after`, and the grid; later blocks do not run.

        Args:
            pixels: (B, 3, H, W), or their patches.
            after: a block, or 0 for what enters the first.
            interpolation: how the position grid is resized.
            antialias: whether that resizing is antialiased.

        Raises:
            ConfigError: no such block.
        """
        self._check_after(after)
        x, grid = self.embed(pixels, interpolation=interpolation, antialias=antialias)
        for block in self.blocks[:after]:
            x = block(x)
        return x, grid

    def resume(
        self,
        x: Tensor,
        *,
        grid: tuple[int, int],
        after: int,
        taps: Sequence[int] = (),
        value_value_from: int | None = None,
        hooks: Mapping[int, Hook] | None = None,
    ) -> VisionOutput:
        """The blocks behind block `after` over the stream x (B, 1 + N, D_x) that `stream` gives.

        Tokens may have been changed, and others may stand behind them: blocks take any number. Arguments and
        result as in `forward`.

        Raises:
            ConfigError: a tap, hook or branch at or before `after`, or behind the last block.
        """
        hooks = hooks or {}
        self._check_after(after)
        self._check(taps, value_value_from, hooks, after=after)
        branch: Tensor | None = None
        tapped: dict[int, Tensor] = {}
        last = len(self.blocks)
        # The last block's patch tokens are only worth computing if somebody asked for them.
        cls_only = last not in hooks and (value_value_from is not None or last not in taps)
        for number, block in enumerate(self.blocks[after:], start=after + 1):
            if value_value_from is not None and number == value_value_from:
                branch = x
            x, branch = _advance(block, x, branch, cls_only=cls_only and number == last)
            if number in hooks:
                x = hooks[number](x)
            if number in taps:
                tapped[number] = x if branch is None else branch
        return VisionOutput(taps=tuple(tapped[tap] for tap in taps), cls=x[:, 0], grid=grid)

    def project(self, tokens: Tensor, *, norm: bool = True) -> Tensor:
        """Tokens (..., D_x) into the joint space (..., D): `ln_post` (unless `norm` is off), then the projection."""
        return (self.ln_post(tokens) if norm else tokens) @ self.proj

    def encode(self, pixels: Tensor) -> Tensor:
        """CLIP's image embedding (B, D) of pixels (B, 3, H, W), not normalised to length one."""
        return self.project(self(pixels).cls)

    def _check_after(self, after: int) -> None:
        if not 0 <= after <= len(self.blocks):
            raise ConfigError(
                f"block {after} does not exist: this image tower has blocks 1 to {len(self.blocks)}"
            )

    def _check(
        self, taps: Sequence[int], value_value_from: int | None, hooks: Mapping[int, Hook], *, after: int
    ) -> None:
        last = len(self.blocks)
        for number in (*taps, *hooks, *(() if value_value_from is None else (value_value_from,))):
            if not 1 <= number <= last:
                raise ConfigError(f"block {number} does not exist: this image tower has blocks 1 to {last}")
            if number <= after:
                raise ConfigError(
                    f"block {number} lies before the stream, which begins behind block {after}: read it earlier"
                )
        if value_value_from is not None and any(tap < value_value_from for tap in taps):
            raise ConfigError(
                f"tap {min(taps)} lies before block {value_value_from}, where the value-value branch begins; "
                f"tap later blocks or start the branch earlier"
            )


def _advance(
    block: nn.Module, x: Tensor, branch: Tensor | None, *, cls_only: bool
) -> tuple[Tensor, Tensor | None]:
    """One block over the stream and, where it runs, the value-value branch."""
    if not isinstance(block, Block):
        raise TypeError(f"expected a transformer block, got {type(block).__name__}")
    rows = x.new_zeros((x.shape[0], 1), dtype=torch.long) if cls_only else None
    if branch is None:
        return (block(x) if rows is None else block.forward_rows(x, rows)), None
    if rows is None:
        return block.forward_value_value(x, branch)
    return block.forward_rows_value_value(x, branch, rows)
