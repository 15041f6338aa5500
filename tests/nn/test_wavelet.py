"""The Haar bands against loops over blocks, their identities, and the fusion in value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from zsad.nn.wavelet import FrequencyFusion, WaveletRefinement, frequency_fusion


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_haar(x: torch.Tensor) -> list[torch.Tensor]:
    """Block by block, of grids (B, D, h, w) continued by their last row and column."""
    x = F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2), mode="replicate")
    bands = [x.new_zeros(*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2) for _ in range(4)]
    for row in range(x.shape[2] // 2):
        for column in range(x.shape[3] // 2):
            a, b = x[:, :, 2 * row, 2 * column], x[:, :, 2 * row, 2 * column + 1]
            c, d = x[:, :, 2 * row + 1, 2 * column], x[:, :, 2 * row + 1, 2 * column + 1]
            values = (a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d)
            for band, value in zip(bands, values, strict=True):
                band[:, :, row, column] = value / 2
    return bands


SIDES = [(6, 8), (7, 7), (6, 5), (5, 4), (1, 1), (1, 4)]


def slow_fusion(x: torch.Tensor, weight: torch.Tensor, *, normalise: bool = False) -> torch.Tensor:
    low, *high = slow_haar(x)
    bands = [sum(high), low]
    if normalise:
        bands = [
            (band - band.mean(1, keepdim=True)) / (band.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
            for band in bands
        ]
    return bands[0] * weight + bands[1]


@pytest.mark.parametrize("sides", SIDES)
def test_the_published_sum_of_high_bands_is_twice_the_first_token_less_the_low_band(sides):
    x = randn(2, 3, *sides)
    low, lh, hl, hh = slow_haar(x)
    torch.testing.assert_close(lh + hl + hh, 2 * x[..., ::2, ::2] - low, atol=1e-14, rtol=0)


@pytest.mark.parametrize("sides", SIDES)
def test_a_constant_has_no_high_band(sides):
    x, weight = torch.full((1, 2, *sides), 3.0), randn(2, 1, 1).float()
    torch.testing.assert_close(frequency_fusion(x, weight), torch.full_like(x[..., ::2, ::2], 6.0))
    assert not frequency_fusion(x, weight, normalise=True).any()


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("sides", [*SIDES, (7, 5)])
def test_fusion_equals_the_slow_form_in_value_and_gradient(sides, normalise):
    x = randn(2, 3, *sides).requires_grad_()
    weight = randn(3, 1, 1, seed=1).requires_grad_()
    slow = slow_fusion(x, weight, normalise=normalise)
    fast = frequency_fusion(x, weight, normalise=normalise)
    torch.testing.assert_close(fast, slow, atol=1e-12, rtol=0)
    probe = randn(*fast.shape, seed=2)
    for ours, theirs in zip(
        *(torch.autograd.grad((form * probe).sum(), (x, weight)) for form in (fast, slow)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-10)


def test_normalised_bands_weigh_alike_however_alike_neighbours_are():
    x = randn(1, 16, 1, 1) + 0.1 * randn(1, 16, 6, 6, seed=1)
    weight = torch.ones(1, 1, 1, dtype=torch.float64)
    for normalise, least, most in ((False, 0.0, 0.1), (True, 0.6, 2.0)):
        low = frequency_fusion(x, 0 * weight, normalise=normalise)
        high = frequency_fusion(x, weight, normalise=normalise) - low
        assert least < high.std() / low.std() < most
    fusion = FrequencyFusion(2, 4, normalise=True)
    assert (fusion.weight == 1).all() and fusion(torch.randn(1, 2, 4, 3, 3)).shape == (1, 2, 4, 2, 2)


def test_every_layer_has_its_own_weight():
    fusion = FrequencyFusion(2, 4).double()
    x = randn(3, 2, 4, 5, 6).requires_grad_()
    start = fusion(x)
    tenth = torch.tensor(0.1, dtype=torch.float64)
    torch.testing.assert_close(start, frequency_fusion(x, fusion.weight.new_tensor(0.1)), atol=1e-8, rtol=0)
    assert fusion.weight.flatten().tolist() == pytest.approx([float(tenth)] * 8)
    with torch.no_grad():
        fusion.weight.copy_(randn(*fusion.weight.shape, seed=3))
    fused = fusion(x)
    for layer in range(2):
        expected = slow_fusion(x[:, layer], fusion.weight[layer])
        torch.testing.assert_close(fused[:, layer], expected, atol=1e-13, rtol=0)
        probe, inputs = randn(*expected.shape, seed=layer), (x, fusion.weight)
        for ours, theirs in zip(
            *(
                torch.autograd.grad((form * probe).sum(), inputs, retain_graph=True)
                for form in (fused[:, layer], expected)
            ),
            strict=True,
        ):
            assert theirs.abs().max() > 0
            torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    fusion.reset_parameters()
    torch.testing.assert_close(fusion(x), start, atol=1e-8, rtol=0)


def test_refinement_starts_as_the_identity_and_learns():
    layer = WaveletRefinement(FrequencyFusion(2, 6), heads=3).double()
    vectors, tokens = F.normalize(randn(3, 2, 6), dim=-1), randn(3, 2, 20, 6, seed=1)
    refined, bands = layer(vectors, tokens, grid=(5, 4))
    assert bands.shape == (3, 2, 6, 6)
    torch.testing.assert_close(refined, vectors[:, None].expand(-1, 2, -1, -1), atol=1e-12, rtol=0)
    (refined * randn(3, 2, 2, 6, seed=2)).sum().backward()
    zero = layer.attention.output
    assert (layer.gamma == 1).all() and zero.grad.abs().sum() > 0 and not zero.any()


def test_refinement_reads_the_grid_row_by_row():
    """What is refined depends on which tokens are neighbours."""
    layer = WaveletRefinement(FrequencyFusion(1, 6), heads=2).double()
    torch.nn.init.normal_(layer.attention.output, generator=torch.Generator().manual_seed(0))
    vectors, tokens = F.normalize(randn(1, 2, 6), dim=-1), randn(1, 1, 24, 6, seed=1)
    _, bands = layer(vectors, tokens, grid=(4, 6))
    grid = tokens.view(4, 6, 6).permute(2, 0, 1)
    expected = frequency_fusion(grid, torch.tensor(0.1, dtype=torch.float64)).flatten(1).T
    torch.testing.assert_close(bands[0, 0], F.layer_norm(expected, (6,)), atol=1e-7, rtol=0)
    assert not torch.allclose(layer(vectors, tokens, grid=(6, 4))[1], bands)
