"""CLIP: an image tower and a text tower that meet in one space (Radford et al., 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zsad.clip.config import CLIPConfig
from zsad.clip.text import TextTower
from zsad.clip.vision import VisionTower


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
