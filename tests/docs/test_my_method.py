"""The example of "Write a new method": against a slow reading of its equations, and as a plugin of a package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import zsad
from zsad.clip.weights import load_backbone
from zsad.errors import ConfigError
from zsad.methods.base import ImageFeatures, Method
from zsad.methods.modules import switched
from zsad.methods.registry import build, find, names
from zsad.prompts import state_prompts
from zsad.train.checkpoint import save_checkpoint
from zsad.train.training_card import CardParts, card_of

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def probe(place: Path, install) -> Method:
    """The example on the small backbone, registered, its direction moved away from the start."""
    install("my-method", {"probe": "my_method:ENTRY"})
    method = build("probe", None, load_backbone("zsad-tiny")).eval()
    with torch.no_grad():
        method.shift.normal_(generator=torch.Generator().manual_seed(3)).mul_(0.3)
    return method


def features_of(method: Method) -> ImageFeatures:
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        return method.features(pixels)


def slow(method: Method, features: ImageFeatures) -> tuple[Tensor, Tensor]:
    """Maps (B, L, 2, H, W), normal first, and scores (B,), as the file's text has them, both states written out."""
    tower, tokenizer = method.clip.text, load_backbone("zsad-tiny").tokenizer
    text = []
    for sentences in state_prompts("object"):
        each = [
            tower.encode(torch.tensor([tokenizer.encode(own)]), eos=tokenizer.eos)[0] for own in sentences
        ]
        text.append(F.normalize(torch.stack([F.normalize(one, dim=-1) for one in each]).mean(0), dim=-1))
    tau, (batch, layers, count, _) = method.config.tau, features.patches.shape
    rows, columns = features.grid
    assert count == rows * columns
    patches, whole = F.normalize(features.patches, dim=-1), F.normalize(features.cls, dim=-1)
    pairs = torch.stack([torch.stack([text[0], text[1] + method.shift[layer]]) for layer in range(layers)])
    grids = torch.einsum("blnd,lsd->blsn", patches, pairs).reshape(batch * layers, 2, rows, columns) / tau
    maps = F.interpolate(grids, size=(64, 64), mode="bilinear").softmax(dim=1).view(batch, layers, 2, 64, 64)
    score = (whole @ torch.stack(text).T / tau).softmax(-1)[:, 1]
    return maps, (maps[:, :, 1].mean(1).amax((1, 2)) + score) / 2


@torch.no_grad()
def test_its_module_switched_off_is_plain_clip(probe: Method) -> None:
    features = features_of(probe)
    with switched(probe, probe.paper_modules()["directions"].off):
        off = probe(features).logits
    learned, shift = probe(features).logits, probe.shift.clone()
    assert (off - learned).abs().max() > 0.1
    probe.shift.zero_()
    torch.testing.assert_close(off, probe(features).logits)
    probe.shift.copy_(shift)


@torch.no_grad()
def test_it_is_what_its_text_says(probe: Method) -> None:
    features = features_of(probe)
    maps, score = slow(probe, features)
    torch.testing.assert_close(probe(features).score, score, atol=1e-4, rtol=0)
    masks = (torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(5)) > 0.8).float()
    labels = torch.tensor([1.0, 0.0, 1.0])
    dice = focal = torch.zeros(())
    for layer in range(maps.shape[1]):
        abnormal = maps[:, layer, 1]
        either = (abnormal + masks).sum((1, 2)) + 1
        dice = dice + (1 - (2 * (abnormal * masks).sum((1, 2)) + 1) / either).mean()
        target = masks.clamp(1e-5, 1 - 1e-5)
        chance = target * abnormal + (1 - target) * maps[:, layer, 0] + 1e-5
        focal = focal - ((1 - chance) ** 2 * chance.log()).mean()
    found = probe.losses(features, masks, labels)
    torch.testing.assert_close(found["dice"], dice, atol=1e-4, rtol=0)
    torch.testing.assert_close(found["focal"], focal, atol=1e-4, rtol=0)
    torch.testing.assert_close(found["classify"], F.binary_cross_entropy(score, labels), atol=1e-4, rtol=0)


@torch.no_grad()
def test_it_starts_as_plain_clip_and_images_do_not_influence_each_other(probe: Method) -> None:
    features = features_of(probe)
    moved = probe(features).logits
    alone = ImageFeatures(features.patches[1:2], features.cls[1:2], features.grid)
    torch.testing.assert_close(probe(alone).logits[0], moved[1], atol=1e-5, rtol=0)
    probe.reset_parameters(torch.Generator().manual_seed(1))
    same = {"layers": probe.config.layers, "tau_prime": probe.config.tau, "map_order": "before_softmax"}
    plain = build("clip", same, load_backbone("zsad-tiny"))
    torch.testing.assert_close(probe(features).logits, plain(features).logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(probe(features).score, plain(features).score, atol=1e-4, rtol=0)
    assert (moved - plain(features).logits).abs().max() > 0.1


def test_a_checkpoint_is_read_again_where_the_package_is_installed(probe: Method, place: Path) -> None:
    assert "probe" in names() and find("probe").title == "A linear probe"
    card = card_of(probe, CardParts.of(probe, load_backbone("zsad-tiny")))
    save_checkpoint(place / "saved", probe, card)
    own = zsad.Detector.from_method(probe, card).predict("photo.jpg")
    read = zsad.load(place / "saved", device="cpu")
    assert read.method.name == "probe" and read.predict("photo.jpg").score == own.score
    assert own.terms is not None and own.score == pytest.approx(sum(own.terms.values()) / 2, abs=1e-6)


def test_without_the_package_its_name_is_unknown(place: Path) -> None:
    with pytest.raises(ConfigError, match="no method is called 'probe'"):
        find("probe")


def test_it_is_as_short_as_the_page_says() -> None:
    assert len((DOCS / "examples" / "my_method.py").read_text(encoding="utf-8").splitlines()) <= 62
