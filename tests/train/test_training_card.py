"""Cards say the same wherever a model comes from."""

from __future__ import annotations

import pytest

import zsad
from zsad.methods.registry import METHODS
from zsad.train.training_card import CardParts, card_of


@pytest.fixture(scope="module")
def detector() -> zsad.Detector:
    return zsad.load("clip-tiny", device="cpu")


def test_the_card_of_a_method_without_training_is_that_of_any_other(detector):
    method, card = detector.method, detector.card
    assert card.method == "clip" and card.training is None and card.created == "" and card.provenance == ""
    assert (
        card.preprocess["image_size"] == [method.config.image_size] * 2
        or tuple(card.preprocess["image_size"]) == (method.config.image_size,) * 2
    )
    parts = CardParts(card.backbone, detector.model.preprocess)
    method.map_scale = (0.25, 0.5)
    again = card_of(method, parts)
    assert again.created and again.map_spec.scale == (0.25, 0.5)
    assert again.model_copy(update={"created": "", "map_spec": card.map_spec}) == card


def test_a_card_says_what_a_method_was_re_designed_from(detector, monkeypatch):
    parts = CardParts(detector.card.backbone, detector.model.preprocess)
    for name, entry in METHODS.items():
        monkeypatch.setattr(type(detector.method), "name", name)
        assert card_of(detector.method, parts).provenance == entry.provenance
    monkeypatch.setattr(type(detector.method), "name", "of another package, not registered")
    assert card_of(detector.method, parts).provenance == ""
