"""A small method and a data set for the tests of training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from zsad.card import BackboneReference
from zsad.clip.config import CLIPConfig, TextConfig, VisionConfig
from zsad.clip.model import CLIP
from zsad.datasets.manifest import DataSet
from zsad.images.picture import Preprocess
from zsad.methods.base import ImageFeatures, Method, MethodConfig, Output
from zsad.train.loop import train
from zsad.train.train_config import TrainConfig
from zsad.train.training_card import CardParts
from zsad.types import Sample

SIZE = (32, 32)
PREPROCESS = Preprocess(image_size=SIZE)
PARTS = CardParts(backbone=BackboneReference(name="fake-clip", sha256="ab" * 32), preprocess=PREPROCESS)


class FakeConfig(MethodConfig):
    layers: tuple[int, ...] = (1, 2)
    image_size: int = 32
    value_value: bool = False
    sigma: float = 1.0
    hidden: int = 6
    dropout: float = 0.2


class FakeMethod(Method):
    """A small network on every patch, with dropout: any slip in the random numbers shows."""

    name: ClassVar[str] = "fake"
    config_class = FakeConfig

    def __init__(self, config: FakeConfig | None = None, *, seed: int = 5) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            vision = VisionConfig(image_size=32, patch_size=8, width=8, layers=2, heads=2, mlp_width=16)
            text = TextConfig(context_length=8, vocab_size=20, width=8, layers=1, heads=2, mlp_width=16)
            clip = CLIP(CLIPConfig(embed_dim=8, vision=vision, text=text))
            preset = SimpleNamespace(taps=(1, 2))
            super().__init__(
                config or FakeConfig(), SimpleNamespace(clip=clip, name="fake-clip", preset=preset)
            )
            torch.manual_seed(seed)
            self.inner = nn.Linear(8, self.config.hidden)
            self.outer = nn.Linear(self.config.hidden, 1)
            self.dropout = nn.Dropout(self.config.dropout)
            self.unused = nn.Parameter(torch.ones(2))
            self.register_buffer("offset", torch.zeros(1))
        self.seen_pixels = 0

    def features(self, pixels: Tensor) -> ImageFeatures:
        self.seen_pixels += len(pixels)
        return super().features(pixels)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        for parameter in (*self.inner.parameters(), *self.outer.parameters()):
            nn.init.normal_(parameter, std=0.3, generator=generator)

    def forward(self, features: ImageFeatures) -> Output:
        hidden = self.dropout(F.relu(self.inner(features.patches)))
        logits = self.outer(hidden)[..., 0].unflatten(-1, features.grid)
        return Output(logits=logits, score=logits.sigmoid().amax((1, 2, 3)))

    def losses(self, features: ImageFeatures, masks: Tensor, labels: Tensor) -> dict[str, Tensor]:
        output = self(features)
        small = F.adaptive_max_pool2d(masks.unsqueeze(1), features.grid).expand_as(output.logits)
        pixel = F.binary_cross_entropy_with_logits(output.logits.float(), small)
        image = F.binary_cross_entropy_with_logits(output.logits.float().mean((1, 2, 3)), labels)
        return {"pixel": pixel, "image": image}


def make_data(root: Path, *, normal: int = 5, anomalous: int = 4) -> DataSet:
    """Grey noise; anomalous images have a bright square, marked by the mask."""
    root.mkdir(parents=True, exist_ok=True)
    samples = []
    for index in range(normal + anomalous):
        generator = np.random.default_rng(index)
        pixels = generator.integers(60, 120, (32, 32, 3), dtype=np.uint8)
        image, mask = root / f"{index:02}.png", None
        if index >= normal:
            row, column = generator.integers(0, 20, 2)
            pixels[row : row + 10, column : column + 10] = 250
            marked = np.zeros((32, 32), np.uint8)
            marked[row : row + 10, column : column + 10] = 255
            mask = root / f"{index:02}_mask.png"
            Image.fromarray(marked).save(mask)
        Image.fromarray(pixels).save(image)
        samples.append(Sample(image, "tile" if index % 2 else "wood", int(index >= normal), mask))
    return DataSet(samples, "folders", root, "noise")


def run(out: Path, data: DataSet, config: TrainConfig, **options: Any) -> tuple[FakeMethod, Path]:
    method = FakeMethod()
    return method, train(method, data, config=config, out=out, card_parts=PARTS, **options)
