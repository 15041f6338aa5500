"""CLIP: an image tower and a text tower that meet in one space (Radford et al., 2021).

The text tower takes token ids or ready embeddings and gives one embedding a prompt. Because attention is causal,
nothing behind EOS can reach EOS: sequences are cut there, and the last block is evaluated at the EOS rows alone. Both
are exact. Prompts that begin alike can be packed into one sequence (a token tree), so that what they share is computed
once (`pack`, `TextTower.forward_packed`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from zsad.clip.blocks import Block, gather_rows
from zsad.clip.config import CLIPConfig, TextConfig
from zsad.clip.vision import VisionTower
from zsad.errors import ConfigError


class CLIP(nn.Module):
    """Both towers and the learned temperature of their similarity.

    Example:
        >>> from zsad.clip.config import CLIPConfig, TextConfig, VisionConfig
        >>> vision = VisionConfig(image_size=32, patch_size=8, width=16, layers=2, heads=2, mlp_width=64)
        >>> text = TextConfig(context_length=8, vocab_size=20, width=16, layers=2, heads=2, mlp_width=64)
        >>> clip = CLIP(CLIPConfig(embed_dim=12, vision=vision, text=text))
        >>> clip.visual.encode(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 12])
    """

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.visual = VisionTower(config.vision, config.embed_dim)
        self.text = TextTower(config.text, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def freeze(self) -> CLIP:
        """Evaluation mode and no gradients, for use as a backbone; returns itself."""
        self.requires_grad_(False)
        return self.eval()

    def similarity(self, image: Tensor, text: Tensor) -> Tensor:
        """Scaled cosine similarities (B, P) of image embeddings (B, D) and text embeddings (P, D)."""
        image = torch.nn.functional.normalize(image, dim=-1)
        text = torch.nn.functional.normalize(text, dim=-1)
        return self.logit_scale.exp() * image @ text.T


class TextTower(nn.Module):
    """CLIP's text encoder.

    Args:
        config: the tower's shape.
        embed_dim: width D of the joint space.
    """

    def __init__(self, config: TextConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.position_embedding = nn.Parameter(torch.empty(config.context_length, width).normal_(std=0.01))
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.mlp_width, config.activation, config.norm_eps)
            for _ in range(config.layers)
        )
        self.ln_final = nn.LayerNorm(width, config.norm_eps)
        self.proj = nn.Parameter(torch.empty(width, embed_dim).normal_(std=width**-0.5))
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings (P, S, D_t) of ids (P, S), without positions."""
        embedded: Tensor = self.token_embedding(ids)
        return embedded

    def encode(self, ids: Tensor, *, eos: int, project: bool = True) -> Tensor:
        """Embeddings (P, D) of token ids (P, S), each sequence ending at its first `eos` id; see `forward`."""
        return self.forward(self.embed(ids), eos=(ids == eos).int().argmax(dim=-1), project=project)

    def forward(
        self, embeddings: Tensor, *, eos: Tensor, deep_tokens: Tensor | None = None, project: bool = True
    ) -> Tensor:
        """Embeddings (P, D) in the joint space, not normalised, of ready token embeddings.

        Args:
            embeddings: (P, S, D_t) without positions; anything behind a sequence's EOS is ignored.
            eos: (P,) index of each sequence's EOS.
            deep_tokens: (J, M, D_t), or (J, P, M, D_t) with own ones for each of the P sequences. At the input
                of block j + 1 (j = 1 .. J) positions 1 .. M are replaced by `deep_tokens[j - 1]` (AnomalyCLIP's
                compound prompts; AdaCLIP's dynamic ones differ by sequence).
            project: False leaves the final projection out: (P, D_t) behind the last norm.

        Raises:
            ConfigError: a sequence longer than the context, or more deep tokens than blocks.
        """
        length = int(eos.max()) + 1
        self._check_length(length)
        x = embeddings[:, :length] + self.position_embedding[:length].to(embeddings.dtype)
        reach = torch.arange(length, device=x.device) <= eos[:, None]
        rows = self._run(x, eos[:, None], row_mask=reach[:, None, None], mask=None, deep=deep_tokens)[:, 0]
        return rows @ self.proj if project else rows

    def forward_packed(
        self,
        embeddings: Tensor,
        *,
        positions: Tensor,
        mask: Tensor,
        eos: Tensor,
        deep_tokens: Tensor | None = None,
        project: bool = True,
    ) -> Tensor:
        """Embeddings (B, Q, D) of Q prompts that are packed into one sequence each.

        Args:
            embeddings: (B, S, D_t) token embeddings without positions, the shared prefix once.
            positions: (S,) the position each token has in its own prompt.
            mask: (S, S) boolean, true where a token may look: at the tokens before it in its own prompt, and itself.
            eos: (Q,) the packed index of each prompt's EOS.
            deep_tokens: (J, M, D_t) or (J, B, M, D_t), as in `forward`; the shared prefix must hold positions
                0 .. M.
            project: False leaves the final projection out: (B, Q, D_t).

        Raises:
            ConfigError: a prompt longer than the context, or more deep tokens than blocks.
        """
        self._check_length(int(positions.max()) + 1)
        x = embeddings + self.position_embedding[positions].to(embeddings.dtype)
        ends = eos.expand(x.shape[0], -1)
        rows = self._run(x, ends, row_mask=mask[eos][None, None], mask=mask[None, None], deep=deep_tokens)
        return rows @ self.proj if project else rows

    def _run(
        self, x: Tensor, rows: Tensor, *, row_mask: Tensor, mask: Tensor | None, deep: Tensor | None
    ) -> Tensor:
        """All blocks over x (P, S, D_t), the last one at `rows` (P, Q) only, then the norm: (P, Q, D_t)."""
        depth = 0 if deep is None else len(deep)
        if depth >= len(self.blocks):
            raise ConfigError(
                f"{depth} sets of deep text tokens need more than the {len(self.blocks)} blocks of this text tower"
            )
        for index, block in enumerate(self.blocks):
            if deep is not None and 1 <= index <= depth:
                tokens = deep[index - 1].to(x.dtype).expand(x.shape[0], -1, -1)
                x = torch.cat([x[:, :1], tokens, x[:, 1 + tokens.shape[1] :]], dim=1)
            if index == len(self.blocks) - 1 and isinstance(block, Block):
                x = block.forward_rows(x, rows, mask=row_mask)
            else:
                x = block(x, mask=mask, causal=mask is None)
        if not len(self.blocks):
            x = gather_rows(x, rows)
        normed: Tensor = self.ln_final(x)
        return normed

    def _check_length(self, length: int) -> None:
        if length > self.config.context_length:
            raise ConfigError(
                f"a prompt of {length} tokens does not fit the text tower's context of {self.config.context_length}; "
                f"shorten the prompt or use fewer learnable tokens"
            )


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
