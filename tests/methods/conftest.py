"""A CLIP so small that a training step takes milliseconds, with CLIP's own tokenizer; slow forms as oracles."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from zsad.clip.config import CLIPConfig, Preset, TextConfig, VisionConfig
from zsad.clip.model import CLIP
from zsad.clip.tokenizer import Tokenizer
from zsad.clip.weights import Backbone


def _load(name: str, path: Path) -> None:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


for _name in ("promptmoe", "sentences"):
    _load(f"{_name}_oracles", Path(__file__).parents[1] / "oracles" / f"{_name}.py")


def tiny_config() -> CLIPConfig:
    return CLIPConfig(
        embed_dim=24,
        vision=VisionConfig(image_size=32, patch_size=8, width=32, layers=4, heads=4, mlp_width=64),
        text=TextConfig(context_length=77, vocab_size=49408, width=16, layers=3, heads=2, mlp_width=32),
    )


def tiny_backbone(seed: int = 0) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip = CLIP(tiny_config())
    preset = Preset(
        name="toy",
        clip=tiny_config(),
        detection_size=40,
        taps=(2, 3, 4),
        value_value=True,
        value_value_from=2,
    )
    return Backbone(clip=clip.freeze(), tokenizer=Tokenizer(), preset=preset, sha256="toy", name="toy")


@pytest.fixture
def backbone() -> Backbone:
    return tiny_backbone()


@pytest.fixture(scope="session")
def towers() -> Backbone:
    """The same for many tests: no method may change it."""
    return tiny_backbone()


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 40, 40, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def masks() -> torch.Tensor:
    masks = torch.zeros(3, 40, 40)
    masks[0, 5:15, 8:20] = 1
    masks[2, 30:, 30:] = 1
    return masks


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor([1.0, 0.0, 1.0])
