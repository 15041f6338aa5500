"""Makes the slow forms of `tests/oracles/clip.py` importable as `clip_oracles`, and small models."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from zsad.clip.config import CLIPConfig, TextConfig, VisionConfig
from zsad.clip.model import CLIP


def _load(name: str, path: Path) -> None:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


_load("clip_oracles", Path(__file__).parents[1] / "oracles" / "clip.py")


@pytest.fixture
def config() -> CLIPConfig:
    return CLIPConfig(
        embed_dim=24,
        vision=VisionConfig(image_size=32, patch_size=8, width=32, layers=4, heads=4, mlp_width=80),
        text=TextConfig(context_length=77, vocab_size=50, width=48, layers=3, heads=3, mlp_width=96),
    )


@pytest.fixture
def clip(config: CLIPConfig) -> CLIP:
    from clip_oracles import randomised

    return randomised(CLIP(config), seed=3)
