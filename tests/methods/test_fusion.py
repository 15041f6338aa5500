"""Oddness fused into any method: nothing changes where it is off, cues move maps and scores where it is on."""

from __future__ import annotations

import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch.nn import functional as F

from zsad.errors import ConfigError
from zsad.methods.fusion import FusionData, OddnessFusion, bounded, fit_curve
from zsad.methods.registry import METHODS, build
from zsad.nn.oddness import oddness, top_mean


def evidence(*, seed: int = 0, count: int = 40) -> FusionData:
    noise = torch.Generator().manual_seed(seed)
    labels = (torch.arange(count) % 2).float()
    logits = 3 + 2 * torch.randn(count, 50, generator=noise)
    cues = 0.2 + 0.1 * torch.rand(count, 3, 50, generator=noise)
    cues[labels == 1, :, 7] += 0.3
    return FusionData(logits, cues, labels)


def fitted(**weights: tuple[float, float, float]) -> tuple[OddnessFusion, FusionData]:
    fusion = OddnessFusion(**{"map_weights": (0.5, 0.5, 0.0), "score_weights": (0.0, 1.0, 1.0), **weights})
    given = evidence()
    fusion.fit(given)
    return fusion, given


def grids_of(given: FusionData) -> torch.Tensor:
    return given.logits.reshape(-1, 1, 5, 10).repeat(1, 2, 1, 1)


def test_scales_are_those_of_normal_patches_and_pictures_alone():
    fusion, given = fitted()
    normal = given.labels == 0
    assert fusion.patch[0, 0] == pytest.approx(given.logits[normal].mean().item(), abs=1e-5)
    assert fusion.patch[0, 1] == pytest.approx(given.logits[normal].std(correction=0).item(), abs=1e-5)
    assert fusion.patch[2, 0] == pytest.approx(given.cues[normal, 1].mean().item(), abs=1e-5)
    tops = top_mean(given.cues[normal, 2], 0.025)
    assert fusion.top[3].tolist() == pytest.approx(
        [tops.mean().item(), tops.std(correction=0).item()], abs=1e-5
    )


def test_map_and_score_are_the_sums_of_the_docstring():
    fusion, given = fitted(map_weights=(0.5, 0.25, 1.0), score_weights=(2.0, 1.0, 0.5))
    logits, score = fusion(grids_of(given), given.cues)
    z = (given.cues - fusion.patch[1:, 0, None]) / fusion.patch[1:, 1, None]
    shift = fusion.patch[0, 1] * (0.5 * z[:, 0] + 0.25 * z[:, 1] + z[:, 2])
    expected = given.logits + shift
    for layer in range(2):
        torch.testing.assert_close(logits[:, layer].flatten(1), expected, atol=1e-4, rtol=1e-5)
    tops = torch.stack([given.logits.amax(1), *given.cues.amax(2).T], dim=1)  # 2.5 % of 50 patches is one
    z = (tops - fusion.top[:, 0]) / fusion.top[:, 1]
    total = z / (1 + (z / 0.5) ** 2) ** 0.5 @ torch.tensor([1.0, 2.0, 1.0, 0.5])
    expected = (fusion.curve[0] * total + fusion.curve[1]).sigmoid()
    torch.testing.assert_close(score, expected, atol=1e-5, rtol=0)


def test_a_cue_far_off_its_scale_leaves_the_ranking_to_the_others():
    fusion, given = fitted(score_weights=(0.0, 1.0, 1.0))
    given.cues[:, 2] += 1000 + torch.rand(40, 1)  # a world in which nothing is like its mirror image
    score = fusion(grids_of(given), given.cues)[1]
    without = bounded((given.cues[:, 1].amax(1) - fusion.top[2, 0]) / fusion.top[2, 1])
    without += bounded((given.logits.amax(1) - fusion.top[0, 0]) / fusion.top[0, 1])
    assert torch.equal(score.argsort(), without.argsort())


@hypothesis.given(
    limit=st.floats(0.1, 10), values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=9)
)
def test_bounded_values_keep_the_order_and_the_bound(limit: float, values: list[float]) -> None:
    standard = torch.tensor(sorted(values), dtype=torch.float64)
    found = bounded(standard, limit=limit)
    assert bool((found.diff() >= 0).all()) and float(found.abs().max()) <= limit * (1 + 1e-12)
    assert torch.equal(found.sign(), standard.sign())


def test_scores_separate_what_the_cues_separate():
    fusion, given = fitted()
    score = fusion(grids_of(given), given.cues)[1]
    pairs = score[given.labels == 1, None] > score[given.labels == 0]
    assert pairs.float().mean() > 0.95
    assert score.min() > 0 and score.max() < 1


def test_without_normal_images_it_is_refused():
    given = evidence()
    given.labels = torch.ones_like(given.labels)
    with pytest.raises(ConfigError, match="needs normal images"):
        OddnessFusion(map_weights=(1, 1, 1), score_weights=(1, 1, 1)).fit(given)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1], [0, 1, 1, 1]])
def test_the_curve_is_finite_and_rises(labels):
    slope, offset = fit_curve(torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor(labels)).tolist()
    assert slope > 0 and math.isfinite(offset)


def test_the_curve_minimises_the_balanced_loss():
    noise = torch.Generator().manual_seed(1)
    x = torch.randn(200, generator=noise)
    y = (x + torch.randn(200, generator=noise) > 1).float()
    found = fit_curve(x, y).double()
    weights = torch.where(y == 1, 0.5 / y.sum(), 0.5 / (1 - y).sum()).double()
    spread = float(x.double().std(correction=0))  # the ridge is on the slope of standardised evidence

    def loss(beta: torch.Tensor) -> float:
        fit = F.binary_cross_entropy_with_logits(beta[0] * x.double() + beta[1], y.double(), reduction="none")
        return float((weights * fit).sum() + 0.5e-2 * (spread * beta[0]) ** 2)

    best = loss(found)
    for step in ([0.02, 0], [-0.02, 0], [0, 0.02], [0, -0.02]):
        assert loss(found + torch.tensor(step, dtype=torch.float64)) > best


@pytest.mark.parametrize("name", METHODS)
def test_any_method_takes_it_and_is_what_it_was_without(towers, pixels, name):
    plain = build(name, None, towers).eval()
    fused = build(name, {"oddness": "fused"}, towers).eval()
    assert not any(key.startswith("fusion") for key in plain.adapter_state())
    fused.load_adapter(
        {**plain.adapter_state(), **{k: v for k, v in fused.adapter_state().items() if "fusion" in k}}
    )
    with torch.inference_mode():
        own = plain.predict(plain.encode_image(pixels))
        features = fused.encode_image(pixels)
        assert features.cues is not None and features.cues.shape == (len(pixels), 3, math.prod(features.grid))
        torch.testing.assert_close(fused(features).logits, own.logits)
        both = fused.predict(features)
    assert both.logits.shape == own.logits.shape and not torch.equal(both.logits, own.logits)
    torch.testing.assert_close(both.terms["method"], own.score)


def test_cues_are_of_the_stem_where_there_is_one_else_of_the_first_tap(towers, pixels):
    method = build("promptmoe", {"oddness": "fused"}, towers).eval()
    features, cut = method.encode_image(pixels), method.clip.visual.patch_tokens(pixels)
    texture = features.patches[:, 0] if cut.texture is None else cut.texture
    torch.testing.assert_close(features.cues, oddness(texture, features.grid))
