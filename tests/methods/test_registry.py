"""Methods by name, plain CLIP, and plugins."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest
import torch
from torch.nn import functional as F

from zsad.errors import ConfigError
from zsad.methods import registry
from zsad.methods.clip_zero_shot import ClipConfig
from zsad.methods.promptmoe import PromptMoE, PromptMoEConfig
from zsad.methods.registry import METHODS, MethodEntry, build, find
from zsad.nn.filters import render_map
from zsad.prompts import prompt_table, state_prompts


def test_every_entry_loads_the_class_of_its_name():
    for name, entry in METHODS.items():
        assert entry.load().name == name == entry.name
        assert entry.title and entry.paper and entry.venue
        assert (entry.parameters > 0) == entry.needs_training
        assert bool(entry.provenance) == (entry.sources == "abstract")


def test_build_takes_a_config_a_dict_or_nothing(backbone):
    assert build("promptmoe", None, backbone).config.layers == (2, 3, 4)
    partial = build("promptmoe", {"experts": 6}, backbone).config
    assert (partial.experts, partial.image_size, partial.value_value_from) == (6, 40, 2)
    config = PromptMoEConfig(layers=(4,), image_size=32, value_value_from=3, heads=4)
    assert build("promptmoe", config, backbone).config is config
    assert build("promptmoe", config.model_dump(mode="json"), backbone).config == config
    with pytest.raises(ConfigError, match="takes a PromptMoEConfig, not a ClipConfig"):
        build("promptmoe", ClipConfig(), backbone)
    with pytest.raises(ConfigError, match="did you mean 'promptmoe'"):
        build("prompt-moe", None, backbone)


def text_of(method):
    """Text (2, D) of plain CLIP for one image of no named object."""
    return method._text(None, batch=1)[0]


def test_clip_meets_the_mean_of_its_sentences(backbone, pixels):
    method = build("clip", {"class_word": "bottle"}, backbone)
    assert method.config.layers == (4,) and method.adapter_state() == {}
    tower, tokenizer = backbone.clip.text, backbone.tokenizer
    expected = []
    for sentences in state_prompts("bottle"):
        each = [
            tower.encode(torch.tensor([tokenizer.encode(text)]), eos=tokenizer.eos)[0] for text in sentences
        ]
        expected.append(
            F.normalize(torch.stack([F.normalize(text, dim=-1) for text in each]).mean(0), dim=-1)
        )
    text = text_of(method)
    torch.testing.assert_close(text, torch.stack(expected), atol=1e-5, rtol=0)
    features = method.features(pixels)
    output = method(features)
    cosine = F.normalize(features.patches[:, 0], dim=-1) @ text.T
    grid = (cosine / 0.07).softmax(-1)[..., 1].view(3, 1, 5, 5)
    maps = F.interpolate(grid, size=(40, 40), mode="bilinear")[:, 0]
    torch.testing.assert_close(
        render_map(output.logits, method.map_spec, smooth=False), maps, atol=1e-5, rtol=0
    )
    whole = (F.normalize(features.cls, dim=-1) @ text.T / 0.01).softmax(-1)[:, 1]
    torch.testing.assert_close(output.score, (maps.amax((1, 2)) + whole) / 2, atol=1e-4, rtol=0)
    alone = build("clip", {"class_word": "bottle", "score": "global"}, backbone)
    torch.testing.assert_close(alone(features).score, whole, atol=1e-4, rtol=0)


def test_clip_words_and_templates_change_its_text(backbone):
    texts = [
        text_of(build("clip", settings, backbone))
        for settings in ({}, {"class_word": "brain scan"}, {"templates": "single"})
    ]
    assert not torch.equal(texts[0], texts[1]) and not torch.equal(texts[0], texts[2])


def test_clip_has_nothing_to_train(backbone, pixels, masks, labels):
    method = build("clip", None, backbone)
    with pytest.raises(ConfigError, match="nothing to train"):
        method.losses(method.features(pixels), masks, labels)
    assert not find(method.name).needs_training and not any(p.requires_grad for p in method.parameters())


def test_sentences_name_the_object_once_and_leave_no_gap():
    for sentences in state_prompts("zebra"):
        assert all(text.count("zebra") == 1 and "{" not in text for text in sentences)
        assert len(set(sentences)) == len(sentences)
    templates = set(ClipConfig.model_fields["templates"].annotation.__args__)
    assert set(prompt_table()["templates"]) == templates - {"pair"}  # of which the words are a paper's


class _Plugin:
    entry = MethodEntry(
        name="mine", target="zsad.methods.promptmoe:PromptMoE", title="t", paper="p", venue="v", arxiv=""
    )
    wrong = "no entry"


@pytest.fixture
def plugins(monkeypatch):
    monkeypatch.setitem(sys.modules, "plugin_of_tests", _Plugin)
    points = [
        EntryPoint("mine", "plugin_of_tests:entry", "zsad.methods"),
        EntryPoint("wrong", "plugin_of_tests:wrong", "zsad.methods"),
        EntryPoint("gone", "no_such_module_at_all:entry", "zsad.methods"),
        EntryPoint("clip", "plugin_of_tests:wrong", "zsad.methods"),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda *, group: [p for p in points if p.group == group])
    registry._plugins.cache_clear()
    yield
    registry._plugins.cache_clear()


def test_plugins_are_found_lazily_and_cannot_take_a_name(plugins, backbone):
    assert registry.names() == (*METHODS, "gone", "mine", "wrong")
    assert isinstance(build("mine", {"heads": 4}, backbone), PromptMoE)
    assert find("clip") is METHODS["clip"]
    with pytest.raises(ConfigError, match="expected a MethodEntry"):
        find("wrong")
    with pytest.raises(ConfigError, match=r"cannot be loaded .*no_such_module_at_all"):
        find("gone")
