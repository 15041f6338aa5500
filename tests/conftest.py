"""A tiny random model on disk and images to score with it, shared by the tests of detector, report and command."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from zsad.card import BackboneReference, Card
from zsad.clip.config import CLIPConfig, Preset, TextConfig, VisionConfig
from zsad.clip.model import CLIP
from zsad.clip.weights import load_backbone
from zsad.images.picture import Preprocess
from zsad.methods.registry import build
from zsad.train.checkpoint import save_checkpoint

# The same examples wherever and whenever the suite runs, however slow the machine; new ones on every run with
# HYPOTHESIS_PROFILE=search.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

# What a shell or a runner of tests says of its terminal is not what is tested here.
for name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR"):
    os.environ.pop(name, None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """One thread for each test, whatever the one before it set: pictures are small, and workers share the cores."""
    torch.set_num_threads(1)


def write_backbone(folder: Path, *, seed: int = 0, name: str = "toy", embed_dim: int = 24) -> Path:
    """A random CLIP of four narrow blocks in zsad's own layout."""
    vision = VisionConfig(image_size=32, patch_size=8, width=32, layers=4, heads=4, mlp_width=64)
    text = TextConfig(context_length=77, vocab_size=49408, width=16, layers=2, heads=2, mlp_width=32)
    config = CLIPConfig(embed_dim=embed_dim, vision=vision, text=text)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        state = {name: tensor.contiguous() for name, tensor in CLIP(config).state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors")
    preset = Preset(
        name=name, clip=config, detection_size=64, taps=(2, 3, 4), value_value=True, value_value_from=2
    )
    (folder / "config.json").write_text(json.dumps(preset.model_dump(mode="json", by_alias=True)))
    return folder


def write_model(
    folder: Path, backbone: Path | str, *, seed: int = 1, method_name: str = "promptmoe", **settings: Any
) -> Path:
    """A run folder with an untrained method on that backbone; `settings` over a few small ones of PromptMoE."""
    tower = load_backbone(backbone)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        small = {"experts": 4, "top_k": 2, "heads": 4} if method_name == "promptmoe" else {}
        method = build(method_name, {**small, **settings}, tower)
    size = (method.config.image_size,) * 2
    card = Card(
        method=method_name,
        config=method.config.model_dump(mode="json"),
        backbone=BackboneReference(name=str(backbone), sha256=tower.sha256),
        preprocess=Preprocess(image_size=size, mean=tower.preset.mean, std=tower.preset.std).to_dict(),
        map_spec=method.map_spec,
    )
    save_checkpoint(folder, method, card)
    return folder


def write_images(folder: Path, count: int = 5) -> Path:
    """Grey discs, every second one with a dark scratch; sizes and file kinds vary."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image = Image.new("RGB", (96 + 8 * index, 80), (190, 190, 186))
        draw = ImageDraw.Draw(image)
        draw.ellipse((16, 8, 80, 72), fill=(120, 124, 130))
        if index % 2:
            draw.line((30, 30, 66, 52), fill=(20, 16, 16), width=3)
        noise = np.random.default_rng(index).normal(0, 3, (80, 96 + 8 * index, 3))
        pixels = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
        suffix = "png" if index % 3 else "jpg"
        Image.fromarray(pixels).save(folder / f"part{index:02d}.{suffix}")
    return folder


@dataclass(frozen=True)
class Toy:
    """Paths of a random backbone, of a run folder on it, and of five good images."""

    backbone: Path
    model: Path
    images: Path


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    root = tmp_path_factory.mktemp("toy")
    backbone = write_backbone(root / "backbone")
    return Toy(backbone, write_model(root / "model", backbone), write_images(root / "images"))


@pytest.fixture
def make_images() -> Callable[..., Path]:
    """`write_images(folder, count)`, for tests that break some of them."""
    return write_images


@pytest.fixture(scope="session")
def toy_run(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished `zsad predict`; not to be changed."""
    from zsad.cli.main import main

    out = tmp_path_factory.mktemp("run") / "out"
    assert main(["predict", str(toy.images), "--model", str(toy.model), "--out", str(out)]) == 0
    return out


def write_set(folder: Path, *, seed: int, count: int = 10) -> Path:
    """A data set of drawn scenes of 64 px as one class, normal and defective ones."""
    from zsad.synth import write_data_set

    write_data_set(folder / "raw", count=count, seed=seed, size=(64, 64))
    for picture in sorted((folder / "raw").rglob("*.png")):
        place = folder / folder.name / Path(*picture.relative_to(folder / "raw").parts[1:])
        place.parent.mkdir(parents=True, exist_ok=True)
        picture.rename(place)
    shutil.rmtree(folder / "raw")
    return folder


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three drawn sets, not to be changed: `aux`, `one` and `two`."""
    root = tmp_path_factory.mktemp("drawn")
    for seed, name in enumerate(("aux", "one", "two")):
        write_set(root / name, seed=seed)
    return root


@pytest.fixture(scope="session", name="write_backbone")
def _write_backbone() -> Callable[..., Path]:
    """`write_backbone(folder, ...)`."""
    return write_backbone


@pytest.fixture(scope="session", name="write_model")
def _write_model() -> Callable[..., Path]:
    """`write_model(folder, backbone, ...)`."""
    return write_model


@pytest.fixture(scope="session", name="write_images")
def _write_images() -> Callable[..., Path]:
    """`write_images(folder, count)`, for what lives as long as the session."""
    return write_images


@pytest.fixture(scope="session", name="write_set")
def _write_set() -> Callable[..., Path]:
    """`write_set(folder, seed=...)`, for what lives as long as the session."""
    return write_set


@pytest.fixture
def draw_set() -> Callable[..., Path]:
    """`write_set(folder, seed=...)`, for tests that change what is drawn."""
    return write_set
