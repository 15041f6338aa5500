"""Sentences through the text tower once each; backbones with another activation."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from zsad.clip.blocks import QuickGELU
from zsad.clip.weights import Backbone
from zsad.methods.base import ImageFeatures
from zsad.methods.registry import build
from zsad.methods.sentences import SentenceBank
from zsad.methods.similarity import distinct_names, of_images

SENTENCES = ["a photo of a bottle.", "a damaged bottle.", "a photo of a bottle."]


@pytest.fixture
def calls(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sentences each pass of the text tower had."""
    seen: list[int] = []
    real = type(backbone.clip.text).encode

    def counted(self, ids, **options):
        seen.append(len(ids))
        return real(self, ids, **options)

    monkeypatch.setattr(type(backbone.clip.text), "encode", counted)
    return seen


def test_each_sentence_is_encoded_once(backbone: Backbone, calls: list[int]) -> None:
    bank = SentenceBank(backbone)
    first = bank.embed(SENTENCES)
    again = bank.embed([*SENTENCES, "a flawless bottle."])
    assert calls == [2, 1]
    assert torch.equal(first[0], first[2]) and torch.equal(again[:3], first)
    alone = backbone.clip.text.encode(
        backbone.tokenizer.encode_batch(SENTENCES[1:2], context_length=77), eos=backbone.tokenizer.eos
    )
    torch.testing.assert_close(first[1:2], alone, atol=1e-5, rtol=1e-5)


def test_features_before_the_projection_are_kept_apart(backbone: Backbone, calls: list[int]) -> None:
    bank = SentenceBank(backbone)
    raw, projected = bank.embed(SENTENCES, projected=False), bank.embed(SENTENCES)
    assert calls == [2, 2]
    torch.testing.assert_close(raw @ backbone.clip.text.proj, projected, atol=1e-5, rtol=1e-5)


def test_states_are_means_of_normalised_sentences(backbone: Backbone) -> None:
    bank = SentenceBank(backbone)
    found = bank.states(SENTENCES[:1], SENTENCES[1:])
    rows = [F.normalize(bank.embed([text])[0], dim=0) for text in SENTENCES]
    torch.testing.assert_close(found[0], rows[0])
    torch.testing.assert_close(found[1], F.normalize((rows[1] + rows[2]) / 2, dim=0))


def test_sentences_met_in_inference_can_be_learned_from(backbone: Backbone) -> None:
    bank = SentenceBank(backbone)
    with torch.inference_mode():
        bank.embed(SENTENCES)
    weight = torch.ones(backbone.clip.config.embed_dim, requires_grad=True)
    (bank.embed(SENTENCES) @ weight).sum().backward()
    assert weight.grad is not None and weight.grad.abs().sum() > 0


def test_words_of_a_batch() -> None:
    assert distinct_names(None)[0] == ["object"]
    known, index = distinct_names(("nut", "pill", "nut"))
    assert known == ["nut", "pill"] and index.tolist() == [0, 1, 0]
    text = torch.randn(2, 2, 3)
    assert torch.equal(of_images(text, index, batch=3), text[[0, 1, 0]])
    known, index = distinct_names(("nut", "nut"))
    assert known == ["nut"] and torch.equal(of_images(text[:1], index, batch=2), text[[0, 0]])


def test_another_activation_shares_the_weights(backbone: Backbone) -> None:
    other = "gelu" if backbone.preset.config.vision.activation == "quick_gelu" else "quick_gelu"
    changed = backbone.with_activation(other)
    for name, tensor in backbone.clip.state_dict().items():
        assert changed.clip.state_dict()[name].data_ptr() == tensor.data_ptr()
    kinds = {
        type(block.act) is QuickGELU for block in (*changed.clip.visual.blocks, *changed.clip.text.blocks)
    }
    assert kinds == {other == "quick_gelu"}
    assert backbone.with_activation(backbone.preset.config.vision.activation) is backbone
    method = build("clip", {"activation": other}, backbone)
    pixels = torch.randn(1, 3, method.config.image_size, method.config.image_size)
    plain = build("clip", {}, backbone)
    assert isinstance(method.features(pixels), ImageFeatures)
    assert not torch.allclose(method.features(pixels).patches, plain.features(pixels).patches)
