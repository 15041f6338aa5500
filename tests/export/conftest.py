"""Methods on a random CLIP of two narrow blocks, with adapters far from their start, and images to prove them on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from zsad.backends.torch import TorchBackend
from zsad.clip.config import CLIPConfig, Preset, TextConfig, VisionConfig
from zsad.clip.model import CLIP
from zsad.clip.tokenizer import Tokenizer
from zsad.clip.weights import Backbone
from zsad.export.parity import ProofImages
from zsad.images.picture import Preprocess
from zsad.methods.registry import build
from zsad.predict.view import Model
from zsad.train.training_card import CardParts, card_of

SMALL = {
    "promptmoe": {"heads": 4},
    "wmoeclip": {"heads": 4},
    "moeclip": {"rank": 4},
    "adaclip": {"templates": 1, "clusters": 3},
    "faprompt": {"abnormal_prompts": 3, "prior_tokens": 4},
}


@pytest.fixture(scope="session")
def narrow() -> Backbone:
    config = CLIPConfig(
        embed_dim=16,
        vision=VisionConfig(image_size=32, patch_size=8, width=16, layers=2, heads=2, mlp_width=32),
        text=TextConfig(context_length=77, vocab_size=49408, width=16, layers=2, heads=2, mlp_width=32),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = CLIP(config)
    preset = Preset(
        name="toy", clip=config, detection_size=40, taps=(1, 2), value_value=True, value_value_from=1
    )
    return Backbone(clip=clip.freeze(), tokenizer=Tokenizer(), preset=preset, sha256="toy", name="toy")


@pytest.fixture(scope="session")
def drawn(narrow) -> ProofImages:
    preset = narrow.preset
    return ProofImages.drawn(Preprocess(image_size=(40, 40), mean=preset.mean, std=preset.std), 5)


@pytest.fixture(scope="session")
def loaded_of(narrow):
    """A method by name with noise on all tensors of its adapter, so that no part of it is switched off by a zero."""

    def make(name: str, **settings: Any) -> Model:
        method, noise = (
            build(name, {**SMALL.get(name, {}), **settings}, narrow),
            torch.Generator().manual_seed(11),
        )
        method.reset_parameters(torch.Generator().manual_seed(12))
        state = method.adapter_state().items()
        method.load_adapter({key: t + 0.05 * torch.randn(t.shape, generator=noise) for key, t in state})
        return Model(TorchBackend(method), card_of(method, CardParts.of(method, narrow)))

    return make
