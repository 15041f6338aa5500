"""Plain CLIP is plain CLIP: its own embeddings, on a tower whose preset asks for the value-value branch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from zsad.clip.config import PRESETS
from zsad.clip.weights import Backbone
from zsad.methods.clip_zero_shot import ClipConfig
from zsad.methods.registry import build
from zsad.nn.filters import render_map
from zsad.prompts import state_prompts

WORDS = ("bottle", "metal nut", "bottle")


def slow_states(backbone: Backbone, sentences: tuple[list[str], list[str]]) -> torch.Tensor:
    """(2, D): the mean of each state's sentences, every one encoded by CLIP and normalised."""
    means = []
    for state in sentences:
        ids = backbone.tokenizer.encode_batch(state)
        embeddings = F.normalize(backbone.clip.text.encode(ids, eos=backbone.tokenizer.eos), dim=-1)
        means.append(F.normalize(embeddings.mean(0), dim=-1))
    return torch.stack(means)


@pytest.mark.parametrize("name", PRESETS)
def test_openai_towers_are_read_without_the_value_value_branch(name):
    config = ClipConfig.for_backbone(PRESETS[name])
    assert PRESETS[name].value_value and not config.value_value and config.cls_norm is None
    assert config.layers == PRESETS[name].taps[-1:]


def test_the_image_feature_is_clips_own_embedding(backbone):
    """At the tower's own size, where no position is resized; tests/clip compares `encode` with other codes."""
    assert backbone.preset.value_value
    with torch.no_grad():
        backbone.clip.visual.ln_post.weight.uniform_(0.2, 2, generator=torch.Generator().manual_seed(4))
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    features = build("clip", {"image_size": 32}, backbone).features(pixels)
    torch.testing.assert_close(features.cls, backbone.clip.visual.encode(pixels), atol=1e-6, rtol=0)
    tokens = backbone.clip.visual.embed(pixels)[0]
    for block in backbone.clip.visual.blocks:
        tokens = block(tokens)
    patches = backbone.clip.visual.project(tokens[:, 1:])
    torch.testing.assert_close(features.patches[:, 0], patches, atol=1e-5, rtol=0)
    branch = build("clip", {"image_size": 32, "value_value": True}, backbone).features(pixels)
    assert F.cosine_similarity(branch.cls, features.cls).max() < 0.98


def test_output_is_the_softmax_of_cosines(backbone, pixels):
    method = build("clip", {"tau_prime": 0.1, "tau": 0.2}, backbone)
    features = method.features(pixels)
    output = method(replace(features, object_names=WORDS))
    text = slow_states(backbone, state_prompts("object"))
    cosines = F.normalize(features.patches[:, 0], dim=-1) @ text.T
    grid = (cosines / 0.2).softmax(-1)[..., 1]
    torch.testing.assert_close(output.logits.sigmoid().flatten(1), grid, atol=1e-5, rtol=0)
    whole = (F.normalize(features.cls, dim=-1) @ text.T / 0.1).softmax(-1)[:, 1]
    peak = render_map(output.logits, method.map_spec, smooth=False).amax((1, 2))
    torch.testing.assert_close(output.score, (peak + whole) / 2, atol=1e-5, rtol=0)


def test_the_printed_form_has_one_sentence_a_state_that_names_the_object(backbone, pixels):
    method = build("clip", {"recipe": "printed", "tau_prime": 0.1}, backbone)
    assert (
        method.config.model_dump().items()
        >= {"names": "data", "score": "global", "templates": "pair"}.items()
    )
    features = method.features(pixels)
    output = method(replace(features, object_names=WORDS))
    for image, word in enumerate(WORDS):
        text = slow_states(backbone, ([f"a photo of a {word}."], [f"a photo of a damaged {word}."]))
        whole = (F.normalize(features.cls[image], dim=-1) @ text.T / 0.1).softmax(-1)[1]
        torch.testing.assert_close(output.score[image], whole, atol=1e-5, rtol=0)
    assert build("clip", {"recipe": "printed", "names": "object"}, backbone).config.names == "object"


def test_object_is_replaced_by_another_word(backbone, pixels):
    named = build("clip", {"class_word": "screw"}, backbone)
    other = build("clip", {"names": "data"}, backbone)
    features = named.features(pixels)
    screws = other(replace(features, object_names=("screw",) * 3))
    assert torch.equal(named(features).score, screws.score)
    assert not torch.equal(other(features).score, screws.score)
