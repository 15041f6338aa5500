"""A detector whose patches are routed by a rule that a test can repeat, and data sets for it."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from zsad.clip.weights import load_backbone
from zsad.datasets.manifest import DataSet, discover
from zsad.detector import Detector
from zsad.loading import load
from zsad.methods.base import ImageFeatures
from zsad.methods.promptmoe import PromptMoE
from zsad.methods.registry import build
from zsad.nn.moe import topk_gates

EXPERTS, LAYERS, GRID = 5, 2, (8, 8)


class PatchRouter(PromptMoE):
    """PromptMoE with a pool more, whose two layers send each patch to two of five experts, by its tokens."""

    def token_routing(self, features: ImageFeatures) -> dict[str, torch.Tensor]:
        return {"patches": topk_gates(features.patches[:, :LAYERS, :, :EXPERTS], 2)}

    def expert_labels(self) -> dict[str, tuple[str, ...]]:
        return {"patches": ("frozen", "first learnable", "second learnable", "third learnable", "zero")}


@pytest.fixture(scope="module")
def router(toy) -> Detector:
    base = load(toy.model, device="cpu", backbone=toy.backbone)
    method = build("promptmoe", base.card.config, load_backbone(toy.backbone))
    method.__class__ = PatchRouter
    method.load_adapter(base.method.adapter_state())
    return Detector.from_method(method, base.card, name="stub")


@pytest.fixture(scope="module")
def discs(toy, tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """Three good images and two bad ones, of which the left upper quarter is marked."""
    root = tmp_path_factory.mktemp("discs") / "parts"
    for index, path in enumerate(sorted(toy.images.iterdir())):
        kind = "bad" if index % 2 else "good"
        target = root / "disc" / "test" / kind / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
        if kind == "bad":
            width, height = Image.open(path).size
            mask = np.zeros((height, width), np.uint8)
            mask[: height // 2, : width // 2] = 255
            marked = root / "disc" / "ground_truth" / kind / f"{target.stem}_mask.png"
            marked.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(marked)
    return discover(root)


@pytest.fixture
def renamed(discs: DataSet) -> DataSet:
    """The same images as another data set."""
    return replace(discs, samples=[replace(sample, dataset="others") for sample in discs.samples])
