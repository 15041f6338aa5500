"""Window tables and harmonic means against loops over windows and patches, in value and gradient."""

from __future__ import annotations

import pytest
import torch

from zsad.errors import ConfigError
from zsad.nn.windows import harmonic_cover, harmonic_mean, window_table


def slow_windows(grid, size, stride):
    """Corners and patches of all windows, by counting."""
    height, width = grid
    tops, lefts = (
        [*range(0, side - size, stride), side - size] if side > size else [0] for side in (height, width)
    )
    return [
        [(top + row) * width + left + column for row in range(size) for column in range(size)]
        for top in tops
        for left in lefts
    ]


def slow_cover(probability, size, stride):
    """n / sum(1 / s) over the windows that hold a patch."""
    height, width = probability.shape
    found = torch.empty(height, width, dtype=probability.dtype)
    windows = slow_windows((height, width), size, stride)
    for patch in range(height * width):
        inverse = [1 / probability.flatten()[window[0]] for window in windows if patch in window]
        found[patch // width, patch % width] = len(inverse) / torch.stack(inverse).sum()
    return found


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SHAPES = [((4, 6), 2, 1), ((5, 5), 3, 1), ((3, 3), 3, 1), ((7, 4), 3, 2), ((6, 8), 3, 3), ((4, 4), 1, 1)]


@pytest.mark.parametrize(("grid", "size", "stride"), SHAPES)
def test_table_lists_every_window_and_covers_every_patch(grid, size, stride):
    table = window_table(grid, size, stride=stride)
    assert table.tolist() == slow_windows(grid, size, stride)
    assert set(table.flatten().tolist()) == set(range(grid[0] * grid[1]))


def test_published_grids_have_the_published_number_of_windows():
    assert [len(window_table((15, 15), size)) for size in (2, 3)] == [196, 169]


@pytest.mark.parametrize(("grid", "size", "stride"), SHAPES)
def test_cover_is_the_harmonic_mean_of_the_windows_that_hold_a_patch(grid, size, stride):
    logits = 3 * randn(2, *grid)
    unread = torch.ones(grid, dtype=torch.bool)
    unread.view(-1)[window_table(grid, size, stride=stride)[:, 0]] = False
    given = logits.masked_fill(unread, torch.nan).requires_grad_()
    found = harmonic_cover(given, size, stride=stride).sigmoid()
    plain = logits.detach().requires_grad_()
    expected = torch.stack([slow_cover(one, size, stride) for one in plain.sigmoid()])
    torch.testing.assert_close(found, expected, atol=1e-13, rtol=0)
    weights = randn(2, *grid, seed=1)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(given.grad, plain.grad, atol=1e-13, rtol=0)


def test_mean_over_scales_is_harmonic():
    logits = (3 * randn(3, 4, 5)).requires_grad_()
    expected = 3 / (1 / logits.sigmoid()).sum(dim=0)
    found = harmonic_mean(logits, dim=0).sigmoid()
    torch.testing.assert_close(found, expected, atol=1e-14, rtol=0)
    weights = randn(4, 5, seed=1)
    gradients = [torch.autograd.grad((form * weights).sum(), logits)[0] for form in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-13, rtol=0)


def test_a_harmonic_mean_lies_between_its_parts_and_below_the_arithmetic_mean():
    logits = 3 * randn(5, 6, 7)
    mean = harmonic_mean(logits, dim=1)
    assert (mean >= logits.amin(1)).all() and (mean <= logits.amax(1)).all()
    assert (mean.sigmoid() <= logits.sigmoid().mean(1)).all()
    constant = torch.full((4, 4), -1.5, dtype=torch.float64)
    torch.testing.assert_close(harmonic_cover(constant, 2), constant)


def test_probabilities_that_underflow_keep_their_order():
    logits = torch.full((1, 4, 4), 300.0)
    logits[0, 1, 1] = -300.0
    found = harmonic_cover(logits, 2)
    assert torch.isfinite(found).all()
    held = torch.zeros(4, 4, dtype=torch.bool)
    held[1:3, 1:3] = True
    assert found[0][held].max() < -295 and found[0][~held].min() > 295


def test_batches_are_covered_image_by_image():
    logits = randn(2, 3, 5, 4)
    assert torch.equal(harmonic_cover(logits, 2)[1, 2], harmonic_cover(logits[1, 2], 2))


@pytest.mark.parametrize(
    ("grid", "size", "stride", "words"),
    [
        ((2, 5), 3, 1, "window of 3 x 3 patches does not fit a grid of 2 x 5"),
        ((5, 2), 3, 1, "does not fit"),
        ((5, 5), 2, 3, "stride of 3 leave patches out"),
        ((5, 5), 2, 0, "stride of 0"),
    ],
)
def test_impossible_windows_are_refused_in_one_line(grid, size, stride, words):
    for call in (
        lambda: window_table(grid, size, stride=stride),
        lambda: harmonic_cover(torch.zeros(grid), size, stride=stride),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
